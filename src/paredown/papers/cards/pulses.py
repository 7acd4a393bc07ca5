"""Claim card of PulseDL-II: arrival and energy of pulses by a small network in integers."""

from __future__ import annotations

import itertools
import json
from typing import Any, ClassVar

import numpy as np
import torch

from paredown.apps.pulses import classic
from paredown.apps.pulses.integer import IntegerNet, Layer, PulseNet, exported
from paredown.apps.pulses.signals import Pulses, Setup, least, pulses
from paredown.apps.pulses.training import Plan, adapt, resolution, train
from paredown.cost.element_array import Layer1d, cost, counted_cycles, cycles, smallest
from paredown.figure import Figure, counted, predicted
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    half_width,
    mean_and_power,
    mean_figure,
)
from paredown.papers.cards._paired import Paired
from paredown.papers.cards._task import Budget

SETUP = Setup()
PLAN = Plan()
SEEDS = {"quick": 4, "full": 10}
HELD_OUT = 4000
FRACTIONS, DELAYS = (0.2, 0.3, 0.4, 0.5), (3, 4, 6, 8)
CLOCK_HZ, EVENT_S = 100e6, 10e-6
"""What the array is sized for here: 100 MHz and 100,000 events a second (assumed)."""


class PulseDLCard(Card):
    """Made pulses at 47.4 dB, times in samples; signals, sampling and chip of the paper are not
    had.

    Constant fraction is tuned on pulses of its own; the bound is the mean of Cramer-Rao's.
    """

    key = "pulsedl-ii"
    claim = (
        "an integer network reads pulses to 60 ps and 0.40 % of their energy at 47.4 dB (here: "
        "better than constant fraction, near the Cramer-Rao bound, in integers bit for bit)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "sums_that_differ": 0,
        "layers_off_the_cycle_loop": 0,
        "float_over_constant_fraction": 1.0,
        "float_over_cramer_rao": 2.0,
        "int8_over_float": 1.1,
        "energy_resolution": 0.01,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Train every seed in float and in integers; classic estimates on the same pulses."""
        t = self.thresholds
        found = Paired.run(job, list(range(SEEDS[scale])), Budget(0), progress=progress)
        bound, energy_bound = least(SETUP)
        others = classics()
        fraction = others["constant fraction"]
        over = [x / fraction for x in found["float"]]
        near = [x / bound for x in found["float"]]
        lost = [x + 1 for x in found.over("int8", "float")]
        shapes = layers_of(PulseNet())
        array = smallest(shapes, EVENT_S, clock_hz=CLOCK_HZ)
        assert array is not None
        off = sum(
            counted_cycles(x, a) != cycles(x, a)
            for x in shapes
            for a in (array, *(smallest(shapes, s, clock_hz=CLOCK_HZ) for s in (1e-4, 1e-3)))
            if a is not None
        )
        ratio, power = mean_and_power(over)
        closeness, spread = mean_and_power(near)
        rise, wide = mean_and_power(lost)
        size = mean_figure(found["int8 energy"], "share")
        checks = [
            Check("sums that differ: integers, torch's int8 kernel, the file read back",
                  sum(found["differing"]), "<=", t["sums_that_differ"]),
            Check("layers whose cycles are off the loop", off, "<=",
                  t["layers_off_the_cycle_loop"]),
            Check("arrival, float network over constant fraction", ratio, "<=",
                  t["float_over_constant_fraction"], power, "x"),
            Check("arrival, float network over the Cramer-Rao bound", closeness, "<=",
                  t["float_over_cramer_rao"], spread, "x"),
            Check("arrival, int8 over float", rise, "<=", t["int8_over_float"], wide, "x"),
            Check("energy resolution, int8", size.known(), "<=", t["energy_resolution"],
                  half_width(size), "share"),
        ]  # fmt: skip
        spent = cost(shapes, array)
        figures: dict[str, Figure] = {
            **found.figures("arrival", ["float", "int8"], "samples"),
            **found.figures("energy", ["float energy", "int8 energy"], "share"),
            "Cramer-Rao bound, arrival": predicted(bound, "samples"),
            "Cramer-Rao bound, energy": predicted(energy_bound, "share"),
            "elements of the smallest array": counted(array.elements, ""),
            "units in each": counted(array.units, ""),
            "seconds of an event there": predicted(spent.seconds, "s"),
            "share of its units at work": predicted(spent.utilization, "share"),
            "bytes of weights": counted(array.weight_bytes, "B"),
        }
        tables = {"resolutions": found.rows("network", "samples", ["float", "int8"]),
                  "classic": [{"estimate": k, "samples": v} for k, v in others.items()],
                  }  # fmt: skip
        return Experiment(figures, checks, found.seeds, tables)


def job(seed: int, _: Budget) -> dict[str, float]:
    """One network: resolutions of arrival and energy, in float and integers; sums that differ."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net, held = PulseNet(SETUP.samples), pulses(SETUP, HELD_OUT, 2)
    train(SETUP, net, PLAN, seed)
    with torch.inference_mode():
        said = net(torch.from_numpy(held.waves)).double().numpy()
    time, energy = resolution(SETUP, said, held)
    adapt(SETUP, net, PLAN, seed)
    whole = exported(net)
    time8, energy8 = resolution(SETUP, whole(held.waves), held)
    return {"float": time, "int8": time8, "float energy": energy, "int8 energy": energy8,
            "differing": float(differing(whole, held))}  # fmt: skip


def differing(net: IntegerNet, held: Pulses) -> int:
    """Sums that differ between the reference, torch's int8 kernel, and the network read back."""
    want = net.sums(held.waves)
    again = IntegerNet.from_plain(json.loads(json.dumps(net.to_plain())))
    return int(
        (net.sums(held.waves, native=True) != want).sum() + (again.sums(held.waves) != want).sum()
    )


def classics() -> dict[str, float]:
    """Deviations of the arrival (samples) of estimates without a network."""
    known, held = pulses(SETUP, HELD_OUT, 1), pulses(SETUP, HELD_OUT, 2)

    def off(estimate: classic.Estimate, on: Pulses) -> float:
        return float(np.std(classic.calibrated(SETUP, estimate, known, on.waves) - on.start))

    def fraction(share: float, delay: int) -> classic.Estimate:
        return lambda s, w: classic.constant_fraction(s, w, share, delay)

    best = min(itertools.product(FRACTIONS, DELAYS), key=lambda fd: off(fraction(*fd), known))
    fitted, _ = classic.matched_filter(SETUP, held.waves)
    return {
        "leading edge": off(classic.leading_edge, held),
        "constant fraction": off(fraction(*best), held),
        "matched filter": float(np.std(fitted - held.start)),
    }


def layers_of(net: PulseNet) -> list[Layer1d]:
    """The network's layers as an array sees them."""
    found: list[Layer1d] = []
    length = SETUP.samples
    for layer in net.layers:
        assert isinstance(layer, Layer)
        conv: Any = layer.conv
        taps, stride = int(conv.kernel_size[0]), int(conv.stride[0])
        length = (length - taps) // stride + 1
        found.append(Layer1d(conv.in_channels, conv.out_channels, taps, length, stride))
    return found
