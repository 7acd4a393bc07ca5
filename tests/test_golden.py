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


def test_every_verb_has_a_golden_file() -> None:
    named = {v.__name__ for v in VERBS} | {"plan"}
    assert named == SAME.keys() | SHAPES.keys()
    assert {p.stem for p in GOLDEN.glob("*.json")} == named
