"""For an idle machine: the predicted cost of a technique moves the same way as the measured one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from paredown.cost.price import price
from paredown.device.device import Device
from paredown.graph.capture import capture
from paredown.recipe import seeded
from paredown.runtime.eager import Eager
from paredown.technique import Technique
from paredown.testing.checks import Inapplicable
from paredown.workload import Workload

DEAF = 0.15
"""Ratios nearer to 1 than this say nothing about a direction."""


def cost_moves_as_measured(
    technique: Technique, fresh: Callable[[], Workload], device: Device, *, rounds: int = 15
) -> tuple[float, float]:
    """Predicted and measured ratio of eager latency, after to before; raises when they disagree.

    Both networks run in turns in this process, so this guards a direction and is no benchmark
    (`measure.compare` is). Raises `Inapplicable` when a ratio is too near to 1 to have a direction.
    """
    workload = fresh()
    graph = capture(workload)
    sites = technique.sites(workload, graph)
    if not sites.ok:
        raise Inapplicable(f"{technique.name} has no site on {workload.name}")
    after = technique.preview(graph, sites).graph
    costs = [price(g, device, backend="eager").latency.known() for g in (graph, after)]
    with seeded(0, technique.name):
        pared = technique.apply(workload, sites).workload
    predicted, measured = costs[1] / costs[0], _ratio(_run(workload), _run(pared), rounds)
    if min(abs(math.log(predicted)), abs(math.log(measured))) < DEAF:
        raise Inapplicable(f"predicted {predicted:.2f}, measured {measured:.2f}: no direction")
    same = (predicted < 1) == (measured < 1)
    assert same, f"{technique.name}: predicted {predicted:.2f}x, measured {measured:.2f}x"
    return predicted, measured


def _run(workload: Workload) -> Callable[[], object]:
    """One run of the workload as eager lowers it."""
    executable = Eager().lower(workload, threads=torch.get_num_threads())
    return lambda: executable(*workload.inputs, **workload.kwargs)


def _ratio(before: Callable[[], object], after: Callable[[], object], rounds: int) -> float:
    """Median of paired ratios, each pair run back to back, the order alternating."""
    ratios: list[float] = []
    for r in range(rounds + 2):
        seconds: dict[int, float] = {}
        for run in (before, after) if r % 2 == 0 else (after, before):
            started = time.perf_counter()
            run()
            seconds[id(run)] = time.perf_counter() - started
        if r >= 2:  # the first of each order warm up
            ratios.append(seconds[id(after)] / seconds[id(before)])
    return statistics.median(ratios)
