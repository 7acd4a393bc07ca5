"""The classification task that cards share: digits in light clutter, 32 pixels, small networks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from paredown.papers.card import Check, Progress, mean_and_power
from paredown.workloads import clutter
from paredown.workloads.digits import HELD_OUT, Accuracy
from paredown.workloads.fit import Phase, fit

# Fixed so that small networks score 0.80 to 0.95: at 0.99 everything ties.
NOISE, PIECES = 0.15, 1

Build = Callable[[str], nn.Module]


@dataclass(frozen=True)
class Budget:
    """How long each network trains (epochs over 720 scans) and at which resolution."""

    epochs: int
    size: int = 32
    batch: int = 24
    rate: float = 6e-3


def judge(size: int) -> Accuracy:
    """Held-out accuracy, one 0/1 score per scene, two scenes of each of 917 scans."""
    return Accuracy(*clutter.scenes("held-out", size, 2, noise=NOISE, pieces=PIECES), batch=128)


def trained(model: nn.Module, seed: int, budget: Budget) -> nn.Module:
    """The network trained in place for the budget with data order from ``seed``, in eval mode."""
    batches = clutter.Scenes(budget.size, batch=budget.batch, noise=NOISE, pieces=PIECES)
    fit(model, [Phase(batches, budget.epochs)], rate=budget.rate, seed=seed, average=20)
    return model


def accuracy(build: Build, name: str, seed: int, budget: Budget) -> float:
    """Held-out accuracy of ``build(name)`` initialised and trained with ``seed``, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return float(judge(budget.size)(trained(build(name), seed, budget)).mean())


def accuracies(
    build: Build,
    budgets: Mapping[str, Budget],
    seeds: Sequence[int],
    progress: Progress,
    *,
    workers: int = 2,
) -> dict[str, list[float]]:
    """Accuracy of every named network for every seed, one thread each, in worker processes.

    ``build`` is an importable function; the result does not depend on ``workers``.
    """
    jobs = [(name, seed) for seed in seeds for name in budgets]
    found: dict[str, list[float]] = {name: [] for name in budgets}
    with pool(workers) as workers_pool:
        runs = [workers_pool.submit(accuracy, build, n, seed, budgets[n]) for n, seed in jobs]
        for (name, seed), run in zip(jobs, runs, strict=True):
            found[name].append(run.result())
            progress(f"{name}, seed {seed}: {found[name][-1]:.3f}")
    return found


def not_worse(name: str, ours: Sequence[float], theirs: Sequence[float], threshold: float) -> Check:
    """Whether the mean paired difference of accuracy is at least ``threshold`` (a share of 1)."""
    return mean_check(name, np.subtract(ours, theirs).tolist(), ">=", threshold)


def mean_check(
    name: str, values: Sequence[float], op: Literal[">=", "<="], threshold: float
) -> Check:
    """A check on a mean of accuracies or their differences over seeds.

    Its power is never finer than one judged scene: seeds that agree by chance are not exact.
    """
    mean, half = mean_and_power(values)
    return Check(name, mean, op, threshold, max(half, 1 / (2 * HELD_OUT)))


def over_seeds(
    job: Callable[..., dict[str, float]],
    seeds: Sequence[int],
    *settings: Any,
    progress: Progress,
    workers: int = 2,
) -> list[dict[str, float]]:
    """``job(seed, *settings)`` for every seed, each in a worker process; in order of the seeds."""
    with pool(workers) as workers_pool:
        runs = [workers_pool.submit(job, seed, *settings) for seed in seeds]
        found: list[dict[str, float]] = []
        for seed, run in zip(seeds, runs, strict=True):
            found.append(run.result())
            told = ", ".join(f"{k} {v:.3g}" for k, v in found[-1].items())
            progress(f"seed {seed}: {told}")
    return found


def pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes with torch and this module already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "paredown.papers.cards._task"])
    return ProcessPoolExecutor(workers, mp_context=context)
