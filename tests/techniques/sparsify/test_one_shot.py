"""One-shot pruning: exact patterns, closed forms, errors in order, files that shrink."""

import pytest
import torch
from torch import nn

from paredown import ordering
from paredown.changes import load_changes, save_changes
from paredown.editing import replay
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.runtime import sparse_file
from paredown.runtime.eager import Eager
from paredown.technique import Sites
from paredown.techniques.distill.recover import Recover
from paredown.techniques.factorize.low_rank import LowRank
from paredown.techniques.sparsify import pruners
from paredown.techniques.sparsify.one_shot import METHODS, OneShotPruning
from paredown.workload import TrainingData, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 24, 3, padding=1)
        self.depth = nn.Conv2d(24, 24, 3, groups=24)
        self.up, self.down = nn.Linear(24, 192), nn.Linear(192, 24)
        self.tiny = nn.Linear(24, 10)

    def forward(self, x):
        x = self.depth(self.conv(x).relu()).mean((2, 3))
        return self.tiny(self.down(self.up(x).relu()))


@pytest.fixture
def workload():
    torch.manual_seed(0)
    mix = torch.randn(8, 8)

    def images(n):
        return torch.einsum("nchw,cd->ndhw", torch.randn(n, 8, 7, 7), mix)

    data = [images(16) for _ in range(6)]
    pairs = [((x,), torch.randint(0, 10, (16,))) for x in data]
    return Workload(
        Net().eval(),
        (images(4),),
        calibration=data,
        training=TrainingData(lambda: pairs, nn.functional.cross_entropy),
    )


def pruned(workload, **settings):
    technique = OneShotPruning(**settings)
    return technique.apply(workload, technique.sites(workload, capture(workload)))


def rows_of(change, path):
    return change.workload.model.get_submodule(path).weight.detach().flatten(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_the_pattern_is_exact_in_every_group(workload, method, pattern):
    n, m = pruners.kept_of(pattern)
    change = pruned(workload, method=method, pattern=pattern)
    for path in ("conv", "up", "down", "tiny"):
        groups = rows_of(change, path).reshape(-1, m)
        assert ((groups != 0).sum(1) == n).all(), path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_the_share_is_exact(workload, method, share):
    change = pruned(workload, method=method, sparsity=share)
    for path in ("conv", "up", "down"):
        w = rows_of(change, path)
        if method == "sparsegpt":
            widths = [min(128, w.shape[1] - s) for s in range(0, w.shape[1], 128)]
            assert int((w == 0).sum()) == sum(round(share * len(w) * k) for k in widths)
        else:
            assert ((w == 0).sum(1) == round(share * w.shape[1])).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["4x1", "16x4", "16x32"])
def test_blocks_go_as_one_and_as_many_as_asked(workload, method, pattern):
    blocks = pruners.kept_of(pattern)
    change = pruned(workload, method=method, pattern=pattern, sparsity=0.6)
    for path in ("conv", "up", "down"):
        w = rows_of(change, path)
        stays = blocks.means((w != 0).float())
        assert ((stays == 0) | (stays == 1)).all(), path
        width = 128 // blocks.columns * blocks.columns if method == "sparsegpt" else w.shape[1]
        parts = [blocks.means(w[:, s : s + width]).numel() for s in range(0, w.shape[1], width)]
        assert int((stays == 0).sum()) == sum(round(0.6 * n) for n in parts), path


def test_blocks_of_one_weight_are_single_weights():
    torch.manual_seed(3)
    w, x = torch.randn(12, 200), torch.randn(400, 200)
    moment = x.T @ x / 400
    one = pruners.Blocks(1, 1)
    assert torch.equal(
        pruners.sparsegpt(w, moment, 0.5, one), pruners.sparsegpt(w, moment, 0.5, None)
    )
    kept = pruners.magnitude(w, 0.5, one) != 0
    assert w[kept].abs().min() > w[~kept].abs().max()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_compensation_beats_magnitude_on_the_calibration_inputs(workload, pattern):
    errors = {
        m: pruned(workload, method=m, pattern=pattern).decisions.values["error"] for m in METHODS
    }
    for path in ("conv", "up", "down", "tiny"):
        assert errors["sparsegpt"][path] <= errors["magnitude"][path], path
    assert errors["wanda"]["conv"] < errors["magnitude"]["conv"]


def test_the_error_is_that_of_the_outputs(workload):
    change = pruned(workload, method="wanda")
    layer, after = workload.model.up, change.workload.model.up
    seen = []
    handle = layer.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        for x in workload.calibration:
            workload.model(x)
        handle.remove()
        x = torch.cat(seen)
        whole, less = x @ layer.weight.T, x @ after.weight.T
    want = float((whole - less).square().sum() / whole.square().sum())
    assert change.decisions.values["error"]["up"] == pytest.approx(want, rel=1e-3)


