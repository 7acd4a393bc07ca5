"""The frame of the architectures' cards: parts that are counted, exact, timed or learnt.

A card is a table of such parts, each with the threshold that it was given before the first run;
what it says of the claim follows from them alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from paredown import zoo
from paredown.figure import Figure, counted, measured
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
from paredown.papers.cards._parts import Contrast, Exact, Scores, Timing, Trained, Work
from paredown.papers.cards._subjects import timed_runs
from paredown.papers.cards._task import pool
from paredown.papers.timing import side_by_side
from paredown.result import ZooRow
from paredown.workload import Workload

THREADS, SECONDS = 2, {"quick": 6.0, "full": 30.0}


class ArchitectureCard(Card):
    """One architecture. Subclasses are tables: what they set is the card."""

    rows: ClassVar[tuple[str, ...]] = ()
    """Rows of the zoo whose counts are held against the published ones."""
    errors: ClassVar[tuple[float, float | None]] = (0.005, 0.005)
    """The most that parameters and MACs of the rows may be off (None: not asked)."""
    exact: ClassVar[tuple[Exact, ...]] = ()
    work: ClassVar[tuple[Work, ...]] = ()
    timings: ClassVar[tuple[Timing, ...]] = ()
    trained: ClassVar[Trained | None] = None
    learnt: ClassVar[tuple[Contrast, ...]] = ()
    thresholds: ClassVar[dict[str, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the thresholds of all parts, under their checks' names."""
        super().__init_subclass__(**kwargs)
        params, macs = cls.errors
        named: list[tuple[str, float | None]] = []
        if cls.rows:
            named += [("params_error", params), ("macs_error", macs)]
        named += [(e.name, e.threshold) for e in cls.exact]
        named += [(t.name, t.most) for t in cls.timings]
        named += [(w.name, w.most) for w in cls.work]
        named += [(c.name, c.least) for c in cls.learnt]
        assert len({n for n, _ in named}) == len(named), f"{cls.__name__} names a check twice"
        cls.thresholds = {name: value for name, value in named if value is not None}

    @classmethod
    def networks(cls) -> list[str]:
        """The small networks that are trained, in the order in which the contrasts name them."""
        return list(dict.fromkeys(n for c in cls.learnt for n in c.weights))

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """All parts in turn: counts, invariants, times, then training, paired by seed."""
        figures: dict[str, Figure] = {}
        checks = [*self._counted(figures), *self._exact(figures, progress)]
        checks += self._timed(figures, scale, progress)
        seeds, table = [0], list[dict[str, Any]]()
        if self.trained is not None:
            seeds = list(range(self.trained.seeds[scale]))
            checks += self._worked(figures)
            checks += self._learnt(figures, scale, seeds, table, progress)
        return Experiment(figures, checks, seeds, {"scores": table} if table else {})

    def _counted(self, figures: dict[str, Figure]) -> list[Check]:
        checks: list[Check] = []
        if not self.rows:
            return checks
        kept = rows_counted(self.rows)
        found = {r.name: (r.params, r.macs) for r in kept}
        published = {r.name: (r.paper_params, r.paper_macs) for r in kept}
        for at, (kind, most) in enumerate(zip(("params", "MACs"), self.errors, strict=True)):
            if most is None:
                continue
            errors = [
                abs(mine[at] / theirs - 1)
                for name, mine in found.items()
                if (theirs := published[name][at])
            ]
            checks.append(
                Check(f"{kind} of {len(errors)} networks, worst share off", max(errors), "<=", most)
            )
        for name, (params, macs) in found.items():
            figures[f"params, {name}"] = counted(params, "")
            figures[f"MACs, {name}"] = counted(macs, "MAC")
        return checks

    def _exact(self, figures: dict[str, Figure], progress: Progress) -> list[Check]:
        checks: list[Check] = []
        for part in self.exact:
            progress(part.name)
            checks.append(Check(part.name, float(part.value()), part.op, part.threshold))
            known = counted if part.how == "counted" else measured
            figures[part.name] = known(checks[-1].value, "")
        return checks

    def _worked(self, figures: dict[str, Figure]) -> list[Check]:
        assert self.trained is not None
        made = {n: self.trained.build(n) for n in self.networks()}
        sizes = {n: sizes_of(model, self.trained.example()) for n, model in made.items()}
        for name, (params, macs) in sizes.items():
            figures[f"params, small {name}"] = counted(params, "")
            figures[f"MACs, small {name}"] = counted(macs, "MAC")
        at = {"params": 0, "macs": 1}
        return [
            Check(
                w.name, sizes[w.ours][at[w.of]] / sizes[w.theirs][at[w.of]], "<=", w.most, unit="x"
            )
            for w in self.work
        ]

    def _timed(self, figures: dict[str, Figure], scale: Scale, progress: Progress) -> list[Check]:
        checks: list[Check] = []
        for part in self.timings:
            progress(part.name)
            rows = side_by_side(
                timed_runs,
                part.made,
                part.args,
                part.train,
                seconds=SECONDS[scale],
                threads=THREADS,
                limit_s=600,
            )
            ratio: Figure = rows[part.ours]["ratio"]
            if part.per_mac:
                ratio = per_work(ratio, part)
            figures[part.name] = ratio
            figures[f"latency, {part.ours}, {part.name}"] = rows[part.ours]["latency"]
            figures[f"a/a ratio, {part.name}"] = rows["a/a"]["ratio"]
            if part.most is not None:
                power = half_width(ratio)
                checks.append(Check(part.name, ratio.known(), "<=", part.most, power, "x"))
        return checks

    def _learnt(
        self,
        figures: dict[str, Figure],
        scale: Scale,
        seeds: Sequence[int],
        table: list[dict[str, Any]],
        progress: Progress,
    ) -> list[Check]:
        assert self.trained is not None
        names = self.networks()
        found = scores(self.trained, names, seeds, scale, progress)
        units = {c.metric: c.unit for c in self.learnt}
        for name, metrics in found.items():
            for metric, values in metrics.items():
                figures[f"{metric}, small {name}"] = mean_figure(values, units.get(metric, ""))
        for name in names:
            for i, seed in enumerate(seeds):
                row = {metric: values[i] for metric, values in found[name].items()}
                table.append({"network": name, "seed": seed, **row})
        return [judged(c, found, self.trained.floors) for c in self.learnt]


