"""Exact parts of the layers' cards: equal work, equal functions, budgets kept, slopes and ranks."""

import pytest
import torch
from nn_nets import with_statistics
from torch import nn

from paredown import zoo
from paredown.figure import measured
from paredown.nn.progressive_norm import ProgressiveNorm
from paredown.nn.reparam import reparameterise
from paredown.nn.standardised import BatchChannelNorm2d, StandardisedConv2d
from paredown.papers.cards import (
    _scans,
    finetuning,
    groups,
    micro_batches,
    shapes,
    spatial,
    transformers,
)
from paredown.papers.cards.networks import graph_of


def test_scans_lie_on_their_canvas():
    ink = torch.ones(40, 1, 12, 12)
    still = _scans.Plan(1, noise=0.0)
    generator = torch.Generator().manual_seed(0)
    centred = _scans.placed(ink, still, generator)
    assert torch.equal(centred[:, :, 2:14, 2:14], ink)
    assert centred.sum() == 40 * (2 * 144 - 256)
    moved = _scans.placed(ink, _scans.Plan(1, noise=0.0, moved=True), generator)
    assert (moved.sum((1, 2, 3)) == 2 * 144 - 256).all(), "no scan is cut"
    assert len({tuple(m[0].amax(0).tolist()) for m in moved}) > 1
    images, labels = zip(*_scans.Scans(_scans.Plan(1, batch=100))(), strict=True)
    assert len(images) == 7
    assert all(len(y) == 100 for y in labels)


def test_modes_are_one_function_and_tune_keeps_less():
    torch.manual_seed(0)
    model = with_statistics(finetuning.small_network(5))
    x = torch.randn(24, 1, 32, 32)
    wide = finetuning.widened(model, 3)
    torch.testing.assert_close(wide.eval()(x), model(x), atol=1e-4, rtol=1e-4)
    gains = [
        (m.weight / (m.running_var + m.eps).sqrt()).abs().log10()
        for m in wide.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert torch.cat(gains).std() > 0.3, "the spread is wide"
    kept = {}
    for mode in finetuning.MODES:
        ready = finetuning.in_mode(wide, mode, x[:1])
        torch.testing.assert_close(ready(x), model(x), atol=1e-4, rtol=1e-4)
        kept[mode] = finetuning.saved_bytes(lambda m=ready: m(x), ready)
    assert kept["deploy"] <= kept["tune"] < 0.75 * kept["eval"]


def test_bytes_kept_are_counted_once():
    x = torch.randn(256, requires_grad=True)
    assert finetuning.saved_bytes(lambda: x * x) == 1024
    assert finetuning.saved_bytes(lambda: x + 1) == 0
    layer = nn.Linear(8, 8)
    assert finetuning.saved_bytes(lambda: layer(torch.randn(4, 8)), layer) == 128


def test_micro_batch_networks_differ_in_their_norms_alone():
    kinds = {name.partition(",")[0] for name in micro_batches.plans(1)}
    assert kinds == {"BN", "GN+WS", "BCN+WS"}
    made = {k: micro_batches.small(k) for k in kinds}
    count = {
        k: [
            sum(isinstance(m, c) for m in model.modules())
            for c in (StandardisedConv2d, nn.BatchNorm2d, nn.GroupNorm, BatchChannelNorm2d)
        ]
        for k, model in made.items()
    }
    # The estimated norm inside a batch-channel norm is a batch norm by class.
    assert count == {"BN": [0, 4, 0, 0], "GN+WS": [4, 0, 4, 0], "BCN+WS": [4, 4, 0, 4]}
    plans = micro_batches.plans(3)
    assert {p.epochs for p in plans.values()} == {3}
    assert {p.batch for p in plans.values()} == {1, 2, 24}


def test_variant_kernels_have_the_work_of_depthwise_ones():
    torch.manual_seed(0)
    fixed = reparameterise(spatial.thin("TVConv"))
    plain = spatial.thin("depthwise").eval()
    side = spatial.CANVAS
    assert spatial.conv_macs(fixed) == graph_of(plain, 1, 1, side, side).macs
    assert spatial.weight_bytes(fixed) > spatial.weight_bytes(plain)


def test_pooled_networks_have_the_published_parameters_and_no_spatial_weights():
    for kind, name in spatial.NETWORKS.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in zoo.create(name).parameters())
        assert count == pytest.approx(spatial.PUBLISHED[kind], rel=0.01)

    def spatial_convs(kind):
        convs = [m for m in spatial.bottlenecks(kind).modules() if isinstance(m, nn.Conv2d)]
        return sum(m.kernel_size == (3, 3) for m in convs)

    # The stem has one.
    assert {k: spatial_convs(k) for k in spatial.BLOCKS} == {
        "conv": 5,
        "depthwise": 5,
        "max": 1,
        "hybrid": 2,
    }


def test_small_transformers_have_the_norms_that_are_named():
    x = torch.randn(2, 1, 16, 16)
    for name, kind in (
        ("LN", nn.LayerNorm),
        ("BN", transformers.BatchNormTokens),
        ("PRepBN 100", ProgressiveNorm),
    ):
        model = transformers.small_vit(name)
        assert sum(type(m) is kind for m in model.modules()) == 9
        assert model(x).shape == (2, 10)
    assert transformers.small_vit("PRepBN 100").norm.steps == 100
    # Plain batch norm has no skip, and does not learn one.
    norm = transformers.BatchNormTokens(4)
    tokens = torch.randn(3, 5, 4) * 7 + 2
    assert norm(tokens).mean().abs() < 1e-5
    assert not norm.eta.requires_grad


