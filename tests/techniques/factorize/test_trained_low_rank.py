"""Trained low rank: the exact cases of the paper, the lasso's step, ranks that only fall."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.editing import replay
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.papers.cards import ranks
from paredown.techniques.factorize.common import factors, limit
from paredown.techniques.factorize.ordered import Ordered, shrinkage
from paredown.techniques.factorize.ranks import greedy, narrowed
from paredown.techniques.factorize.trained_low_rank import TrainedLowRank
from paredown.workload import TrainingData, Workload


def test_a_linear_map_of_white_data_gives_its_singular_vectors_in_order():
    assert ranks.off_svd() < 1e-2


def test_a_linear_autoencoder_gives_the_principal_components_in_order():
    assert ranks.off_pca() < 1e-2


def test_a_map_of_rank_two_ends_at_rank_two_and_no_rank_rises_on_the_way():
    assert ranks.rises() == (0, 2)


def test_the_lassos_step_minimises_its_penalty():
    g = torch.Generator().manual_seed(4)
    rows = torch.randn(5, 3, generator=g) * torch.tensor([2.0, 1.0, 0.5, 0.2, 0.05])[:, None]
    threshold = 0.15
    found = rows * shrinkage(rows, threshold)[:, None]

    def objective(z):
        lasso = sum(z[b:].norm() for b in range(len(z)))
        return 0.5 * (z - rows).square().sum() + threshold * lasso

    best = float(objective(found))
    assert (found[-1] == 0).all()
    for _ in range(300):
        other = found + 0.05 * torch.randn(5, 3, generator=g) * torch.rand((), generator=g)
        other[3:] *= torch.rand((), generator=g) < 0.5
        assert float(objective(other)) >= best - 1e-6
    factor = shrinkage(rows, threshold)
    assert (factor.diff() <= 0).all()


def test_ranks_only_fall_and_dead_components_take_no_part():
    torch.manual_seed(0)
    low = torch.randn(12, 2) @ torch.randn(2, 12)
    left, values, right = factors(low + 0.01 * torch.randn(12, 12), None)
    layer = Ordered(values.sqrt()[:, None] * right, left * values.sqrt(), 12)
    seen = []
    for _ in range(40):
        layer.shrink(0.006)
        seen.append(int(layer.rank))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 2
    dead = layer(low)
    with torch.no_grad():
        layer.first[2:] = float("nan")
    assert torch.equal(layer(low), dead)
    layer.shrink(1e9)
    assert int(layer.rank) == 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(self.fc(self.norm(self.conv(x)).relu().mean((2, 3))).relu())


@pytest.fixture
def workload():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 3, 8, 8, generator=g),) for _ in range(3)]
    labels = torch.randint(3, (16,), generator=g)
    data = TrainingData(lambda: [(x, labels) for x in batches], F.cross_entropy)
    return Workload(Net().eval(), (torch.randn(2, 3, 8, 8),), training=data)


def test_whole_without_training_is_the_original(workload):
    way = TrainedLowRank(share=1.0, steps=0)
    sites = way.sites(workload, capture(workload))
    assert set(sites.ok) == {"conv:weight", "fc:weight"}
    assert "thin" in sites.refused["head:weight"]
    for aware in (False, True):
        at = sites.only(["fc"])
        change = TrainedLowRank(steps=0, aware=aware, pick="greedy", share=1.0).apply(workload, at)
        assert "fc.weight" in change.decisions.tensors  # full rank saves nothing: one matrix again
        torch.testing.assert_close(
            change.workload.model.fc.weight, workload.model.fc.weight, atol=1e-5, rtol=1e-4
        )


def test_it_trains_cuts_and_replays(workload):
    way = TrainedLowRank(share=0.4, steps=12)
    sites = way.sites(workload, capture(workload))
    before = {k: t.clone() for k, t in workload.model.state_dict().items()}
    change = way.apply(workload, sites)
    kept = change.decisions.values["ranks"]
    assert kept == {"conv": limit(0.4, 16, 27), "fc": limit(0.4, 24, 16)}
    pair = change.workload.model.fc
    assert pair.first.weight.numel() + pair.second.weight.numel() <= 0.4 * 16 * 24
    assert "state.head.weight" in change.decisions.tensors
    assert all(torch.equal(t, before[k]) for k, t in workload.model.state_dict().items())
    fresh = replay(Net().eval(), change.edits)
    fresh.load_state_dict(change.workload.model.state_dict())
    assert torch.equal(fresh(*workload.inputs), change.workload.call())
    thin = narrowed(change.workload.model, 0.2)
    assert thin.fc.rank == limit(0.2, 24, 16)
    assert torch.equal(thin.fc.first.weight, pair.first.weight[: thin.fc.rank])
    assert thin(*workload.inputs).shape == (2, 3)
    with pytest.raises(NotApplicable):
        narrowed(Net(), 0.5)


def test_greedy_keeps_the_layer_that_matters():
    """One layer of rank 2 may shrink at no loss; the other, orthogonal, may not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(16, 2) @ torch.randn(2, 16))
        nn.init.orthogonal_(net[1].weight)
    layers = {}
    for path in ("0", "1"):
        left, values, right = factors(net.get_submodule(path).weight.detach(), None)
        whole = Ordered(values.sqrt()[:, None] * right, left * values.sqrt(), 16)
        layers[path] = whole.put_on(net.get_submodule(path))
    x = torch.randn(64, 16)
    found = greedy(net, layers, TrainingData(lambda: [((x,), None)] * 2), net, 0.75)
    assert found["0"] <= 4
    assert found["1"] == 16


def test_refusals(workload):
    for bad in ({"share": 0.0}, {"pick": "all"}, {"penalty": -1.0}, {"steps": -1}):
        with pytest.raises(InputError):
            TrainedLowRank(**bad)
    workload.training = None
    sites = TrainedLowRank().sites(workload, capture(workload))
    assert not sites.ok
    assert "training data" in sites.refused["fc:weight"]
