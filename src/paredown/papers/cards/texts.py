"""Claim card of the cost model for MLIR: small networks that read a subgraph's text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import nnls

from paredown.cost.reading import Ridge, tokens
from paredown.figure import Figure, counted, measured
from paredown.measure.child import Jobs, Limits
from paredown.measure.subgraphs import Label, draw, label
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    mean_and_power,
    mean_figure,
)
from paredown.papers.cards._task import pool

GRAPHS = {"quick": 450, "full": 2000}
EPOCHS = {"quick": 30, "full": 60}
SEEDS = 3
HELD_OUT = 5
"""One topology in five is never trained on."""
READERS = (("conv1d", "operands"), ("bag", "operands"), ("lstm", "operands"),
           ("conv1d", "operators"), ("bag", "operators"))  # fmt: skip
TARGETS = ("latency", "peak")
Rows = list[dict[str, Any]]


class MlirTextCard(Card):
    """Eager, one thread; latency measured here, peak bytes counted from lifetimes.

    Left out: fuse or not (eager fuses nothing), register pressure, and the instruction mix.
    """

    key = "mlir-text-cost"
    claim = (
        "networks that read the text of a subgraph estimate its cost with an error of 5 to 7 % "
        "of the range, 1-D convolutions best (register pressure and utilisation left out)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "conv1d_over_bag": 1.0,
        "conv1d_over_linear_in_macs": 1.0,
        "error_over_range": 0.10,
        "seconds_per_query": 1e-3,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Draw and time subgraphs, hold whole topologies out, train readers with three seeds."""
        t = self.thresholds
        data: list[Label] = Jobs().run(
            labels, GRAPHS[scale], limits=Limits.default(600), on_message=progress
        )
        train, test = divided(data)
        progress(f"{len(train)} to learn from, {len(test)} of other topologies")
        rows = readings(train, test, EPOCHS[scale], progress)
        rows += [{**r, "seed": 0} for r in baselines(train, test)]

        def errors(model: str, detail: str, target: str = "latency") -> list[float]:
            return [
                r["error"]
                for r in rows
                if (r["model"], r["detail"], r["target"]) == (model, detail, target)
            ]

        conv, bag = errors("conv1d", "operands"), errors("bag", "operands")
        (linear,) = errors("linear in MACs", "-")
        over_bag, power = mean_and_power([a / b for a, b in zip(conv, bag, strict=True)])
        over_linear, spread = mean_and_power([a / linear for a in conv])
        error, wide = mean_and_power(conv)
        query = min(r["query_s"] for r in rows if r["model"] == "conv1d")
        checks = [
            Check("error of latency, 1-D convolutions over bag", over_bag, "<=",
                  t["conv1d_over_bag"], power, "x"),
            Check("error of latency, 1-D convolutions over a line in MACs", over_linear, "<=",
                  t["conv1d_over_linear_in_macs"], spread, "x"),
            Check("error of latency over its range", error, "<=", t["error_over_range"], wide,
                  "share"),
            Check("seconds per query, text to number", query, "<=", t["seconds_per_query"]),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            "subgraphs": counted(len(data), ""),
            "topologies": counted(len({x.topology for x in data}), ""),
        }
        for model, detail, target in wanted():
            figures[f"{target}, {model}, {detail}"] = mean_figure(
                errors(model, detail, target), "share"
            )
        for r in rows:
            if r["model"] not in ("conv1d", "bag", "lstm"):
                figures[f"{r['target']}, {r['model']}"] = measured(r["error"], "share")
        return Experiment(figures, checks, list(range(SEEDS)), {"readers": rows})


def labels(count: int) -> list[Label]:
    """So many subgraphs, captured and timed on one thread."""
    import torch

    from paredown.measure.child import tell

    torch.set_num_threads(1)
    found: list[Label] = []
    for seed in range(count):
        found.append(label(draw(seed)))
        if seed % 100 == 99:
            tell(f"{seed + 1} of {count} timed")
    return found


