"""Low rank: full rank equals the original, error falls with rank, whitening helps, backends reach
in.
"""

import pytest
import torch
from torch import nn

from paredown.editing import replay
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.technique import Sites
from paredown.techniques.factorize.low_rank import LowRank, break_even, factors
from paredown.workload import Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 32, 3, stride=2, padding=1)
        self.point = nn.Conv2d(32, 48, 1, bias=False)
        self.depth = nn.Conv2d(48, 48, 3, groups=48)
        self.fc = nn.Linear(48, 40)
        self.tiny = nn.Linear(40, 2)

    def forward(self, x):
        x = self.depth(self.point(self.conv(x).relu()).relu())
        return self.tiny(self.fc(x.mean((2, 3))).relu())


@pytest.fixture
def workload():
    torch.manual_seed(0)
    return Workload(Net().eval(), (torch.randn(3, 8, 9, 9),))


def test_full_rank_is_the_original(workload):
    full = LowRank(rank=10_000)
    sites = Sites(("conv:weight", "point:weight", "fc:weight", "tiny:weight"))
    change = full.rewrite(workload, sites, full.decide(workload, sites))
    torch.testing.assert_close(change.workload.call(), workload.call(), atol=1e-5, rtol=1e-5)
    assert change.renames["fc"] == ("fc.first", "fc.second")
    assert change.workload.now("conv") == ("conv.first", "conv.second")


def test_sites_and_reasons(workload):
    sites = LowRank().sites(workload, capture(workload))
    assert set(sites.ok) == {"conv:weight", "point:weight", "fc:weight"}
    assert "grouped" in sites.refused["depth:weight"]
    assert "already thin" in sites.refused["tiny:weight"]
    with pytest.raises(NotApplicable):
        LowRank().apply(workload, Sites((), sites.refused))


def test_macs_fall_by_the_promised_share(workload):
    technique = LowRank(share=0.5, round_to=1)
    graph = capture(workload)
    sites = technique.sites(workload, graph)
    change = technique.apply(workload, sites)
    for path, rank in change.decisions.values["ranks"].items():
        w = workload.model.get_submodule(path).weight.flatten(1)
        new = change.workload.model.get_submodule(path)
        params = new.first.weight.numel() + new.second.weight.numel()
        assert rank == int(0.5 * break_even(*w.shape))
        assert params <= 0.5 * w.numel()
    preview = technique.preview(graph, sites).graph
    after = capture(change.workload)
    assert [n.op for n in preview.nodes] == [n.op for n in after.nodes]
    assert preview.params == after.params < graph.params


def test_error_is_what_was_cut():
    torch.manual_seed(1)
    w = torch.randn(20, 30)
    u, s, v = factors(w, None)
    for rank in (3, 11):
        gone = (w - (u[:, :rank] * s[:rank]) @ v[:rank]).square().sum()
        torch.testing.assert_close(gone, s[rank:].square().sum(), rtol=1e-4, atol=1e-4)


def test_energy_picks_the_rank(workload):
    with torch.no_grad():
        low = torch.randn(40, 3) @ torch.randn(3, 48)
        workload.model.fc.weight.copy_(low)
    technique = LowRank(energy=0.999, round_to=1)
    change = technique.apply(workload, Sites(("fc:weight", "point:weight")))
    assert change.decisions.values["ranks"] == {"fc": 3}
    torch.testing.assert_close(change.workload.call(), workload.call(), atol=1e-4, rtol=1e-4)


def test_awareness_lowers_the_error_of_outputs():
    torch.manual_seed(0)
    scale = torch.logspace(1, -2, 32)
    data = [torch.randn(64, 32) * scale for _ in range(4)]
    for layer, items in (
        (nn.Linear(32, 32), data),
        (nn.Conv2d(32, 32, 3, padding=1), [d[:, :, None, None].repeat(1, 1, 3, 3) for d in data]),
    ):
        w = Workload(nn.Sequential(layer).eval(), (items[0],), calibration=items)
        errors = {}
        for aware in (False, True):
            out = LowRank(rank=6, aware=aware).apply(w, Sites(("0:weight",))).workload.call()
            errors[aware] = float((out - w.call()).square().mean())
        assert errors[True] < 0.5 * errors[False]


def test_replay_rebuilds_the_structure(workload):
    technique = LowRank()
    change = technique.apply(workload, technique.sites(workload, capture(workload)))
    fresh = replay(Net().eval(), change.edits)
    fresh.load_state_dict(change.workload.model.state_dict())
    assert torch.equal(fresh(*workload.inputs), change.workload.call())


def test_code_that_needs_the_layer_itself_is_refused():
    class Peek(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.head(self.fc(x.to(self.head.weight.dtype)).view(-1, len(self.fc.weight)))

    w = Workload(Peek().eval(), (torch.randn(2, 32),))
    sites = LowRank().sites(w, capture(w))
    assert sites.ok == ("head:weight",)
    assert "needs the layer itself" in sites.refused["fc:weight"]


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"energy": 1.5}, {"rank": -1}])
def test_bad_knobs_are_refused(bad):
    with pytest.raises(InputError):
        LowRank(**bad)


def test_a_covariance_off_definite_by_float32_rounding_is_damped():
    """A dominant direction leaves errors in a float32 sum larger than small eigenvalues."""
    g = torch.Generator().manual_seed(0)
    x = 1e-3 * torch.randn(50, 96, generator=g) + 30.0
    covariance = (x.T @ x / len(x)) - 2e-3 * torch.eye(96)
    assert torch.linalg.eigvalsh(covariance.double())[0] < 0
    w = torch.randn(24, 96, generator=g)
    left, values, right = factors(w, covariance)
    assert torch.allclose(left * values @ right, w, atol=1e-3)
    with pytest.raises(NotApplicable, match="finite"):
        factors(w, covariance * float("nan"))
