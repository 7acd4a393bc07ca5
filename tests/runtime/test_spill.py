"""Tensors of a rewrite in mapped files: the same values, none of it left behind."""

import os

import pytest
import torch
from torch import nn

from paredown import verbs
from paredown.errors import InputError
from paredown.recipe import parse_inline, run
from paredown.runtime import spill
from paredown.workload import Workload


def wide() -> Workload:
    torch.manual_seed(0)
    return Workload(
        nn.Sequential(nn.Linear(1024, 1200), nn.Linear(1200, 8)), (torch.ones(1, 1024),)
    )


def test_large_tensors_are_mapped_and_the_same(tmp_path):
    recipe = parse_inline("weight-only")
    plain = run(recipe, wide()).workload.model
    with spill.into(tmp_path):
        held = run(recipe, wide()).workload.model
    for name, t in plain.state_dict().items():
        assert torch.equal(held.state_dict()[name], t), name
    assert held[0].weight.untyped_storage().is_shared()
    # A small one is not worth a file.
    assert not held[1].weight.untyped_storage().is_shared()
    assert os.listdir(tmp_path) == []


def test_outside_everything_stays_in_memory():
    held = run(parse_inline("weight-only"), wide()).workload.model
    assert not held[0].weight.untyped_storage().is_shared()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="has no room for 1 MiB of the result: No space left"):
        spill.mapped(torch.zeros(1 << 20, dtype=torch.uint8), tmp_path)
    assert os.listdir(tmp_path) == []


def test_apply_of_a_large_model_writes_what_that_of_a_small_one_does(tmp_path, monkeypatch):
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\n"
        "from torch import nn\n"
        "from paredown import Workload\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Linear(1024, 1200), nn.Linear(1200, 8))\n"
        "    return Workload(net, (torch.ones(1, 1024),))\n"
    )
    verbs.apply("weight-only", str(source), out=str(tmp_path / "small"))
    monkeypatch.setattr(verbs, "LARGE", 1)
    verbs.apply("weight-only", str(source), out=str(tmp_path / "new" / "large"))
    name = "run/tensors.safetensors"
    small, large = ((tmp_path / d / name).read_bytes() for d in ("small", "new/large"))
    assert small == large
    assert not list(tmp_path.glob(".spill-*"))
