"""The `pare` command: options, exit codes, JSON, refusals in one line."""

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from report import samples

from paredown import verbs
from paredown.cli import lists, main, work
from paredown.cli.main import VERBS
from paredown.errors import InputError, UnknownName
from paredown.paring import request
from paredown.result import Document, ErrorDoc

REPO = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "PYTHONPATH": str(REPO / "src"), "OMP_NUM_THREADS": "1"}
PARE = [sys.executable, "-c", "import sys; from paredown.cli import main; sys.exit(main())"]

# verb -> the long options that the table gives it (and those every target-taking verb has).
RUN = "--run --prompt-tokens --new-tokens"
OPTIONS = {
    "profile": f"--device --measure --train --html --pipeline --pixels --random-weights {RUN}",
    "down": "--to --device --backend --only --without --keep --effort --threads --out --resume "
    f"--strict --accept --random-weights --seed {RUN}",
    "plan down": "--to --device --backend --only --without --keep --effort --threads --accept "
    f"--random-weights --seed {RUN}",
    "plan memory": "--capacity --out --seconds",
    "check": f"--to --device --threads --accept --random-weights {RUN}",
    "show": "",
    "apply": f"--out --backend --threads --random-weights {RUN}",
    "compare": "--threads --random-weights",
    "bench": f"--backend --threads --random-weights {RUN}",
    "device": "",
    "calibrate": "--deep",
    "techniques": f"--for --random-weights {RUN}",
    "papers": "",
    "reproduce": "--all --scale",
    "doctor": "",
}


def pare(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PARE, *args], capture_output=True, text=True, env=ENV, timeout=60, check=False, **kwargs
    )


def returning(monkeypatch: pytest.MonkeyPatch, verb: str, result: Callable[..., Any]) -> None:
    monkeypatch.setattr(verbs, verb, result)


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_verb_has_its_options_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr().out
    wanted = {*OPTIONS[verb].split(), "--json", "--help"}
    listed = {w.rstrip(",") for w in said.split() if w.startswith("--")}
    assert {w for w in listed if not w.startswith("---")} == wanted


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for verb in OPTIONS:
        assert f"\n  {verb.split()[0]} " in said