def test_slope_of_times_that_grow_by_a_power():
    def rows(power):
        return {
            f"SLA {s}": {"latency": measured((s * s) ** power * 1e-6, "s")}
            for s in transformers.SIDES
        }

    for power in (1.0, 2.0):
        assert transformers.slope(rows(power), "SLA").known() == pytest.approx(power)


def test_ranks_follow_the_model_or_not():
    up = {f"G = {g}": {"latency": measured(g * 1e-3, "s")} for g in groups.SIZES}
    down = {f"G = {g}": {"latency": measured(1e-3 / g, "s")} for g in groups.SIZES}
    assert groups.ranks(up).known() == pytest.approx(1)
    assert groups.ranks(down).known() == pytest.approx(-1)


def test_constant_size_is_nearly_the_same_work():
    with torch.device("meta"):
        made = groups.forms()
        macs = {n: graph_of(m, 1, 3, 64, 64).macs for n, m in made.items()}
        reuse = {n: groups.costs(m, 64) for n, m in made.items()}
    assert macs["constant G"] == pytest.approx(macs["constant g"], rel=0.02)
    assert {c.group_size for c in reuse["constant g"]} == {4, 8, 16, 32}
    assert {c.group_size for c in reuse["constant G"]} == {8}


@pytest.mark.parametrize("family", ["conventional", "hourglass"])
@pytest.mark.parametrize("budget", shapes.BUDGETS)
def test_shapes_spend_their_budget(family, budget):
    found = shapes.shapes(family, budget)
    assert len(found) >= 2
    for s in found:
        one = 2 * s.width * s.depth
        assert budget - one < s.params <= budget
        assert (s.hidden > s.width) == (family == "conventional")


def test_psnr_of_a_network_that_returns_its_input():
    model = shapes.HourglassMlp(64, 64, 64, 128, 1, lift="identity")
    nn.init.eye_(model.head.weight)
    # Noise of deviation 0.6 on scans that span 2.
    wanted = 10 * torch.log10(torch.tensor(4 / shapes.NOISE**2))
    assert shapes.psnr(model, "denoise", "held-out") == pytest.approx(float(wanted), abs=0.1)
    assert shapes.psnr(model, "super-resolve", "held-out") > 10


class Measured(dict):
    """Timing rows for any name: 0.9 of the baseline, each slower than the one asked for before."""

    asked = 0

    def __missing__(self, name):
        self.asked += 1
        t = 1e-3 * self.asked
        return {
            "latency": measured(t, "s", spread=(0.9 * t, 1.1 * t), n=9),
            "ratio": measured(0.9, "x", spread=(0.88, 0.92), n=9),
        }


class Inline:
    """A pool that runs at once, in this process."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, job, *args):
        value = job(*args)
        return type("Done", (), {"result": lambda self: value})()


def canned(build, plans, seeds, progress):
    """Accuracies that rise with the seed and differ by name."""
    return {n: [0.8 + 0.01 * s + 0.001 * i for s in seeds] for i, n in enumerate(plans)}


@pytest.fixture
def no_measuring(monkeypatch):
    """Everything that trains or times gives canned values; what is counted is real."""
    for module in (finetuning, spatial, transformers, groups):
        monkeypatch.setattr(module, "side_by_side", lambda *a, **k: Measured())
    monkeypatch.setattr(_scans, "accuracies", canned)
    modes = {"eval": 0.9, "tune": 0.9, "deploy": 0.5, "rate": 0.01, "loss difference": 0.0}
    monkeypatch.setattr(
        finetuning._task, "over_seeds", lambda job, seeds, *a, **k: [dict(modes) for _ in seeds]
    )
    kept = {"eval": 100, "tune": 60, "deploy": 50}
    monkeypatch.setattr(finetuning, "kept_bytes", lambda width, size: kept)
    monkeypatch.setattr(finetuning, "steps", lambda batch, size: [])
    monkeypatch.setattr(shapes, "pool", lambda workers: Inline())
    monkeypatch.setattr(
        shapes, "trained", lambda s, task, seed, steps: (s.depth, 20 + s.width / 100 + seed)
    )
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2))
    monkeypatch.setattr(
        groups, "forms", lambda: {"constant g": plain, "constant G": groups.regroup(plain, 4)}
    )


@pytest.mark.parametrize(
    "card",
    [
        finetuning.TuneModeCard,
        micro_batches.WsBcnCard,
        spatial.TVConvCard,
        spatial.PfLayerCard,
        transformers.SlabCard,
        groups.E2gcCard,
        shapes.HourglassCard,
    ],
)
def test_a_card_judges_by_the_thresholds_it_fixed(card, no_measuring):
    one = card()
    found = one.experiment("quick", lambda text: None)
    used = {c.threshold for c in found.checks}
    # Energy is a check only where a counter can be read.
    wanted = {v for k, v in one.thresholds.items() if k != "energy_per_mac_ratio"}
    assert wanted <= used <= set(one.thresholds.values())
    assert len({c.name for c in found.checks}) == len(found.checks)
    assert found.measured
    assert found.untestable is None


def test_the_hourglass_front_is_picked_on_validation(no_measuring):
    found = shapes.HourglassCard().experiment("quick", lambda text: None)
    rows = found.tables["best shapes"]
    for row in rows:
        if row["family"] == "hourglass":
            options = shapes.shapes("hourglass", row["budget"], "quick")
            assert row["depth"] == max(s.depth for s in options)
        assert row["params"] <= row["budget"] or row["family"] == "trained lift"
    gaps = {c.name: c for c in found.checks}
    assert any("frozen lift" in name for name in gaps)
