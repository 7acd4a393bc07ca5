"""One golden document per verb: real runs of a tiny network, reduced to what no machine changes."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from report import samples

from paredown.cli import main
from paredown.cli.main import VERBS
from paredown.recipe import Recipe
from paredown.result import Document

GOLDEN = Path(__file__).parent / "golden"
NET = """
import torch
from torch import nn
from paredown import Workload

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(392, 10),
)
inputs = torch.randn(1, 3, 16, 16)
judged = torch.randn(120, 3, 16, 16)
with torch.inference_mode():
    labels = model.eval()(judged).argmax(1)

def evaluate(net):
    return (torch.cat([net(x[None]) for x in judged]).argmax(1) == labels).float()

workload = Workload(model, (inputs,), evaluate=evaluate, scale=1.0, calibration=[inputs])
"""

# Keys whose values a machine, a clock or a library's version changes: their type stands for them.
VOLATILE = frozenset(
    (
        *("value", "spread", "n", "quantiles", "reason", "seconds", "effort_s", "date", "created"),
        *("sha256", "digest", "bytes", "fingerprint", "folder", "paredown", "version", "threads"),
        *("detail", "notes", "summary"),
    )
)
# Figures known exactly keep their value.
EXACT = frozenset({"counted", "nominal"})


def reduced(value: Any, *, exact: bool = True) -> Any:
    """A document without what changes from machine to machine."""
    if isinstance(value, dict):
        figure = {"value", "unit", "how"} <= value.keys()
        keep = exact and (not figure or value["how"] in EXACT)
        return {
            k: v
            if figure and keep and k == "value"
            else type(v).__name__
            if k in VOLATILE
            else reduced(v, exact=exact)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [reduced(v, exact=exact) for v in value]
    return value if not isinstance(value, float) else "float"


def shape(value: Any) -> Any:
    """Keys and types alone; of a list its first element."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@cache
def folder() -> Path:
    import tempfile

    at = Path(tempfile.mkdtemp(prefix="golden-"))
    (at / "net.py").write_text(NET)
    return at


def document(*args: str) -> dict[str, Any]:
    """The document of a real run of `pare`, in the folder with the tiny network."""
    before, path = Path.cwd(), folder() / "out.json"
    os.chdir(folder())
    try:
        assert main([*args, "--json", str(path)]) in (0, 1)
    finally:
        os.chdir(before)
    return json.loads(path.read_text())


def artefact() -> str:
    """A folder made once by `pare apply`."""
    if not (folder() / "pared").exists():
        document("apply", "fold-norm", "net.py", "--out", "pared")
    return "pared"


def plain(doc: Document) -> dict[str, Any]:
    return json.loads(doc.to_json())


# Verbs whose document is the same everywhere but for marked values: run for real.
SAME: dict[str, Callable[[], dict[str, Any]]] = {
    "profile": lambda: document("profile", "net.py", "--device", "pi5"),
    "show": lambda: document("show", artefact()),
    "apply": lambda: document("apply", "fold-norm", "net.py", "--out", "again"),
    "device": lambda: document("device", "pi5"),
    "techniques": lambda: document("techniques", "--for", "net.py"),
    "papers": lambda: document("papers", "vovnet"),
    "zoo": lambda: document("zoo", "mobilenetv2"),
}
# Verbs whose lists and names depend on the machine: run for real, keys and types kept.
SHAPES: dict[str, Callable[[], dict[str, Any]]] = {
    "bench": lambda: document("bench", "net.py"),
    "compare": lambda: document("compare", "net.py", artefact()),
    "check": lambda: document("check", "net.py", "--to", "latency <= 1 s"),
    "doctor": lambda: document("doctor"),
    "plan": lambda: document("plan", "down", "net.py", "--to", "latency <= 0.5x"),
    # These take minutes for real; their own rooms' tests run them. The record is what is held here.
    "down": lambda: plain(samples.down_doc()),
    "calibrate": lambda: plain(samples.device_doc()),
    "reproduce": lambda: plain(samples.cards_doc()),
}


