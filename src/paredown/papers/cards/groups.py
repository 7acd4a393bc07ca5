"""Claim card of energy-efficient group convolution, E2GC (arXiv:2006.15100)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from paredown import zoo
from paredown.figure import Figure, counted, measured, predicted
from paredown.measure.energy import measure as energy_of
from paredown.nn.group import GroupCost, group_conv, regroup
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width
from paredown.papers.cards.networks import ENERGY_SOURCE, PJ_PER_MAC, PJ_PER_WORD, graph_of
from paredown.papers.timing import Rows, side_by_side

NETWORK = "resnext50-32x4d"
# With 32 groups the four stages have 4, 8, 16 and 32 channels a group; 8 throughout is nearest in
# work among the powers of two.
GROUP_SIZE = 8
LAYER_CHANNELS, LAYER_SIDE = 256, 28
SIZES = (1, 2, 4, 8, 16, 32, 64)
JOULES = (PJ_PER_MAC * 1e-12, PJ_PER_WORD / 4 * 1e-12)


def forms() -> dict[str, nn.Module]:
    """The network with a constant number of groups, and with a constant group size."""
    fixed = zoo.create(NETWORK)
    return {"constant g": fixed.eval(), "constant G": regroup(fixed, GROUP_SIZE).eval()}


def networks(size: int) -> list[tuple[str, Callable[[], Any]]]:
    """Both at batch 1 (in the timing child)."""
    x = torch.randn(1, 3, size, size)
    return [(name, lambda m=m: m(x)) for name, m in forms().items()]


def layers() -> list[tuple[str, Callable[[], Any]]]:
    """One layer in every group size (in the timing child)."""
    x = torch.randn(1, LAYER_CHANNELS, LAYER_SIDE, LAYER_SIDE)
    made = {g: group_conv(LAYER_CHANNELS, LAYER_CHANNELS, g) for g in SIZES}
    return [(f"G = {g}", lambda m=m: m(x)) for g, m in made.items()]


def costs(model: nn.Module, size: int) -> list[GroupCost]:
    """What every grouped convolution of a model costs on a square image."""
    found: list[GroupCost] = []

    def note(m: nn.Conv2d, inputs: Any, y: torch.Tensor) -> None:
        if m.groups > 1:
            found.append(
                GroupCost(
                    m.in_channels,
                    m.out_channels,
                    m.in_channels // m.groups,
                    m.kernel_size[0],
                    y.shape[-2],
                    y.shape[-1],
                    m.stride[0],
                )
            )

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return found


def ranks(rows: Rows) -> Figure:
    """Rank correlation of modelled energy and measured time over the group sizes.

    The interval is what the spread of the latencies could make of it.
    """
    from scipy import stats

    cost = [
        GroupCost(LAYER_CHANNELS, LAYER_CHANNELS, g, 3, LAYER_SIDE, LAYER_SIDE).energy(*JOULES)
        for g in SIZES
    ]
    times = [rows[f"G = {g}"]["latency"] for g in SIZES]

    def rho(seconds: list[float]) -> float:
        result: Any = stats.spearmanr(cost, seconds)
        return float(result.statistic)

    rng = np.random.default_rng(0)
    draws = [rho([rng.uniform(*(f.spread or (f.known(),) * 2)) for f in times]) for _ in range(200)]
    value = rho([f.known() for f in times])
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    return measured(value, "", spread=(min(low, value), max(high, value)), n=len(SIZES))


class E2gcCard(Card):
    """ResNeXt-50 with 32 groups against groups of 8 channels, at nearly equal work."""

    key = "e2gc"
    claim = (
        "at comparable work, a constant group size takes less energy than a constant number of "
        "groups, because work and data reuse stay in balance"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "macs_difference": 0.02,
        "reuse_imbalance_ratio": 1.0,
        "time_per_mac_ratio": 1.0,
        "energy_per_mac_ratio": 1.0,
        "rank_correlation": 0.7,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Eager fp32 at batch 1 on 2 threads; energy is modelled where no counter can be read.

        The spread of reuse is the largest MACs per element moved over the smallest, by layer. No
        training: accuracy against G needs more data than the scans.
        """
        t = self.thresholds
        quick = scale == "quick"
        size = 160 if quick else 224
        with torch.device("meta"):
            macs = {n: graph_of(m, 1, 3, size, size).macs for n, m in forms().items()}
        made = {name: costs(model, size) for name, model in forms().items()}
        reuse = {n: max(c.reuse for c in v) / min(c.reuse for c in v) for n, v in made.items()}
        joules = {n: sum(c.energy(*JOULES) for c in v) for n, v in made.items()}
        progress("timing networks")
        rows = side_by_side(networks, size, seconds=15.0 if quick else 60.0, threads=2, limit_s=400)
        speed: Figure = rows["constant G"]["ratio"]
        work = macs["constant G"] / macs["constant g"]
        per_mac = speed.known() / work
        progress("timing one layer in every group size")
        grid = side_by_side(layers, seconds=10.0 if quick else 30.0, threads=2, limit_s=200)
        rho = ranks(grid)
        checks = [
            Check("|MACs, constant G over g, off 1|", abs(work - 1), "<=", t["macs_difference"]),
            Check(
                "spread of reuse over layers, constant G over g",
                reuse["constant G"] / reuse["constant g"],
                "<=",
                t["reuse_imbalance_ratio"],
                unit="x",
            ),
            Check(
                "time per MAC, constant G over g",
                per_mac,
                "<=",
                t["time_per_mac_ratio"],
                half_width(speed) / work,
                "x",
            ),
            Check(
                "rank correlation of modelled energy and time over G",
                rho.known(),
                ">=",
                t["rank_correlation"],
                half_width(rho),
            ),
        ]
        x = torch.randn(1, 3, size, size)
        with torch.inference_mode():
            energy = {n: energy_of(lambda m=m: m(x)) for n, m in forms().items()}
        if all(f.value is not None for f in energy.values()):
            spent = energy["constant G"].known() / energy["constant g"].known() / work
            checks.append(
                Check("energy per MAC, constant G over g", spent, "<=", t["energy_per_mac_ratio"])
            )
        figures: dict[str, Figure] = {
            "MACs, constant G over g": counted(work, "x"),
            **{f"spread of reuse over layers, {n}": counted(v, "x") for n, v in reuse.items()},
            "time, constant G over g": speed,
            "a/a ratio": rows["a/a"]["ratio"],
            "energy of the grouped layers, constant G over g": predicted(
                joules["constant G"] / joules["constant g"], "x", reason=ENERGY_SOURCE
            ),
            **{f"energy of a run, {n}": f for n, f in energy.items()},
            "rank correlation of modelled energy and time over G": rho,
        }
        table = [
            {
                "G": g,
                "latency_s": grid[f"G = {g}"]["latency"].value,
                "macs": c.macs,
                "reuse": c.reuse,
            }
            for g, c in (
                (g, GroupCost(LAYER_CHANNELS, LAYER_CHANNELS, g, 3, LAYER_SIDE, LAYER_SIDE))
                for g in SIZES
            )
        ]
        return Experiment(figures, checks, [0], {"layer": table})