@pytest.mark.parametrize("args", [["--help"], ["techniques"], ["papers"], ["papers", "vovnet"]])
def test_lists_come_without_torch(args: list[str]) -> None:
    code = (
        "import sys; from paredown.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=ENV, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_is_quick() -> None:
    """Half a second on an idle machine: the least of several, since others may be busy."""
    took: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        assert pare("--help").returncode == 0
        took.append(time.perf_counter() - start)
        if took[-1] < 0.5:
            return
    assert min(took) < 0.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from paredown import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pare {__version__}\n"


USAGE = {
    "no such verb": ["dwon", "x"],
    "no such option": ["profile", "x.py", "--zap"],
    "missing --to": ["down", "x.py"],
    "missing target": ["profile"],
    "not a number": ["check", "x.py", "--to", "size <= 1 MB", "--threads", "two"],
    "below the least": ["check", "x.py", "--to", "size <= 1 MB", "--threads", "0"],
    "missing --out": ["apply", "fold-norm", "x.py"],
}


@pytest.mark.parametrize("args", USAGE.values(), ids=USAGE)
def test_bad_usage_is_one_line_and_two(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pare: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("args", USAGE.values(), ids=USAGE)
def test_bad_usage_is_a_document_too(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*args, "--json", "-"]) == 2
    error = ErrorDoc.model_validate_json(capfd.readouterr().out).error
    assert error.exit_code == 2
    assert error.message


# What is refused before a verb's work, each with a part of the line that says so.
REFUSED = {
    "missing file": (["profile", "nowhere.py", "--device", "pi5"], "no such file"),
    "folder that is none": (["show", "nowhere"], "no such artefact folder"),
    "unknown device": (["device", "h1000"], "unknown device 'h1000'"),
    "unknown device for a profile": (
        ["profile", "zoo:mobilenetv2", "--device", "nope"],
        "unknown device 'nope'",
    ),
    "unknown paper": (["papers", "vovnett"], "did you mean vovnet"),
    "unknown card": (["reproduce", "nope"], "unknown paper 'nope'"),
    "card and all": (["reproduce", "vovnet", "--all"], "exclude each other"),
    "no card": (["reproduce"], "name papers, or --all"),
    "unknown scale": (["reproduce", "vovnet", "--scale", "huge"], "unknown scale 'huge'"),
    "unknown network": (["profile", "zoo:resnet9000", "--device", "pi5"], "resnet9000"),
    "measuring elsewhere": (
        ["profile", "zoo:mobilenetv2", "--measure", "--device", "pi5"],
        "--measure times this machine",
    ),
    "unwritable page": (
        ["profile", "zoo:mobilenetv2", "--html", "/nowhere/x.html", "--device", "pi5"],
        "--html /nowhere/x.html",
    ),
    "one to compare": (["compare", "a.py"], "at least two"),
    "the same twice": (["compare", "a.py", "a.py"], "named twice"),
    "unknown technique": (["apply", "nope", "zoo:mobilenetv2", "--out", "o"], "unknown technique"),
    "unknown setting": (
        ["apply", "static-int8:zap=1", "zoo:mobilenetv2", "--out", "o"],
        "zap",
    ),
    "unknown backend": (["bench", "zoo:mobilenetv2", "--backend", "nope"], "unknown backend"),
    "malformed constraint": (["check", "zoo:mobilenetv2", "--to", "fast"], "malformed constraint"),
    "unknown metric": (["down", "zoo:mobilenetv2", "--to", "speed <= 3"], "unknown metric"),
    "effort that is none": (
        ["plan", "down", "zoo:mobilenetv2", "--to", "size <= 0.5x", "--effort", "long"],
        "effort 'long'",
    ),
    "accept something else": (
        ["down", "zoo:mobilenetv2", "--to", "size <= 0.5x", "--accept", "guesses"],
        "predicted",
    ),
}


@pytest.mark.parametrize(("args", "said"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_one_line_and_two(
    args: list[str],
    said: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*args, "--json", "-"]) == 2
    out, err = capfd.readouterr()
    error = ErrorDoc.model_validate_json(out).error
    assert error.exit_code == 2
    assert said in error.message
    assert err == f"pare: error: {error.message}\n"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_bug_says_so_and_keeps_a_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(name: str | None = None) -> Document:
        raise ZeroDivisionError("by zero\nat last")

    returning(monkeypatch, "device", broken)
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path))
    assert main(["device", "--json", "-"]) == 3
    out, err = capfd.readouterr()
    assert "this is a bug in paredown: ZeroDivisionError: by zero at last" in err
    assert err.count("\n") == 1
    (log,) = (tmp_path / "log").iterdir()
    assert str(log) in err
    assert "Traceback" in log.read_text()
    assert ErrorDoc.model_validate_json(out).error.exit_code == 3


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def stopped(name: str | None = None) -> Document:
        raise KeyboardInterrupt

    returning(monkeypatch, "device", stopped)
    assert main(["device"]) == 130
    assert capfd.readouterr().err == "pare: interrupted\n"