def rows_counted(names: Sequence[str]) -> list[ZooRow]:
    """Rows of the zoo counted anew, two networks at a time."""
    with pool(2) as workers:
        return list(workers.map(zoo.row, names))


def judged(part: Contrast, found: Scores, floors: Mapping[str, float]) -> Check:
    """The contrast's mean over seeds against its threshold, with what the run could see."""
    values = sum(w * np.asarray(found[n][part.metric]) for n, w in part.weights.items())
    mean, half = mean_and_power(np.asarray(values).tolist())
    power = max(half, floors.get(part.metric, 0.0))
    return Check(part.name, mean, ">=", part.least, power, part.unit)


def sizes_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Parameters, and MACs of one run in evaluation mode."""
    from paredown.graph.capture import capture

    params = sum(p.numel() for p in model.parameters())
    return params, capture(Workload(model.eval(), inputs)).macs


def per_work(ratio: Figure, part: Timing) -> Figure:
    """A ratio of times brought to equal MACs."""
    macs = {name: sizes_of(model, x)[1] for name, model, x in part.made(*part.args)}
    share = macs[part.theirs] / macs[part.ours]
    low, high = ratio.spread or (ratio.known(), ratio.known())
    return measured(ratio.known() * share, "x", spread=(low * share, high * share), n=ratio.n)


def scores(
    trained: Trained, names: Sequence[str], seeds: Sequence[int], scale: Scale, progress: Progress
) -> Scores:
    """Every metric of every network for every seed, one thread each, in two worker processes."""
    plan = trained.plans[scale]
    jobs = [(name, seed) for seed in seeds for name in names]
    found: Scores = {name: {} for name in names}
    with pool(2) as workers:
        runs = [workers.submit(trained.score, trained.build, n, seed, plan) for n, seed in jobs]
        for (name, seed), run in zip(jobs, runs, strict=True):
            one = run.result()
            for metric, value in one.items():
                found[name].setdefault(metric, []).append(value)
            told = ", ".join(f"{k} {v:.3f}" for k, v in one.items())
            progress(f"{name}, seed {seed}: {told}")
    return found