def compared(verb: str, found: Any) -> None:
    path = GOLDEN / f"{verb}.json"
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if os.environ.get("PAREDOWN_GOLDEN") == "write":
        path.write_text(text)
    assert path.exists(), f"no golden file for {verb}: run with PAREDOWN_GOLDEN=write"
    assert found == json.loads(path.read_text())


@pytest.mark.parametrize("verb", SAME)
def test_the_document_is_the_golden_one(verb: str) -> None:
    compared(verb, reduced(SAME[verb]()))


TIMED = ("bench", "check", "compare")
"""Verbs that time something: seconds each."""


@pytest.mark.parametrize(
    "verb", [pytest.param(v, marks=pytest.mark.slow) if v in TIMED else v for v in SHAPES]
)
def test_the_document_has_the_golden_keys(verb: str) -> None:
    compared(verb, shape(SHAPES[verb]()))


# Fields that are `dict[str, ...]` in the records: metrics, techniques, caches, packages. Which
# names stand there is up to the run and the machine.
OPEN = frozenset(
    (
        *("figures", "ratios", "predicted", "measured", "quantiles", "left_out"),
        *("waterline_before", "waterline_after", "caches", "probe", "versions"),
    )
)


def key_paths(value: Any, at: str = "", *, named: bool = True) -> dict[str, bool]:
    """Every key path of a document, and whether anything stands below it.

    A list has the paths of all its elements together, at ``[]``; the names of an open mapping are
    one, ``*``. Nothing stands below an empty list or mapping, nor below null. A recipe is one leaf:
    its form is held by its own record.
    """
    if at.endswith(".recipe"):
        below = []
    elif isinstance(value, list):
        below = [(f"{at}[]", v, True) for v in value]
    elif isinstance(value, dict):
        below = [(f"{at}.{k if named else '*'}", v, k not in OPEN) for k, v in value.items()]
    else:
        below = []
    found = {at: value not in (None, "NoneType", [], {})}
    for path, v, names in below:
        for p, filled in key_paths(v, path, named=names).items():
            found[p] = found.get(p, False) or filled
    return found


def beyond(paths: dict[str, bool], others: dict[str, bool]) -> list[str]:
    """Paths of one document that the other lacks, but for those below a place it leaves empty."""
    empty = [path for path, filled in others.items() if not filled]

    def excused(path: str) -> bool:
        return any(path.startswith((f"{e}.", f"{e}[")) for e in empty)

    return sorted(p for p in paths.keys() - others.keys() if not excused(p))


@pytest.mark.slow
def test_a_real_down_has_the_golden_keys() -> None:
    only = [w for name in ("fold-norm", "weight-only", "static-int8") for w in ("--only", name)]
    run = ("--to", "size <= 0.6x", "--effort", "30s", "--threads", "1", "--out", "pared-down")
    doc = document("down", "net.py", *run, *only)
    golden = json.loads((GOLDEN / "down.json").read_text())
    found, kept = key_paths(doc), key_paths(golden)
    assert beyond(found, kept) == []
    assert beyond(kept, found) == []
    for recipe in (doc["recipe"], *(t["recipe"] for t in doc["trials"])):
        Recipe.model_validate(recipe)
    # What no run may leave empty.
    filled = (".constraints", ".trials", ".before.figures", ".after.figures", ".after.ratios.*.how")
    assert [p for p in filled if not found.get(p)] == []


def test_key_paths_tell_documents_apart() -> None:
    one = {"a": [{"b": 1}, {"c": None}], "figures": {"size": {"how": "x"}}}
    assert key_paths(one).keys() == {
        *("", ".a", ".a[]", ".a[].b", ".a[].c", ".figures", ".figures.*", ".figures.*.how")
    }
    assert beyond(key_paths(one), key_paths({"a": [], "figures": {}})) == []
    assert beyond(key_paths(one), key_paths({"a": [{"b": 1}], "figures": None})) == [".a[].c"]


def test_every_verb_has_a_golden_file() -> None:
    named = {v.__name__ for v in VERBS} | {"plan"}
    assert named == SAME.keys() | SHAPES.keys()
    assert {p.stem for p in GOLDEN.glob("*.json")} == named