@pytest.mark.parametrize(
    ("verdict", "interrupted", "code"),
    [
        ("met", False, 0),
        ("predicted_met", False, 0),
        ("infeasible", False, 1),
        ("predicted_infeasible", False, 1),
        ("no_gain", False, 1),
        ("met", True, 130),
    ],
)
def test_the_exit_code_of_a_down_is_its_verdict(
    verdict: str,
    interrupted: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import paredown.paring as paring

    asked: dict[str, Any] = {}

    def down(target: str, **options: Any) -> Any:
        asked.update(options)
        doc = samples.down_doc().model_copy(update={"verdict": verdict, "interrupted": interrupted})
        return type("Result", (), {"doc": doc})()

    monkeypatch.setattr(paring, "down", down)
    args = ["--to", "latency <= 0.1x", "--to", "drop <= 1%", "--keep", "head*", "--effort", "90s"]
    assert main(["down", "x.py", *args, "--json", "-"]) == code
    assert json.loads(capfd.readouterr().out)["verdict"] == verdict
    assert asked["to"] == ["latency <= 0.1x", "drop <= 1%"]
    assert asked["keep"] == ["head*"]
    assert asked["effort"] == "90s"


@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_of_a_check_is_its_answer(
    met: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import paredown.paring as paring

    doc = samples.check_doc().model_copy(update={"met": met})
    monkeypatch.setattr(paring, "check", lambda target, **_: doc)
    assert main(["check", "x", "--to", "latency <= 1 s"]) == code


def test_json_to_standard_output_is_alone_whatever_the_model_prints(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os, torch\n"
        "print('printed')\n"
        "os.write(1, b'written')\n"
        "os.system('echo from a child')\n"
        "model, inputs = torch.nn.Linear(3, 2), torch.zeros(1, 3)\n"
        "from paredown import Workload\n"
        "workload = Workload(model, (inputs,))\n"
    )
    done = pare("profile", "loud.py", "--device", "pi5", "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    doc = json.loads(done.stdout)
    assert doc["kind"] == "profile"
    assert doc["totals"]["macs"]["value"] == 6
    for said in ("printed", "written", "from a child"):
        assert said in done.stderr


def test_json_to_a_file_leaves_the_tables(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.json"
    assert main(["device", "pi5", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["devices"][0]["name"] == "pi5"
    assert "Peak rates" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


def test_a_refusal_replaces_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text("{}")
    assert main(["device", "nope", "--json", str(path)]) == 2
    assert ErrorDoc.model_validate_json(path.read_text()).error.type == "UnknownName"


def test_an_unwritable_json_file_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "pi5", "--json", "/nowhere/d.json"]) == 2
    assert "/nowhere/d.json: cannot be written" in capfd.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    shell = f"{sys.executable} -c 'import sys; from paredown.cli import main; sys.exit(main())'"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell} papers | head -1 >/dev/null"],
        capture_output=True,
        text=True,
        env=ENV,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_names_and_arguments_are_those_of_the_python_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a verb hands on is all that its function takes, and nothing that it does not."""
    asked: list[tuple[str, set[str], bool]] = []

    def heard(verb: str, arguments: dict[str, Any], *, listen: bool = False, **_: Any) -> None:
        asked.append((verb, set(arguments), listen))

    for module in (work, lists):
        monkeypatch.setattr(module, "finish", heard)
    for verb in (*VERBS, work.plan_down, work.plan_native):
        verb(**dict.fromkeys(inspect.signature(verb).parameters))
    assert len(asked) == len(VERBS) + 2
    for verb, given, listen in asked:
        module, _, name = verb.partition(":")
        takes = inspect.signature(getattr(import_module(f"paredown.{module}"), name)).parameters
        assert listen == ("progress" in takes), verb
        if "options" in takes:
            assert given - {"json"} <= inspect.signature(request.make).parameters.keys(), verb
        else:
            assert given - {"json"} == takes.keys() - {"progress"}, verb


def test_what_was_not_given_is_left_to_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    def bench(target: str, **options: Any) -> Document:
        heard.append((target, options.keys()))
        return samples.compare_doc()

    returning(monkeypatch, "bench", bench)
    assert main(["bench", "x.py", "--json", os.devnull]) == 0
    assert main(["bench", "x.py", "--backend", "eager", "--threads", "2"]) == 0
    assert heard == [
        ("x.py", {"random_weights", "progress"}),
        ("x.py", {"random_weights", "progress", "backends", "threads"}),
    ]


def test_unknown_names_carry_what_is_known() -> None:
    with pytest.raises(UnknownName, match="did you mean pi5"):
        verbs.device("pi55")
    with pytest.raises(InputError, match="at least two"):
        verbs.compare("a")


def test_apply_show_and_bench_an_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from paredown import Workload\n"
        "model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())\n"
        "workload = Workload(model, (torch.zeros(1, 1, 8, 8),))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["apply", "fold-norm", "net.py", "--out", "pared", "--json", "a.json"]) == 0
    assert main(["show", "pared", "--json", "s.json"]) == 0
    made, shown = (json.loads((tmp_path / n).read_text()) for n in ("a.json", "s.json"))
    assert made == shown
    assert shown["recipe"]["steps"][0]["technique"] == "fold-norm"
    assert shown["recipe"] == yaml.safe_load((tmp_path / "pared/recipe.yaml").read_text())
    weights = next(p for p in (tmp_path / "pared" / "run").rglob("*") if p.is_file())
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert main(["show", "pared"]) == 2
    assert main(["bench", "pared"]) == 2


def test_the_manifest_and_the_schemas_are_current() -> None:
    for script in ("manifest.py", "schemas.py"):
        done = subprocess.run(
            [sys.executable, str(REPO / "scripts" / script), "--check"],
            capture_output=True,
            text=True,
            env=ENV,
            check=False,
        )
        assert done.returncode == 0, done.stderr
