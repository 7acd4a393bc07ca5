"""Bad input through the command line: exit 2, one line that says what to do, no traceback."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paredown import artefact, recipe, runtime, targets
from paredown.cli import main

NET = """
import torch
from torch import nn
from paredown import Workload


class Net(nn.Module):
    def __init__(self, last="return y"):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Raises(Net):
    def forward(self, x):
        y = super().forward(x)
        return y.view(7, 7)


class Nan(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")


X = torch.zeros(1, 1, 8, 8)


def evaluate(model):
    return torch.ones(4)


def boom(model):
    labels = {}
    return labels["missing"]


net = Workload(Net(), (X,), evaluate=evaluate, scale=1)
plain = Workload(Net(), (X,))
raises = Workload(Raises(), (X,))
nan = Workload(Nan(), (X,))
shape = Workload(Net(), (torch.zeros(1, 3, 8, 8),))
empty = Workload(Net(), (X,), calibration=[])
judge_nan = Workload(Net(), (X,), evaluate=lambda model: float("nan"), scale=1)
judge_raises = Workload(Net(), (X,), evaluate=boom, scale=1)
unknown_scale = Workload(Net(), (X,), evaluate=evaluate)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with targets, recipes, ONNX files, Hugging Face folders and a sound artefact."""
    home = tmp_path_factory.mktemp("bad")
    (home / "net.py").write_text(NET)
    (home / "none.py").write_text("x = 1\n")
    (home / "broken.py").write_text("import torch\nraise ValueError('my own words')\n")
    (home / "bad.onnx").write_bytes(b"this is not ONNX")
    (home / "file").write_text("")
    _recipes(home)
    _hugging_face(home)
    source = targets.resolve(f"{home}/net.py:plain")
    executable = runtime.backend("eager").lower(source, threads=1)
    artefact.save(
        home / "art", workload=source, executable=executable, recipe=recipe.Recipe(), changes=[]
    )
    return home


def _recipes(home: Path) -> None:
    step = "steps: [{technique: static-int8%s}]\n"
    (home / "technique.yaml").write_text("steps: [{technique: shrink-ray}]\n")
    (home / "key.yaml").write_text(step % ", colour: red")
    (home / "setting.yaml").write_text(step % ", settings: {colour: red}")
    (home / "schema.yaml").write_text("schema: 7\n" + step % "")
    (home / "version.yaml").write_text("paredown: 99.0.0\n" + step % "")
    (home / "site.yaml").write_text(step % ", sites: [nowhere]")


def _hugging_face(home: Path) -> None:
    for name in ("pickled", "remote"):
        (home / name).mkdir()
        config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 16}
        if name == "remote":
            config["auto_map"] = {"AutoModel": "modeling_evil.EvilModel"}
            (home / name / "modeling_evil.py").write_text("raise SystemExit('it was imported')")
        (home / name / "config.json").write_text(json.dumps(config))
    (home / "pickled" / "pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))


@pytest.fixture
def pare(home, tmp_path, monkeypatch, capfd):
    """Run ``pare`` in a folder of its own next to the inputs; returns the refusal."""
    work = tmp_path / "work"
    shutil.copytree(home, work)
    monkeypatch.chdir(work)

    def run(*argv: str, leaves: tuple[str, ...] = ()) -> str:
        before = sorted(p.name for p in work.iterdir())
        code = main(list(argv))
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("pare: error: ")]
        assert code == 2, f"exit {code}: {err}"
        assert len(lines) == 1, err
        assert err.rstrip().endswith(lines[0]), "the refusal is the last word"
        assert "Traceback" not in err + out
        after = sorted(p.name for p in work.iterdir() if p.name not in leaves)
        assert after == before, "a refusal leaves nothing behind"
        return lines[0].removeprefix("pare: error: ")

    return run


TO = ("--to", "latency <= 0.5x")
DOWN = {
    "missing file": (["nowhere.py", *TO], ["no such file", "nowhere.py"]),
    "no target": (["none.py", *TO], ["none.py has no target", "it has x"]),
    "no such name": (["net.py:nothing", *TO], ["has no 'nothing'", "it has", "plain"]),
    "raises on import": (["broken.py", *TO], ["my own words", "broken.py:2", "raise ValueError"]),
    "raises in forward": (["net.py:raises", *TO], ["raised in forward", "return y.view(7, 7)"]),
    "nan": (["net.py:nan", *TO], ["output contains NaN"]),
    "wrong shape": (["net.py:shape", *TO], ["(1, 3, 8, 8)", "expected input"]),
    "invalid onnx": (["bad.onnx", *TO], ["bad.onnx is not a valid ONNX file"]),
    "malformed": (["net.py:net", "--to", "latency 0.5x"], ["malformed constraint 'latency 0.5x'"]),
    "unknown metric": (["net.py:net", "--to", "latncy <= 1x"], ["did you mean latency"]),
    "wrong unit": (["net.py:net", "--to", "latency <= 5 MiB"], ["unit 'MiB' does not fit"]),
    "negative": (["net.py:net", "--to", "latency <= -1 ms"], ["negative"]),
    "contradictory": (
        ["net.py:net", "--to", "latency <= 1 ms", "--to", "latency >= 2 ms"],
        ["contradict each other"],
    ),
    "drop without evaluate": (["net.py:plain", "--to", "drop <= 1%"], ["needs `evaluate`"]),
    "unknown scale": (["net.py:unknown_scale", "--to", "drop <= 1%"], ["scale", "unknown"]),
    "evaluate nan": (["net.py:judge_nan", "--to", "drop <= 1%"], ["evaluate returned NaN"]),
    "evaluate raises": (
        ["net.py:judge_raises", "--to", "drop <= 1%"],
        ["evaluate raised KeyError", 'return labels["missing"]'],
    ),
    "empty calibration": (["net.py:empty", *TO], ["calibration data is empty"]),
    "unwritable out": (["net.py:net", *TO, "--out", "file/out"], ["cannot write"]),
    "unknown device": (["net.py:net", *TO, "--device", "abacus"], ["abacus"]),
    "unmeasurable": (["net.py:net", "--to", "traffic <= 0.5x"], ["traffic", "cannot be"]),
    "unknown technique": (["net.py:net", *TO, "--only", "shrink-ray"], ["shrink-ray"]),
    "unknown backend": (["net.py:net", *TO, "--backend", "tpu"], ["tpu"]),
    "effort": (["net.py:net", *TO, "--effort", "soon"], ["'soon' is not a time"]),
    "random weights": (
        ["net.py:net", "--to", "drop <= 1%", "--random-weights"],
        ["--random-weights"],
    ),
    "nothing to resume": (["net.py:net", *TO, "--resume", "--out", "art"], ["nothing to resume"]),
    "pickled": (["hf:pickled", *TO], ["safetensors"]),
    "remote code": (["hf:remote", *TO], ["code"]),
    "no config": (["hf:nowhere", *TO], ["config.json"]),
    "folder": ([".", *TO], ["not a paredown artefact"]),
}


@pytest.mark.parametrize("case", DOWN)
def test_down_refuses(case, pare):
    argv, says = DOWN[case]
    # A judge fails when the original is judged, and by then the search has its folder.
    line = pare("down", *argv, leaves=("pared",) if case.startswith("evaluate") else ())
    for words in says:
        assert words in line, line


APPLY = {
    "technique": ("technique.yaml", "unknown technique 'shrink-ray'"),
    "key": ("key.yaml", "unknown key 'steps.0.colour'"),
    "setting": ("setting.yaml", "no setting 'colour'"),
    "schema": ("schema.yaml", "unknown recipe schema 7"),
    "version": ("version.yaml", "newer than this"),
    "site": ("site.yaml", "no site matches 'nowhere'"),
    "missing": ("nowhere.yaml", "no recipe at"),
    "inline": ("static-int8:colour=red", "no setting 'colour'"),
}


@pytest.mark.parametrize("case", APPLY)
def test_apply_refuses_a_recipe(case, pare):
    given, says = APPLY[case]
    assert says in pare("apply", given, "net.py:plain", "--out", "out")


def flip(folder: Path) -> None:
    path = folder / "run" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forge(folder: Path) -> None:
    from paredown import manifest

    m = manifest.read(folder)
    info = next(iter(m.files.values()))
    m.model_copy(update={"files": {**m.files, "../outside": info}}).write(folder)


DAMAGE = {
    "flipped byte": (flip, "SHA-256 does not match"),
    "missing file": (lambda f: (f / "recipe.yaml").unlink(), "recipe.yaml is missing"),
    "path": (forge, "leaves the artefact's folder"),
    "pickle": (lambda f: (f / "run" / "w.pt").write_bytes(b"x"), "is a pickle"),
    "manifest": (lambda f: (f / "manifest.json").write_text("{"), "damaged"),
}


@pytest.mark.parametrize("verb", [["show"], ["bench"], ["compare", "net.py:plain"]])
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_artefact_is_refused(case, verb, pare):
    damage, says = DAMAGE[case]
    damage(Path("art"))
    assert says in pare(*verb, "art")


def test_a_missing_extra_names_the_install_line(pare, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    line = pare("down", "net.py:net", *TO, "--backend", "openvino")
    assert "pip install 'paredown[openvino]'" in line


def test_a_truncated_onnx_file_is_refused(pare):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    onnx.save(helper.make_model(graph), "whole.onnx")
    data = Path("whole.onnx").read_bytes()
    Path("cut.onnx").write_bytes(data[: len(data) // 2])
    assert "cut.onnx is not a valid ONNX file" in pare("profile", "cut.onnx")


ONNX = {
    "open dimensions": ("open.onnx", "leaves dimension H, W of input 'x' open"),
    "wrong shape": ("open.onnx?x=1x4x8x8", "input 'x' is ?x3x?x?, not 1x4x8x8"),
    "weights outside": ("outside.onnx", "keeps weights outside its folder (../w.bin)"),
    "operator set": ("new.onnx", "Opset 99 is under development"),
    "unknown operator": ("custom.onnx", "acme:Frob"),
}


@pytest.mark.parametrize("case", ONNX)
def test_an_onnx_file_that_cannot_run_is_refused(case, pare):
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def write(name, node, opset=17, outside=False):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])
        w = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 1, 1), [0.5] * 12)
        if outside:
            w.ClearField("float_data")
            w.data_location = TensorProto.EXTERNAL
            entry = w.external_data.add()
            entry.key, entry.value = "location", "../w.bin"
        graph = helper.make_graph([node], "g", [x], [y], [w])
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        Path(name).write_bytes(model.SerializeToString())

    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    write("open.onnx", conv)
    write("new.onnx", conv, opset=99)
    write("outside.onnx", conv, outside=True)
    write("custom.onnx", helper.make_node("Frob", ["x", "w"], ["y"], domain="acme"))
    target, says = ONNX[case]
    shape = "?x=1x3x8x8" if case in ("operator set", "unknown operator") else ""
    assert says in pare("down", target + shape, *TO)


@pytest.mark.parametrize(
    "argv",
    [[], ["fly"], ["down"], ["down", "net.py"], ["down", "net.py", "--to"], ["down", "--nope"]],
)
def test_bad_usage_is_refused(argv, capfd):
    assert main(argv) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_with_json_the_refusal_is_a_document(pare, capfd, home):
    assert main(["down", "nowhere.py", *TO, "--json", "-"]) == 2
    out, err = capfd.readouterr()
    doc = json.loads(out)
    assert doc["schema"] == 1
    assert doc["error"]["type"] == "TargetError"
    assert doc["error"]["exit_code"] == 2
    assert "nowhere.py" in doc["error"]["message"]
    assert len(err.strip().splitlines()) == 1


def test_a_process_of_its_own_exits_2(tmp_path):
    code = "import sys; from paredown.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "down", "nowhere.py", *TO],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "pare: error: no such file: nowhere.py\n"
    assert done.stdout == ""


def test_the_inputs_themselves_are_sound(home):
    """The table above fails for its reasons only: the same targets without the fault are fine."""
    for name in ("net", "plain"):
        targets.validate(targets.resolve(f"{home}/net.py:{name}"), judges=True)
    loaded = artefact.load(home / "art", source=f"{home}/net.py:plain")
    assert loaded(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
