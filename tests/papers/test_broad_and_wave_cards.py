"""Exact parts of two cards: equal layouts, the wave solver's dispersion, and how they judge."""

import math

import pytest
import torch
from torch import nn

from paredown.errors import InputError
from paredown.figure import measured
from paredown.nn.broad import BroadConv, ResidualConv
from paredown.nn.factored_conv import FactoredConv2d
from paredown.papers.cards import _waves, broad, waves


def test_both_layouts_have_the_same_parameters_and_weights():
    shape = broad.Shape(4, 8, 3)
    deep, wide = broad.network(shape, "sequential"), broad.network(shape, "parallel")
    assert isinstance(wide[1], BroadConv)
    assert sum(p.numel() for p in deep.parameters()) == sum(p.numel() for p in wide.parameters())
    torch.manual_seed(0)
    layers = [ResidualConv(5) for _ in range(3)]
    x = torch.randn(2, 5, 6, 6)
    with torch.no_grad():
        want = x + sum(layer.branch(x) for layer in layers)
        torch.testing.assert_close(broad.stacked(layers, "parallel")(x), want)
        torch.testing.assert_close(
            broad.stacked(layers, "sequential")(x), layers[2](layers[1](layers[0](x)))
        )
    assert len(broad.shapes("full")) == 24


def test_the_median_is_over_configurations_and_its_interval_holds_it():
    shapes = [broad.Shape(d, 8, 3) for d in (2, 4, 8)]
    found = {}
    for shape, off in zip(shapes, (0.0, 0.1, 0.5), strict=True):
        for seed in (0, 1):
            found[shape, "sequential", seed] = {"loss": 1.0}
            found[shape, "parallel", seed] = {"loss": 1.0 - off}
    figure = broad.median_difference(found, (0, 1))
    assert figure.known() == pytest.approx(0.1)
    low, high = figure.spread
    assert low == pytest.approx(0.0)
    assert high == pytest.approx(0.5)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3)])
def test_a_standing_wave_turns_at_the_discrete_frequency(m, n):
    """sin sin is an eigenvector of the scheme: sin^2(w/2) = c^2 (sin^2(kx/2) + sin^2(ky/2))."""
    side = 11
    axis = torch.arange(1, side + 1, dtype=torch.float64)
    kx, ky = (math.pi * k / (side + 1) for k in (m, n))
    start = torch.outer((kx * axis).sin(), (ky * axis).sin())[None]
    speed = torch.tensor([0.5], dtype=torch.float64)
    run = _waves.simulate(start, speed, 40)
    w = 2 * math.asin(0.5 * math.sqrt(math.sin(kx / 2) ** 2 + math.sin(ky / 2) ** 2))
    for step in (0, 1, 7, 40):
        torch.testing.assert_close(run[step], start * math.cos(w * step))


def test_fields_are_made_again_from_their_seed_and_move():
    x, y = _waves.fields(6, 16, 3)
    again, _ = _waves.fields(6, 16, 3)
    assert torch.equal(x, again)
    assert x.shape == (6, 3, 16, 16)
    assert y.shape == (6, 1, 16, 16)
    assert _waves.relative_error(x[:, 1:2], y) > 0.3, "standing still is no answer"
    torch.testing.assert_close(x[:, 1].flatten(1).norm(dim=1), torch.full((6,), 16.0))
    with pytest.raises(InputError, match=r"at most 0\.707"):
        _waves.simulate(torch.zeros(1, 4, 4), torch.tensor([0.8]), 3)


def test_layers_are_factored_where_that_is_smaller():
    kinds = {f: [type(m) for m in waves.network(f) if not isinstance(m, nn.ReLU)]
             for f in waves.FORMS}  # fmt: skip
    assert kinds["dense"] == [nn.Conv2d] * 4
    assert kinds["rank 4"] == [FactoredConv2d] * 4
    assert kinds["rank 16"] == [nn.Conv2d, FactoredConv2d, FactoredConv2d, nn.Conv2d]
    counts = [waves.params(f) for f in waves.FORMS]
    assert counts[0] > 2 * counts[-1] > 2 * counts[-2] > 2 * counts[-3]
    assert counts[-1] == 2 * 16 * 5 * 32 + 75 * 16 + 25 * 16 + 3 * 16 + 1


class Done:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


class Inline:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, job, *args):
        return Done(job(*args))


def rows(build, *args, **_):
    names = [name for name, _ in build(*args)]
    figure = measured(0.9, "x", spread=(0.88, 0.92), n=9)
    return {n: {"ratio": figure} for n in (*names, "a/a")}


def test_the_layouts_are_judged_by_the_thresholds_fixed(monkeypatch):
    monkeypatch.setattr(broad, "side_by_side", rows)
    monkeypatch.setattr(broad, "pool", lambda workers: Inline())
    monkeypatch.setattr(
        broad,
        "trained",
        lambda shape, layout, seed, epochs: {
            "loss": 0.5 + 0.01 * seed + (0.2 if layout == "parallel" else 0),
            "accuracy": 0.9 - (0.1 if layout == "parallel" else 0) + 0.001 * shape.depth,
            "dropped": 0.1 * shape.depth,
        },
    )
    found = broad.ShallowAgainCard().experiment("quick", lambda text: None)
    outcomes = {c.name: c.outcome for c in found.checks}
    assert outcomes["median difference of held-out losses"] == "fails"
    assert outcomes["accuracy, parallel minus sequential"] == "fails"
    assert outcomes["time of 4 layers, parallel over sequential"] == "holds"
    assert {c.threshold for c in found.checks} == set(broad.ShallowAgainCard.thresholds.values())
    assert len(found.tables["configurations"]) == 6 * 2 * 2
    assert found.tables["configurations"][0]["Q"] > 1


def test_the_rank_is_picked_on_validation_and_judged_on_held_out(monkeypatch):
    monkeypatch.setattr(waves, "side_by_side", rows)
    monkeypatch.setattr(waves, "pool", lambda workers: Inline())

    def canned(form, seed, plan):
        # Rank 8 is best on validation, rank 16 on what is held out.
        validation = {"dense": 0.1, "rank 4": 0.3, "rank 8": 0.1, "rank 16": 0.2}[form]
        held_out = {"dense": 0.1, "rank 4": 0.3, "rank 8": 0.2, "rank 16": 0.1}[form]
        return {"train": 0.05, "validation": validation, "held-out": held_out + 1e-4 * seed}

    monkeypatch.setattr(waves, "trained", canned)
    found = waves.AprioriConvCard().experiment("quick", lambda text: None)
    assert [c.outcome for c in found.checks] == ["holds", "fails", "fails"]
    assert all("rank 8" in c.name for c in found.checks)
    assert {c.threshold for c in found.checks} == set(waves.AprioriConvCard.thresholds.values())
    kept = {k: f.known() for k, f in found.measured.items() if k.startswith("bytes")}
    assert kept["bytes that training keeps, dense"] > 0


@pytest.mark.slow
def test_one_training_of_each_card_runs():
    found = broad.trained(broad.Shape(2, 8, 3), "sequential", 0, 12)
    assert found["accuracy"] > 0.5
    assert found["dropped"] > 0
    plan = waves.Plan(16, 64, 32, 6)
    assert waves.trained("rank 8", 0, plan)["held-out"] < 1
