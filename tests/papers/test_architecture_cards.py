"""The architectures' cards: rules on canned measurements, exact parts for real, tasks by hand."""

import importlib
import math

import pytest
import torch
from torch import nn

from paredown import zoo
from paredown.figure import measured
from paredown.nn.detection import Detections, Target
from paredown.papers.cards import (
    _boxes,
    _clips,
    _pictures,
    _solids,
    architectures,
    generation,
    large_kernels,
    volumes,
)
from paredown.papers.cards._parts import Contrast, Exact, Timing, Work, better, learns
from paredown.papers.cards._subjects import timed_runs
from paredown.papers.cards.architectures import ArchitectureCard, judged, per_work, sizes_of
from paredown.papers.runner import CARDS


def found_cards():
    """Every card of the frame, by key."""
    made = {}
    for key, where in CARDS.items():
        module, _, name = where.partition(":")
        kind = getattr(importlib.import_module(f"paredown.papers.cards.{module}"), name)
        if issubclass(kind, ArchitectureCard):
            made[key] = kind
    return made


FOUND = found_cards()


def rows(names):
    """Timing rows: everything takes 0.9 of the baseline, give or take 0.02."""
    row = {"latency": measured(1e-3, "s"), "ratio": measured(0.9, "x", spread=(0.88, 0.92), n=9)}
    return {n: row for n in (*names, "a/a")}


@pytest.fixture
def canned(monkeypatch):
    """Times and scores are given; the rules are real, and the counts are those of the table."""

    def side_by_side(build, made, args, train, **settings):
        part = next(
            t for c in FOUND.values() for t in c.timings if t.made is made and t.args == args
        )
        return rows((part.ours, part.theirs))

    def scores(trained, names, seeds, scale, progress):
        metrics = {c.metric for card in FOUND.values() for c in card.learnt}
        return {
            n: {m: [0.8 + 0.01 * s + 0.001 * i for s in seeds] for m in metrics}
            for i, n in enumerate(names)
        }

    table = {r.name: r for r in zoo.rows()}
    monkeypatch.setattr(architectures, "rows_counted", lambda names: [table[n] for n in names])
    monkeypatch.setattr(architectures, "side_by_side", side_by_side)
    monkeypatch.setattr(architectures, "scores", scores)
    monkeypatch.setattr(architectures, "sizes_of", lambda model, inputs: (1000, 2000))
    monkeypatch.setattr(
        ArchitectureCard,
        "_exact",
        lambda self, figures, progress: [
            architectures.Check(e.name, e.threshold, e.op, e.threshold) for e in self.exact
        ],
    )


@pytest.mark.parametrize("key", FOUND)
def test_a_card_judges_by_the_thresholds_it_fixed(key, canned):
    one = FOUND[key]()
    found = one.experiment("quick", lambda text: None)
    assert [c.threshold for c in found.checks] == list(one.thresholds.values())
    assert len({c.name for c in found.checks}) == len(found.checks)
    assert found.measured
    assert one.learnt, "every architecture learns something"
    assert any(len(c.weights) == 1 for c in one.learnt), "and reaches a stated figure"


def test_all_architectures_have_a_card():
    assert len(FOUND) >= 22


class Toy(ArchitectureCard):
    key = "toy"
    claim = "a toy"
    exact = (Exact("off", lambda: 2e-5), Exact("kept", lambda: 3.0, 2.0, ">=", "measured"))


def test_exact_parts_have_no_power_and_thresholds_are_collected():
    assert Toy.thresholds == {"off": 1e-5, "kept": 2.0}
    found = Toy().experiment("quick", lambda text: None)
    assert [c.outcome for c in found.checks] == ["fails", "holds"]
    assert found.measured["kept"].how == "measured"
    assert found.measured["off"].how == "counted"


def test_a_check_named_twice_is_refused():
    with pytest.raises(AssertionError, match="names a check twice"):
        type("Twice", (ArchitectureCard,), {"exact": (Toy.exact[0], Toy.exact[0])})


