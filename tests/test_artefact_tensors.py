"""A tensor is stored once in an artefact: what recovery trained stands in ``run/`` and is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from paredown import artefact, recipe, runtime
from paredown.changes import NAMED_FROM, load_changes, save_changes
from paredown.errors import ArtefactError
from paredown.search import shared
from paredown.workload import TrainingData, Workload


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture(scope="module")
def original() -> Workload:
    torch.manual_seed(0)
    batches = [torch.randn(16, 64) for _ in range(4)]
    data = TrainingData(lambda: [((x,), None) for x in batches])
    # Another network to recover towards, so that training has something to change.
    return Workload(Net().eval(), (torch.randn(2, 64),), training=data, original=Net().eval())


@pytest.fixture(scope="module")
def done(original: Workload) -> recipe.Applied:
    """Two layers packed after recovery, which trained three."""
    text = "recover:steps=3,lr=1e-2,task=0.0; weight-only!second"
    return recipe.run(recipe.parse_inline(text), original)


def stored(folder: Path) -> list[torch.Tensor]:
    """Every tensor on disk that is large enough to be worth a name."""
    files = [load_file(p) for p in sorted(folder.rglob("*.safetensors"))]
    return [t for f in files for t in f.values() if t.nbytes >= NAMED_FROM]


def each_is_stored_once(folder: Path) -> None:
    found = stored(folder)
    content = {(str(t.dtype), tuple(t.shape), t.numpy().tobytes()) for t in found}
    assert len(found) == len(content) > 0


def records_are_whole(folder: Path, done: recipe.Applied, original: Workload) -> None:
    records = load_changes(folder / "changes")
    for kept, made in zip(records, done.changes, strict=True):
        want = made.decisions.tensors
        assert kept.decisions.tensors.keys() == want.keys()
        assert all(torch.equal(t, want[k]) for k, t in kept.decisions.tensors.items())
    again = recipe.run(done.recipe, original, decisions=[r.decisions for r in records])
    assert torch.equal(again.workload.call(), done.workload.call())


def test_an_eager_artefact_holds_trained_tensors_once(original, done, tmp_path):
    executable = runtime.backend("eager").lower(done.workload, threads=1)
    artefact.save(
        tmp_path / "art",
        workload=done.workload,
        executable=executable,
        recipe=done.recipe,
        changes=done.changes,
    )
    each_is_stored_once(tmp_path / "art")
    # Of what recovery trained only the two layers packed since then stand in its own file.
    own = load_file(tmp_path / "art/changes/00-recover.safetensors")
    assert {"first.weight", "head.weight"} <= own.keys()
    assert "second.weight" not in own
    records_are_whole(tmp_path / "art", done, original)
    x = original.inputs[0]
    assert torch.equal(artefact.load(tmp_path / "art", source=original)(x), executable(x))


def test_what_trials_share_holds_trained_tensors_once(original, done, tmp_path):
    shared.keep(tmp_path / "kept", done.workload, done.changes)
    each_is_stored_once(tmp_path / "kept")
    records_are_whole(tmp_path / "kept", done, original)
    again, _ = shared.restore(tmp_path / "kept", original)
    assert torch.equal(again.call(), done.workload.call())


def test_a_step_names_the_tensors_of_an_earlier_one(done, tmp_path):
    first = done.changes[0]
    alone = sum(p.stat().st_size for p in save_changes(tmp_path / "one", [first]))
    both = sum(p.stat().st_size for p in save_changes(tmp_path / "two", [first, first]))
    data = sum(t.nbytes for t in first.decisions.tensors.values())
    assert both - alone < 0.2 * data
    records = load_changes(tmp_path / "two")
    assert all(torch.equal(t, records[1].decisions.tensors[k]) for k, t in
               first.decisions.tensors.items())  # fmt: skip


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/tmp/outside.safetensors"])
def test_a_name_that_leaves_the_artefact_is_refused(done, tmp_path, name):
    folder = tmp_path / "art" / "changes"
    save_changes(folder, [done.changes[0]])
    path = folder / "00-recover.json"
    data = json.loads(path.read_text())
    data["same"] = {"second.weight": [name, "second.weight"]}
    path.write_text(json.dumps(data))
    (tmp_path / "outside.safetensors").write_bytes((folder / "00-recover.safetensors").read_bytes())
    with pytest.raises(ArtefactError, match="outside of the artefact"):
        load_changes(folder)


def test_a_name_that_is_not_there_is_refused(done, tmp_path):
    folder = tmp_path / "changes"
    save_changes(folder, [done.changes[0]])
    path = folder / "00-recover.json"
    data = json.loads(path.read_text())
    data["same"] = {"x": ["00-recover.safetensors", "nothing"]}
    path.write_text(json.dumps(data))
    with pytest.raises(ArtefactError, match="damaged change record"):
        load_changes(folder)
