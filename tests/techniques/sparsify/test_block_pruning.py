"""Block pruning: curves in closed form, the least damage by brute force, budgets, masked equals
sparse.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from paredown import kernels, runtime
from paredown.changes import load_changes, save_changes
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.technique import Sites
from paredown.techniques.sparsify import block_damage as damage
from paredown.techniques.sparsify.block_pruning import BlockPruning
from paredown.techniques.sparsify.pruners import Blocks
from paredown.workload import Workload


class Net(nn.Module):
    """Linears over many rows, one over few, a 1 x 1 convolution, a head."""

    def __init__(self):
        super().__init__()
        self.point, self.wide = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.up, self.down = nn.Linear(32, 96), nn.Linear(96, 40)
        self.late = nn.Linear(40, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.wide(self.point(x)).flatten(2).mT
        x = self.down(self.up(x).relu()).mean(1)
        return self.head(self.late(x).relu()) * 1


@pytest.fixture
def workload():
    torch.manual_seed(0)
    data = [torch.randn(4, 32, 4, 4) for _ in range(3)]
    return Workload(Net().eval(), (data[0],), calibration=data)


def pruned(workload, **settings):
    technique = BlockPruning(**settings)
    return technique.apply(workload, technique.sites(workload, capture(workload)))


def line(slopes, macs, power):
    """A layer of equal blocks whose damages add up."""
    n = len(slopes)
    return damage.Layer(
        np.concatenate([[0.0], np.cumsum(sorted(slopes))]), np.arange(n + 1) / n, macs, power
    )


@pytest.mark.parametrize("columns", [8, 11])
def test_curves_are_the_formulas_at_every_count(columns):
    torch.manual_seed(1)
    w, g, blocks = torch.randn(6, columns), torch.randn(3, 6, columns), Blocks(2, 4)
    products = damage.Products.joined([damage.Products.of(w, one, blocks) for one in g])
    order = torch.randperm(len(products.absolute))
    x = torch.randn(50, columns)
    h = x.T @ x
    out = damage.output_curve(w, products, blocks, order)
    own = damage.layer_curve(w, h, blocks, order)
    gone = damage.shares(w, blocks, order)
    for k in range(len(order) + 1):
        mask = torch.ones(len(order), dtype=torch.bool)
        mask[order[:k]] = False
        dw = -w * ~blocks.spread(mask.view(3, -1), *w.shape)
        want = 0.0
        for grad in g.flatten(1):
            hessian = torch.outer(grad, grad) + damage.RIDGE * torch.eye(len(grad))
            flat = dw.flatten()
            want += float((flat * grad).square().mean() + flat @ hessian @ flat / 2) / len(g)
        assert out[k] == pytest.approx(want, rel=1e-4, abs=1e-8)
        lost, whole = (x @ dw.T).square().sum(), (x @ w.T).square().sum()
        assert own[k] == pytest.approx(float(lost / whole), rel=1e-4, abs=1e-8)
        assert gone[k] == pytest.approx(float((dw != 0).float().mean()), abs=1e-6)


def test_one_item_is_its_mean_and_opposite_gradients_cancel_only_there(workload):
    workload.calibration = workload.calibration[:1]
    a, b = (pruned(workload, block="8x8", gradient=kind) for kind in ("each", "mean"))
    assert a.decisions.values == b.decisions.values
    w, g, blocks = torch.randn(4, 4), torch.randn(4, 4), Blocks(2, 2)
    both = [damage.Products.of(w, s * g, blocks) for s in (1, -1)]
    order = torch.arange(4)
    alone = damage.output_curve(w, both[0], blocks, order)
    np.testing.assert_allclose(
        damage.output_curve(w, damage.Products.joined(both), blocks, order), alone
    )
    none = damage.output_curve(w, damage.Products.of(w, 0 * g, blocks), blocks, order)
    assert none.max() < 1e-5 < alone.max()


def test_smoothing_keeps_lines_and_never_falls():
    straight = np.linspace(0.0, 3.0, 101)
    np.testing.assert_allclose(damage.smoothed(straight), straight, atol=1e-12)
    rough = straight + np.random.default_rng(0).normal(0, 0.5, 101)
    assert (np.diff(damage.smoothed(rough)) >= 0).all()
    assert damage.smoothed(rough)[0] == 0


def test_counts_are_those_of_brute_force():
    """All choices of blocks of three layers; where damages add up the slope rule is exact."""
    layers = [
        line([0.1, 0.2, 0.9, 2.0], macs=4.0, power=4.0),
        line([0.3, 0.5, 0.7], macs=6.0, power=9.0),
        line([0.01, 3.0, 4.0, 5.0, 6.0], macs=5.0, power=6.0),
    ]
    total = sum(x.macs for x in layers)
    choices = list(itertools.product(*(range(x.blocks) for x in layers)))

    def of(counts, what):
        return sum(what(x, n) for x, n in zip(layers, counts, strict=True))

    for weight in (0.0, 0.05, 0.2):
        met = set()

        def lost(counts):
            return of(counts, lambda x, n: x.macs * x.gone[n])

        def cost(counts, w=weight):
            return of(counts, lambda x, n: x.damage[n] + w * x.power * (1 - x.gone[n]))

        for share in np.linspace(0.02, 0.7, 60):
            got = tuple(damage.counts(layers, share, weight))
            gone = lost(got)
            assert share * total <= gone + 1e-9 < share * total + 2.0 + 1e-9, "more than a block"
            # Among all choices that lose as much, none costs less.
            best = min(cost(c) for c in choices if abs(lost(c) - gone) < 1e-9)
            assert cost(got) == pytest.approx(best)
            met.add(got)
        assert len(met) > 8


def test_balance_is_the_ratio_of_mean_largest_slopes():
    layers = [line([1.0, 2.0], 1.0, 5.0), line([1.0, 1.0, 4.0, 2.0], 1.0, 3.0)]
    # Largest slopes per share of a layer: 2 / (1/2) and 4 / (1/4); power falls by 5 and by 3.
    assert damage.balance(layers) == pytest.approx(((4 + 16) / 2) / ((5 + 3) / 2))


@pytest.mark.parametrize("kind", ["output", "layer"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_budget_is_met_within_a_block(workload, kind, share):
    change = pruned(workload, share=share, block="8x8", damage=kind)
    graph = capture(workload)
    layers = ("point", "up", "down", "late")
    work = {p: sum(n.macs or 0 for n in graph.nodes if n.module == p) for p in layers}
    zeros = {}
    for path in work:
        w = change.workload.model.get_submodule(path).weight.detach().flatten(1)
        stays = Blocks(8, 8).means((w != 0).float())
        assert ((stays == 0) | (stays == 1)).all(), path
        zeros[path] = float((w == 0).float().mean())
    cut = sum(work[p] * z for p, z in zeros.items()) / sum(work.values())
    # A block of `up` and `down` is one of 48 or 60: at most 1 / 48 of a layer more than asked.
    assert share - 1e-6 <= cut < share + 1 / 48
    assert change.decisions.values["macs"] == pytest.approx(1 - cut, abs=1e-5)
    assert change.decisions.values["zeros"] == pytest.approx(zeros, abs=1e-5)


def test_power_matters_where_rows_differ_and_only_there(workload):
    """``late`` runs on one row: its weights cost far more power per MAC than the others'."""

    def zeros(sites=("*",), **settings):
        technique = BlockPruning(share=0.4, block="8x8", **settings)
        found = technique.sites(workload, capture(workload)).only(sites)
        return technique.apply(workload, found).decisions.values["zeros"]

    assert zeros(power=10.0)["late"] > zeros(power=0.0)["late"]
    assert zeros(power=10.0, fetch=0.0) == zeros(power=0.0)
    alike = ("up", "down")
    assert zeros(alike, power=10.0) == zeros(alike, power=0.0)