def divided(data: Sequence[Label]) -> tuple[list[Label], list[Label]]:
    """By topology: every fifth, in order of first appearance, is held out."""
    place = {t: i for i, t in enumerate(dict.fromkeys(x.topology for x in data))}
    apart = [place[x.topology] % HELD_OUT == HELD_OUT - 1 for x in data]
    return (
        [x for x, out in zip(data, apart, strict=True) if not out],
        [x for x, out in zip(data, apart, strict=True) if out],
    )


def values(data: Sequence[Label], target: str) -> NDArray[np.float64]:
    """Natural logarithms of the target."""
    return np.log([x.seconds if target == "latency" else x.peak_bytes for x in data])


def kendall(said: ArrayLike, true: ArrayLike) -> float:
    """Kendall's tau; 0 where one side says the same of all."""
    found: Any = stats.kendalltau(said, true)
    value = float(found.statistic)
    return 0.0 if np.isnan(value) else value


def score(said: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """Root mean square error over the range of the logarithms, relative error, Kendall's tau."""
    return {
        "error": float(np.sqrt(np.mean((said - true) ** 2)) / (true.max() - true.min())),
        "relative": float(np.median(np.abs(np.exp(said - true) - 1))),
        "tau": kendall(said, true),
    }


def wanted() -> list[tuple[str, str, str]]:
    """Readers and targets: all for latency, the two that are compared for peak bytes."""
    peak = [(*r, "peak") for r in READERS[:2]]
    return [*((*r, "latency") for r in READERS), *peak]


def readings(
    train: Sequence[Label], test: Sequence[Label], epochs: int, progress: Progress
) -> Rows:
    """Every reader, target and seed, in two worker processes."""
    jobs = [(m, d, k, s) for m, d, k in wanted() for s in range(SEEDS)]
    plain = [asdict(x) for x in train], [asdict(x) for x in test]
    with pool(2) as workers:
        runs = [workers.submit(read, *plain, *job, epochs) for job in jobs]
        rows = [r.result() for r in runs]
    progress(", ".join(f"{r['model']}: {r['error']:.3f}" for r in rows if not r["seed"]))
    return rows


def read(
    train: list[dict[str, Any]],
    test: list[dict[str, Any]],
    model: str,
    detail: Any,
    target: str,
    seed: int,
    epochs: int,
) -> dict[str, Any]:
    """One reader trained and judged; the time of a query is of one text from its characters on."""
    import torch

    from paredown.cost.reading.networks import Reader

    torch.set_num_threads(1)
    known, held = [Label(**x) for x in train], [Label(**x) for x in test]
    words = [[tokens(x.written, detail) for x in part] for part in (known, held)]
    reader = Reader(model).fit(words[0], values(known, target).tolist(), epochs=epochs, seed=seed)
    found = score(reader.predict(words[1]), values(held, target))
    laps: list[float] = []
    for x in held[:40]:
        start = time.perf_counter()
        reader.predict([tokens(x.written, detail)])
        laps.append(time.perf_counter() - start)
    return {"model": model, "detail": detail, "target": target, "seed": seed, **found,
            "query_s": float(np.median(laps))}  # fmt: skip


def baselines(train: Sequence[Label], test: Sequence[Label]) -> Rows:
    """A line in the logarithm of MACs, a roofline with fitted rates, ridge on n-grams."""
    rows: Rows = []
    for target in TARGETS:
        y, true = values(train, target), values(test, target)
        work = [np.log([x.macs + 1.0 for x in part]) for part in (train, test)]
        said = {("linear in MACs", "-"): np.polyval(np.polyfit(work[0], y, 1), work[1])}
        terms = [
            np.array([[x.macs, x.moved_bytes, x.calls] for x in part], float)
            for part in (train, test)
        ]
        # Relative errors count: each row is divided by what it is to give.
        weights, _ = nnls(terms[0] / np.exp(y)[:, None], np.ones(len(y)))
        said["fitted roofline", "-"] = np.log(np.maximum(terms[1] @ weights, 1e-30))
        words = [[tokens(x.written) for x in part] for part in (train, test)]
        said["ridge", "operands"] = Ridge().fit(words[0], y.tolist()).predict(words[1])
        rows += [
            {"model": m, "detail": d, "target": target,
             **score(np.asarray(s, np.float64), true)}
            for (m, d), s in said.items()
        ]  # fmt: skip
    return rows