def test_contrasts_pair_seeds_and_see_no_finer_than_their_floor():
    scores = {"a": {"m": [1.0, 2.0, 3.0]}, "b": {"m": [0.5, 1.5, 2.5]}}
    check = judged(better("a", "b", 0.1, "m"), scores, {"m": 0.2})
    assert (check.value, check.power) == (pytest.approx(0.5), 0.2)
    assert check.outcome == "holds"
    gain = Contrast("gain", {"a": 1, "b": -2}, 0.0, "m")
    assert judged(gain, scores, {}).value == pytest.approx(2 - 3)
    assert judged(learns("b", 0.0, "m"), scores, {}).power == pytest.approx(
        4.3027 * 1 / math.sqrt(3), rel=1e-4
    )


def pair():
    x = torch.zeros(1, 4)
    return [("small", nn.Linear(4, 2), (x,)), ("large", nn.Linear(4, 8), (x,))]


def test_time_per_mac_divides_by_the_works_ratio():
    part = Timing(pair, (), "large", "small", 1.0, per_mac=True)
    found = per_work(measured(2.0, "x", spread=(1.0, 4.0), n=5), part)
    assert found.value == pytest.approx(0.5)
    assert found.spread == pytest.approx((0.25, 1.0))
    assert part.name == "time per MAC, large over small"
    assert sizes_of(nn.Linear(4, 8), (torch.zeros(1, 4),)) == (40, 32)


def test_a_timed_step_trains_inside_inference_mode():
    with torch.inference_mode():
        for name, run in timed_runs(pair, (), True):
            run()
            assert name in ("small", "large")


def test_work_is_named_after_what_is_counted():
    assert Work("a", "b", 1.0).name == "MACs, a over b"
    assert Work("a", "b", 1.0, of="params").name == "params, a over b"


HEAVY = {"rev-mbconv-unet3d", "h-denseunet"}


@pytest.mark.parametrize(
    "key",
    [pytest.param(k, marks=[pytest.mark.slow] if k in HEAVY else []) for k in FOUND],
)
def test_exact_parts_hold(key):
    # That a 3-D network as deep holds more at once is not so here: the card says it.
    known = {"activations at once, hybrid over 3-D as deep"}
    for part in FOUND[key].exact:
        if part.name in known:
            continue
        value = part.value()
        good = value <= part.threshold if part.op == "<=" else value >= part.threshold
        assert good, f"{part.name}: {value}"


@pytest.mark.parametrize("key", FOUND)
def test_small_networks_differ_and_are_compared_at_no_more_work(key):
    trained = FOUND[key].trained
    names = {n for c in FOUND[key].learnt for n in c.weights}
    names |= {n for w in FOUND[key].work for n in (w.ours, w.theirs)}
    sizes = {n: sizes_of(trained.build(n), trained.example()) for n in names}
    assert all(params > 0 and macs > 0 for params, macs in sizes.values())
    for w in FOUND[key].work:
        at = 0 if w.of == "params" else 1
        assert sizes[w.ours][at] <= w.most * sizes[w.theirs][at], w.name


def test_clips_drift_as_their_label_says():
    x, y = _clips.clips("train", 40, torch.Generator().manual_seed(0), noise=0.0)
    ink = x[:, 0] + 1
    at = torch.arange(float(_clips.CANVAS))
    rows, columns = (
        (ink.sum(3) * at).sum(2) / ink.sum((2, 3)),
        (ink.sum(2) * at).sum(2) / ink.sum((2, 3)),
    )
    for i, label in enumerate(y.tolist()):
        down, right = _clips.DIRECTIONS[label % 4]
        assert float(rows[i, -1] - rows[i, 0]) == pytest.approx(7 * down, abs=0.01)
        assert float(columns[i, -1] - columns[i, 0]) == pytest.approx(7 * right, abs=0.01)
    assert len(set(y.tolist())) == _clips.CLASSES


def test_one_slice_of_a_tumour_is_one_of_a_tube():
    x, y = _solids.organs(3, torch.Generator().manual_seed(0))
    assert x.shape == (3, 1, *_solids.SHAPE)
    assert set(y.unique().tolist()) == {0, 1, 2}
    tube = ((x[:, 0] > 0.75) & (y == 1)).sum((2, 3)).float()
    tumour = (y == 2).sum((2, 3)).float()
    # Tubes are as wide in every slice, tumours are balls.
    assert (tube.amin(1) > 0.7 * tube.amax(1)).all()
    assert (tumour[:, -1] < 0.5 * tumour.amax(1)).all()
    assert _solids.hard_dice(y == 2, y == 2) == 1
    assert _solids.hard_dice(y == 2, y == 1) == 0


