"""Targets: what a reference names, what is refused in one line, and that a target runs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from paredown import targets
from paredown.errors import InputError, ParedownError, TargetError, UnknownName
from paredown.files import sha256
from paredown.workload import TargetRef, TrainingData, Workload

HEAD = """
import torch
from torch import nn
from paredown import Workload

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)

"""


@pytest.fixture
def file(tmp_path):
    def write(body: str, name: str = "net.py") -> str:
        path = tmp_path / name
        path.write_text(HEAD + body, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    "body",
    [
        "target = Workload(Net(), (torch.zeros(1, 4),))",
        "target = (Net(), torch.zeros(1, 4))",
        "target = (Net(), (torch.zeros(1, 4),))",
        "target = (Net(), {'x': torch.zeros(1, 4)})",
        "target = Net(); target.inputs = torch.zeros(1, 4)",
        "target = Net(); target.dummy_inputs = {'x': torch.zeros(1, 4)}",
        "def target(): return Workload(Net(), (torch.zeros(1, 4),))",
        "def target(): return Net(), torch.zeros(1, 4)",
        "def anything() -> Workload: return Workload(Net(), (torch.zeros(1, 4),))",
        "def helper(): pass\ndef build() -> Workload: return Workload(Net(), (torch.zeros(1, 4),))",
        "def helper(x): pass\ndef build(): return Net(), torch.zeros(1, 4)",
    ],
)
def test_what_a_file_may_hold(file, body):
    text = file(body)
    w = targets.validate(targets.resolve(text))
    assert w.name == "net"
    assert w.source == TargetRef(text, sha256(text))
    assert not w.model.training
    assert w.call().shape == (1, 2)


def test_a_name_chooses(file):
    text = file("a = (Net(), torch.zeros(1, 4))\nb = (Net(), torch.zeros(3, 4))")
    assert targets.resolve(f"{text}:b").inputs[0].shape == (3, 4)
    with pytest.raises(TargetError, match=r"several targets.*one of a, b"):
        targets.resolve(text)


def test_preferred_names_come_first(file):
    text = file("a = (Net(), torch.zeros(1, 4))\nmodel = (Net(), torch.zeros(3, 4))")
    assert targets.resolve(text).inputs[0].shape == (3, 4)


def test_a_class_without_arguments_is_a_target_by_name(file):
    text = file("class Whole(Net):\n    inputs = torch.zeros(1, 4)")
    assert targets.resolve(f"{text}:Whole").call().shape == (1, 2)


@pytest.mark.parametrize(
    ("body", "name", "says"),
    [
        ("x = 1", "", r"has no target.*it has .*\bx\b"),
        ("def f(x): return x", "", "has no target"),
        ("x = 1", ":y", "has no 'y'; it has nothing"),
        ("t = (Net(), torch.zeros(1, 4))", ":y", "has no 'y'; it has t"),
        ("x = 1", ":x", "is a int: a target is"),
        ("net = Net()", ":net", "without example inputs"),
        ("def f(x): return x", ":f", "takes arguments"),
        ("def f(): return None", ":f", "is a NoneType"),
        (
            "raise KeyError('weights')",
            "",
            r"raised on import: KeyError.*\(net\.py:14: raise KeyError",
        ),
        ("import sys; sys.exit(3)", "", "raised on import: SystemExit"),
        ("import no_such_module_here", "", "ModuleNotFoundError.*no_such_module_here"),
        ("def (", "", r"net\.py:14: invalid syntax"),
        (
            "def f():\n    n = 0\n    return 1 / n",
            ":f",
            r"f raised: ZeroDiv.*net\.py:16: return 1 / n",
        ),
    ],
)
def test_a_file_that_holds_no_target_is_refused_in_one_line(file, body, name, says):
    with pytest.raises(TargetError, match=says) as e:
        targets.resolve(file(body) + name)
    assert "\n" not in str(e.value)


def test_a_failed_import_leaves_nothing_behind(file):
    before, paths = set(sys.modules), list(sys.path)
    with pytest.raises(TargetError):
        targets.resolve(file("1 / 0"))
    assert not any(m.startswith("paredown_target") for m in set(sys.modules) - before)
    assert sys.path[: len(paths)] == paths


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere.py", "no such file: nowhere.py"),
        ("nowhere.py:x", "no such file: nowhere.py"),
        ("nowhere.onnx", "no such file"),
        ("", "folder without manifest|no such file"),
        ("zoo:mobilenetv2?width", "malformed setting 'width'"),
    ],
)
def test_a_reference_that_names_nothing(text, says):
    with pytest.raises(TargetError, match=says):
        targets.resolve(text)


def test_folders_and_other_files(tmp_path):
    with pytest.raises(TargetError, match="not a paredown artefact"):
        targets.kind_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TargetError, match="write hf:"):
        targets.kind_of(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    assert targets.kind_of(str(tmp_path)) == "artefact"
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(TargetError, match="is no target"):
        targets.kind_of(str(tmp_path / "weights.bin"))
    assert targets.kind_of("hf:anything") == "hf"
    assert targets.kind_of("zoo:anything") == "zoo"


def test_neighbours_can_be_imported(tmp_path, file):
    (tmp_path / "neighbour_of_net.py").write_text("SIZE = 4\n")
    text = file("from neighbour_of_net import SIZE\ntarget = (Net(), torch.zeros(1, SIZE))")
    assert targets.resolve(text).inputs[0].shape == (1, 4)


def test_untrained_weights_are_the_same_each_time_and_randomness_is_left_alone(file):
    text = file("def target(): return Net(), torch.zeros(1, 4)")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a = targets.resolve(text).model.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    b = targets.resolve(text).model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_edited_file_is_read_anew(tmp_path, file):
    text = file("target = (Net(), torch.zeros(1, 4))")
    assert targets.resolve(text).inputs[0].shape[0] == 1
    file("target = (Net(), torch.zeros(7, 4))")
    assert targets.resolve(text).inputs[0].shape[0] == 7


def test_the_zoo():
    w = targets.resolve("zoo:mobilenetv2?width=0.35,num_classes=7,image_size=32,batch=2")
    assert w.inputs[0].shape == (2, 3, 32, 32)
    assert targets.validate(w).call().shape == (2, 7)
    with pytest.raises(UnknownName, match="mobilenetv2"):
        targets.resolve("zoo:mobilnetv2")
    with pytest.raises(ParedownError, match="colour"):
        targets.resolve("zoo:mobilenetv2?colour=red")


def test_random_weights_mark_the_workload(file):
    text = file("target = (Net(), torch.zeros(1, 4))")
    assert targets.resolve(text, random_weights=True).source.random_weights


# ---------------------------------------------------------------- seen to run


class Raises(nn.Module):
    def forward(self, x):
        y = x + 1
        return y.reshape(7)


class Nan(nn.Module):
    def forward(self, x):
        return {"ok": x, "bad": x / 0 * 0}


def run(model: nn.Module, **changes) -> Workload:
    given = {"inputs": (torch.ones(1, 4),), "name": "net"}
    return Workload(model, **{**given, **changes})


@pytest.mark.parametrize(
    ("workload", "says"),
    [
        (
            run(Raises()),
            r"net raised in forward.*\(1, 4\).*test_targets\.py:\d+: return y\.reshape\(7\)",
        ),
        (run(Nan()), r"output 'bad' contains NaN \(4 of 4"),
        (run(nn.Linear(5, 2)), r"inputs of shape \(1, 4\)"),
        (run(nn.Identity(), inputs=()), "no example inputs"),
        (run(nn.Identity(), inputs=(torch.tensor([math.nan]),)), "example input contains NaN"),
        (run(torch.relu), "not an nn.Module"),
        (run(nn.Identity(), calibration=[]), "calibration data is empty"),
        (run(nn.Identity(), calibration=iter([1])), "must be a sequence"),
        (run(nn.Identity(), calibration=[torch.ones(1), torch.tensor(math.inf)]), "item 1"),
        (run(nn.Linear(4, 2), calibration=[torch.ones(1, 3)]), "on calibration item 0"),
    ],
)
def test_a_workload_that_does_not_run_is_refused_in_one_line(workload, says):
    with pytest.raises(InputError, match=says) as e:
        targets.validate(workload)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("evaluate", "says"),
    [(lambda m: math.nan, "returned NaN"), (lambda m: m.missing, "raised AttributeError")],
)
def test_judges_are_tried_when_asked(evaluate, says):
    targets.validate(run(nn.Identity(), evaluate=evaluate))
    with pytest.raises(InputError, match=says):
        targets.validate(run(nn.Identity(), evaluate=evaluate), judges=True)


def test_validation_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    targets.validate(run(model, training=TrainingData(list)))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_that_are_not_in_memory_are_checked_by_shapes():
    with torch.device("meta"):
        good, bad = nn.Linear(4, 2), nn.Linear(5, 2)
    targets.validate(run(good))
    with pytest.raises(TargetError, match="net"):
        targets.validate(run(bad))


def test_the_demo_is_a_target():
    demo = Path(__file__).resolve().parent.parent / "examples" / "digits.py"
    w = targets.validate(targets.resolve(str(demo)))
    assert w.evaluate is not None
    assert w.verify is not None
    assert w.training is not None
    assert w.scale == 1