def test_weights_that_stay_are_untouched_and_decisions_replay(workload, tmp_path):
    change = pruned(workload, block="8x8")
    for path in ("point", "up", "down", "late"):
        before = workload.model.get_submodule(path).weight
        after = change.workload.model.get_submodule(path).weight
        assert torch.equal(after[after != 0], before[after != 0])
    save_changes(tmp_path, [change])
    (record,) = load_changes(tmp_path)
    redone = BlockPruning(block="8x8").rewrite(workload, Sites(()), record.decisions)
    assert torch.equal(redone.workload.call(), change.workload.call())


def test_sites_and_refusals(workload):
    sites = BlockPruning(block="8x8").sites(workload, capture(workload))
    assert set(sites.ok) == {"point:weight", "up:weight", "down:weight", "late:weight"}
    assert "model's output" in sites.refused["head:weight"]
    assert "1 x 1" in sites.refused["wide:weight"]
    few = BlockPruning(block="32x32").sites(workload, capture(workload))
    assert "32 x 32 is 1 blocks" in few.refused["point:weight"]
    for wrong in ({"share": 0.0}, {"block": "2:4"}, {"block": "x"}, {"damage": "a"}, {"fetch": -1}):
        with pytest.raises(InputError):
            BlockPruning(**wrong)
    workload.calibration = [torch.full((4, 32, 4, 4), float("nan"))]
    with pytest.raises(NotApplicable, match="no finite numbers"):
        pruned(workload, block="8x8")


@pytest.mark.skipif(kernels.native() is None, reason="no native kernels")
def test_the_native_engine_skips_the_blocks(monkeypatch):
    """In bfloat16 whole tiles of zeros are not multiplied: sparse kernels, masked dense results."""
    if "amx" not in kernels.native().levels():
        pytest.skip("no amx here")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.Linear(256, 10))
    x = torch.randn(64, 256)
    change = pruned(Workload(net.eval(), (x,)), share=0.8)
    model = change.workload.model.to(torch.bfloat16)
    half = Workload(model, (x.to(torch.bfloat16),))
    run = runtime.backend("native").lower(half, threads=1)
    ops = {r.site: r.op for r in run.executed() if r.op != "weight"}
    assert ops["0"] == ops["2"] == "sparse_tiles_amx"
    assert ops["3"] == "gemm_amx"
    want, got = half.call().float(), run(*half.inputs).float()
    assert (want - got).norm() / want.norm() < 0.01