def test_surgeon_equals_the_closed_form_on_a_tiny_layer(monkeypatch):
    """One weight lost to the left: dw = -w_p / [H^-1]_pp H^-1[:, p] (Hassibi & Stork 1993)."""
    monkeypatch.setattr(pruners, "DAMPING", 0.0)
    h = torch.tensor([[2.0, 1.0, 0.3], [1.0, 3.0, 0.5], [0.3, 0.5, 1.0]], dtype=torch.float64)
    w = torch.tensor([[0.1, 2.0, -1.0]], dtype=torch.float64)
    inverse = h.inverse()
    want = w - w[0, 0] / inverse[0, 0] * inverse[:, 0]
    got = pruners.sparsegpt(w, h, 1 / 3, None)
    torch.testing.assert_close(got, want)
    assert got[0, 0] == 0
    # And it is the least squares optimum with that weight gone.
    rest = torch.linalg.solve(h[1:, 1:], (h @ w[0])[1:])
    torch.testing.assert_close(got[0, 1:], rest)


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8)])
def test_independent_inputs_leave_nothing_to_compensate(pattern):
    """With a diagonal moment the surgeon ranks as Wanda does and changes no weight that stays."""
    torch.manual_seed(1)
    w, norm = torch.randn(6, 40), torch.rand(40) + 0.5
    damped = (norm**2 + pruners.DAMPING * (norm**2).mean()).sqrt()
    got = pruners.sparsegpt(w, torch.diag(norm**2), 0.5, pattern)
    torch.testing.assert_close(got, pruners.wanda(w, torch.diag(damped**2), 0.5, pattern))


def test_dead_inputs_lose_their_weights():
    torch.manual_seed(2)
    x = torch.randn(50, 20)
    x[:, [3, 7]] = 0
    got = pruners.sparsegpt(torch.randn(4, 20), x.T @ x / 50, 0.25, None)
    assert got.isfinite().all()
    assert (got[:, [3, 7]] == 0).all()


def test_files_shrink_by_the_formula_and_come_back_to_the_bit(workload, tmp_path):
    change = pruned(workload, pattern="2:4")
    lowered = Eager().lower(change.workload, threads=1)
    lowered.save(tmp_path / "after")
    Eager().lower(workload, threads=1).save(tmp_path / "before")
    sizes = {p.parent.name: p.stat().st_size for p in tmp_path.glob("*/*.safetensors")}
    weights = [workload.model.get_submodule(p).weight for p in ("conv", "up", "down", "tiny")]
    # Half of the float32 values go, a bit each comes; tensors below `FROM` are stored as they are.
    saved = sum(w.numel() * 2 - w.numel() // 8 for w in weights if w.numel() >= sparse_file.FROM)
    assert saved > 0
    assert sizes["before"] - sizes["after"] == pytest.approx(saved, abs=400)
    loaded = Eager().load(tmp_path / "after", threads=1, workload=change.workload)
    assert torch.equal(loaded(*workload.inputs), change.workload.call())


def test_recorded_decisions_are_compressed_too_and_replay(workload, tmp_path):
    change = pruned(workload)
    save_changes(tmp_path, [change])
    (record,) = load_changes(tmp_path)
    assert all(
        torch.equal(t, record.decisions.tensors[k]) for k, t in change.decisions.tensors.items()
    )
    redone = OneShotPruning().rewrite(workload, Sites(()), record.decisions)
    assert torch.equal(redone.workload.call(), change.workload.call())
    assert replay(workload.copy().model, record.edits).up.keeps_zeros


def test_recovery_trains_around_the_zeros(workload):
    change = pruned(workload, sparsity=0.6)
    after = Recover(steps=4, lr=1e-2)
    trained = after.apply(change.workload, after.sites(change.workload, capture(change.workload)))
    for path in ("conv", "up", "down"):
        a, b = rows_of(change, path), rows_of(trained, path)
        assert torch.equal(a == 0, b == 0), path
        assert not torch.equal(a, b), path


def test_the_undoing_pair_is_a_stated_conflict():
    why = ordering.conflict(OneShotPruning(), LowRank(), "up:weight")
    assert "factors are dense" in why
    assert ordering.conflict(OneShotPruning(), Recover(), "up:weight") is None


def test_refusals_name_every_layer_before_any_compute(workload):
    sites = OneShotPruning(pattern="3:7").sites(workload, capture(workload))
    assert "does not divide its 24 columns" in sites.refused["up:weight"]
    assert "grouped" in sites.refused["depth:weight"]
    few = OneShotPruning(least=25).sites(workload, capture(workload))
    assert "too few to prune" in few.refused["tiny:weight"]
    for wrong in (
        {"sparsity": 1.0},
        {"pattern": "4:2"},
        {"method": "x"},
        {"pattern": "a:4"},
        {"pattern": "0x4"},
    ):
        with pytest.raises(InputError):
            OneShotPruning(**wrong)
    workload.calibration = [torch.full((2, 8, 7, 7), float("nan"))]
    with pytest.raises(NotApplicable, match="not finite"):
        pruned(workload)
