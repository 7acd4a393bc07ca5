"""N:M sparse training: masks along the right axis, gradients by formula, N = M trains densely."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.cost.sparse_training import share_of_macs
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.technique import Sites
from paredown.techniques.recover import Plan, train
from paredown.techniques.sparsify import nm_products as nm
from paredown.techniques.sparsify.nm_training import NMTraining
from paredown.workload import TrainingData, Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(32, 32, 3, groups=32)
        self.up, self.down = nn.Linear(32, 48, bias=False), nn.Linear(48, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.depth(self.body(self.stem(x).relu()).relu()).flatten(2).mT
        return self.head(self.down(self.up(x).relu()).mean(1))


LAYERS = ("body", "up", "down")


@pytest.fixture
def workload():
    torch.manual_seed(0)
    data = [((torch.randn(6, 8, 9, 9),), torch.randint(0, 10, (6,))) for _ in range(3)]
    return Workload(Net().eval(), data[0][0], training=TrainingData(lambda: data, F.cross_entropy))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (1, 4), (8, 8)])
@pytest.mark.parametrize("axis", [0, 1])
def test_masks_keep_the_largest_n_of_every_m_along_their_axis(n, m, axis):
    torch.manual_seed(1)
    w = torch.randn(16, 24, 3, 3)
    mask = nm.kept(w, n, m, axis)
    groups = mask.movedim(axis, -1).reshape(-1, m)
    values = w.abs().movedim(axis, -1).reshape(-1, m)
    assert (groups.sum(1) == n).all()
    lost = torch.where(groups, -1.0, values).amax(1)
    assert (torch.where(groups, values, 9.0).amin(1) >= lost).all()
    assert (nm.kept(torch.ones(16, 24), n, m, axis).movedim(axis, -1)[..., :n]).all()


@pytest.mark.parametrize("direction", ["both", "forward", "backward"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_are_the_formulas(direction, kind):
    torch.manual_seed(2)
    decay = 0.03
    if kind == "linear":
        layer, x = nn.Linear(16, 8).double(), torch.randn(3, 5, 16, dtype=torch.double)
    else:
        layer = nn.Conv2d(16, 8, 3, stride=2, padding=1).double()
        x = torch.randn(3, 16, 7, 7, dtype=torch.double)
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    holder = nn.Sequential(layer)
    nm.convert(holder, ["0"], 2, 8, direction, decay)
    x.requires_grad_(True)
    y = holder(x)
    ahead, back = nm.kept(w, 2, 8, 1), nm.kept(w, 2, 8, 0)
    ahead = torch.ones_like(ahead) if direction == "backward" else ahead
    back = torch.ones_like(back) if direction == "forward" else back

    def dense(x, w):
        return F.linear(x, w, b) if kind == "linear" else F.conv2d(x, w, b, 2, 1)

    torch.testing.assert_close(y, dense(x, w * ahead))
    dy = torch.randn_like(y)
    y.backward(dy)
    one = x.detach().clone().requires_grad_(True)
    (dx,) = torch.autograd.grad(dense(one, w * back), one, dy)
    torch.testing.assert_close(x.grad, dx)
    other = w.clone().requires_grad_(True)
    (dw,) = torch.autograd.grad(dense(x.detach(), other), other, dy)
    torch.testing.assert_close(layer.weight.grad, dw + decay * ~ahead * w)
    over = [d for d in range(dy.ndim) if d != (dy.ndim - 1 if kind == "linear" else 1)]
    torch.testing.assert_close(layer.bias.grad, dy.sum(over))


def test_all_of_m_is_dense_training_to_the_bit(workload):
    plain, sparse = copy.deepcopy(workload.model), copy.deepcopy(workload.model)
    nm.convert(sparse, LAYERS, 4, 4, decay=0.1)
    for model in (plain, sparse):
        train(model, None, workload.training, Plan(5, 1e-2, task=1.0))
    for (name, a), (_, b) in zip(plain.named_parameters(), sparse.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_pruned_copies_are_made_once_per_update(workload, monkeypatch):
    calls = []
    whole = nm.kept
    monkeypatch.setattr(nm, "kept", lambda *a: calls.append(1) or whole(*a))
    model = copy.deepcopy(workload.model)
    nm.convert(model, ["up"], 2, 4)
    with torch.inference_mode():
        model(*workload.inputs)
    for _ in range(3):
        model(*workload.inputs).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        model.up.weight.mul_(2.0)
    model(*workload.inputs)
    assert len(calls) == 4


@pytest.mark.parametrize("pattern", ["2:4", "2:8"])
def test_the_trained_network_is_sparse_along_inputs_and_is_what_was_trained(workload, pattern):
    technique = NMTraining(pattern=pattern, steps=4, lr=1e-2)
    sites = technique.sites(workload, capture(workload))
    assert set(sites.ok) == {f"{p}:weight" for p in LAYERS}
    assert "first layer" in sites.refused["stem:weight"]
    assert "grouped" in sites.refused["depth:weight"]
    change = technique.apply(workload, sites)
    n, m = (int(c) for c in pattern.split(":"))
    for path in LAYERS:
        w = change.workload.model.get_submodule(path).weight
        groups = (w != 0).movedim(1, -1).reshape(-1, m)
        assert (groups.sum(1) == n).all(), path
        assert not torch.equal(w, workload.model.get_submodule(path).weight * (w != 0)), path
    redone = technique.rewrite(workload, Sites(sites.ok), change.decisions)
    assert torch.equal(redone.workload.call(), change.workload.call())


def test_a_step_counts_what_its_weights_hold(workload):
    """Multiply-accumulates by what is not zero: two of three products shrink to n/m."""
    for n, m, want in ((2, 8, 0.5), (2, 4, 2 / 3), (4, 4, 1.0)):
        model = copy.deepcopy(workload.model)
        nm.convert(model, LAYERS, n, m)
        for path in LAYERS:
            ahead, back, _ = model.get_submodule(path).pruned()
            whole = ahead.numel()
            kept = int((ahead != 0).sum()) + int((back != 0).sum()) + whole
            assert kept / (3 * whole) == want == share_of_macs(n, m)


def test_refusals(workload):
    sites = NMTraining(pattern="2:32").sites(workload, capture(workload))
    assert "32 does not divide" in sites.refused["up:weight"]
    for wrong in ({"pattern": "16x4"}, {"direction": "up"}, {"decay": -1.0}, {"lr": 0.0}):
        with pytest.raises(InputError):
            NMTraining(**wrong)