def test_pictures_lie_in_the_unit_interval_and_are_seeded():
    one, two = (_pictures.textures(4, 32, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.min() >= 0
    assert one.max() <= 1
    assert one.flatten(1).std(1).min() > 0.03
    plan = _pictures.Plan(1)
    wanted = -20 * math.log10(_pictures.SIGMA)
    assert _pictures.psnr(nn.Identity(), plan, _pictures.noisy) == pytest.approx(wanted, abs=0.5)


def test_boxes_hold_the_ink():
    x, targets = _boxes.canvases("train", 8, torch.Generator().manual_seed(0))
    for canvas, target in zip(x, targets, strict=True):
        ink = canvas[0] > 0.3
        for left, top, right, bottom in target.boxes.int().tolist():
            assert ink[top:bottom, left:right].any()
            ink[top:bottom, left:right] = False
        # The rest is noise of deviation 0.2 about -1.
        assert not ink.any()


def test_average_precision_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    truth = [Target(boxes, torch.tensor([0, 0]))]

    def found(order, scores):
        picked = torch.cat((boxes, torch.tensor([[50.0, 50, 60, 60]])))[order]
        zeros = torch.zeros(len(order), dtype=torch.long)
        return [Detections(picked, torch.tensor(scores), zeros)]

    both = found([0, 1], [0.9, 0.8])
    assert _boxes.average_precision(both, truth, 0) == pytest.approx(1)
    assert _boxes.average_precision(both, truth, 1) == 0
    # A false one between two true ones: precision 1 at half the recall, 2 / 3 at all of it.
    mixed = found([0, 2, 1], [0.9, 0.8, 0.7])
    assert _boxes.average_precision(mixed, truth, 0) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # The same object found twice counts once.
    twice = found([0, 0], [0.9, 0.8])
    assert _boxes.average_precision(twice, truth, 0) == pytest.approx(0.5)


def test_distance_of_gaussians_is_the_shift_of_their_means():
    torch.manual_seed(0)
    x = torch.randn(300, 1, 8, 8)
    assert generation.frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert generation.frechet(x, x + 0.5) == pytest.approx(64 * 0.25, rel=1e-4)


def test_class_means_are_told_right():
    images, labels = generation.digits(held_out=False)
    means = torch.stack([images[labels == c].mean(0) for c in range(10)])
    assert generation.told_right(means, torch.arange(10)) == 1
    assert generation.told_right(means.flip(0), torch.arange(10)) == 0


def test_shut_overview_and_static_kernels_are_what_they_say():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 32, 32)
    blind = large_kernels.small_overlock("no overview").eval()
    with torch.inference_mode():
        assert not blind.to_context(torch.randn(2, 32, 1, 1)).any()
        assert blind(x).shape == (2, 10)
    static = large_kernels.small_overlock("static kernels")
    assert not any(isinstance(m, large_kernels.ContMix) for m in static.modules())
    bare = large_kernels.small_lark("13x13, no branches")
    assert sum(p.numel() for p in bare.parameters()) < sum(
        p.numel() for p in large_kernels.small_lark("13x13").parameters()
    )


def test_the_largest_that_fits_is_the_last_below_the_cap():
    sizes = (16, 24, 32, 40)
    assert volumes.largest(sizes, lambda s: s**3, 32**3) == 32
    assert volumes.largest(sizes, lambda s: s**3, 0) == 16


@pytest.mark.parametrize("key", ["drct", "dico", "leyolo", "p3d-resnet", "rev-mbconv-unet3d"])
def test_a_short_training_gives_its_metrics(key, monkeypatch):
    for module in (_pictures, _boxes, _clips, _solids):
        monkeypatch.setattr(module, "JUDGED", 8)
    monkeypatch.setattr(generation, "SAMPLES", 40)
    monkeypatch.setattr(generation, "SAMPLER_STEPS", 2)
    card = FOUND[key]
    plan = type(card.trained.plans["quick"])(2, batch=2)
    name = next(iter(card.learnt[0].weights))
    found = card.trained.score(card.trained.build, name, 0, plan)
    asked = {c.metric for c in card.learnt if name in c.weights}
    assert asked <= set(found)
    assert all(math.isfinite(v) for v in found.values())
    assert found == card.trained.score(card.trained.build, name, 0, plan), "seeded"
