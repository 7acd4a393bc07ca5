"""Mixed precision: which format each site gets, by sensitivity under a budget of bytes.

Each site's error in each format is measured alone; squared errors are taken to add up, and the
assignment with the least sum that fits the budget is found exactly, by an integer program (as in
HAWQ-V3, Yao et al. 2021, arXiv:2011.10680, section 3.3, which weighs Hessian traces instead).
Limits: errors of sites are not independent, so the sum ranks assignments and predicts none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paredown.cost.highs import Row, minimise
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.recipe import Lower, Recipe, Step
from paredown.technique import Technique
from paredown.techniques.quantize.common import paths
from paredown.techniques.quantize.sensitivity import sensitivity
from paredown.techniques.quantize.weight_only import WeightOnly
from paredown.workload import Workload, stored_bytes

FLOAT = "float"
"""The option of leaving a site as it is."""

OPTIONS: dict[str, Technique] = {
    "int8": WeightOnly(),
    "int4": WeightOnly(bits=4, group_size=32, clip=True),
}


@dataclass(frozen=True)
class Assignment:
    """Which option each site got, what all sites take in bytes, and the sum of squared errors."""

    chosen: dict[str, str]
    nbytes: int
    error: float
    options: Mapping[str, Technique]

    def recipe(self, backend: str = "eager") -> Recipe:
        """The recipe that carries the assignment out: one step per option, at its sites."""
        steps: list[Step] = []
        for label, technique in self.options.items():
            at = [s for s, c in self.chosen.items() if c == label]
            if at:
                settings = technique.settings()
                steps.append(Step(technique=technique.name, settings=settings, sites=at))
        return Recipe(steps=steps, lower=Lower(backend=backend))


def mixed_precision(
    workload: Workload,
    share: float,
    options: Mapping[str, Technique] | None = None,
    *,
    items: int = 8,
) -> Assignment:
    """The best option for each site so that all sites take at most ``share`` of their bytes now.

    ``options`` are rewrites of weights by label (int8 per row and int4 in groups of 32 without
    them); a site may also stay as it is. Sensitivity is taken on the first ``items`` calibration
    inputs. Raises ``NotApplicable`` when no option has a site, ``InputError`` when nothing fits.
    """
    options = OPTIONS if options is None else options
    if not 0 < share <= 1:
        raise InputError(f"share must lie in (0, 1], got {share}")
    graph = capture(workload)
    errors: dict[str, dict[str, float]] = {}
    costs: dict[str, dict[str, float]] = {}
    for label, technique in options.items():
        sites = technique.sites(workload, graph)
        if not sites.ok:
            continue
        made = technique.apply(workload, sites).workload
        for site, error in sensitivity(workload, technique, sites, items=items).items():
            errors.setdefault(site, {FLOAT: 0.0})[label] = error
            costs.setdefault(site, {FLOAT: _bytes(workload, site)})[label] = _bytes(made, site)
    if not errors:
        raise NotApplicable(f"no option has a site on {workload.name}")
    budget = share * sum(c[FLOAT] for c in costs.values())
    chosen = assign(errors, costs, budget)
    return Assignment(
        chosen,
        int(sum(costs[s][c] for s, c in chosen.items())),
        sum(errors[s][c] ** 2 for s, c in chosen.items()),
        options,
    )


def assign(
    errors: Mapping[str, Mapping[str, float]],
    costs: Mapping[str, Mapping[str, float]],
    budget: float,
) -> dict[str, str]:
    """One option per site with the least sum of squared errors whose costs are within ``budget``.

    Solved exactly by HiGHS. Options of infinite error are never chosen. Raises ``InputError`` when
    even the smallest options cost more.
    """
    pairs = [(s, o) for s, found in errors.items() for o in found if math.isfinite(found[o])]
    least = sum(min(costs[s][o] for t, o in pairs if t == s) for s in errors)
    if least > budget:
        raise InputError(f"the smallest formats take {least:g}, the budget is {budget:g}")
    squared = np.array([errors[s][o] ** 2 for s, o in pairs])
    # HiGHS stops within 1e-6 of the optimum: scaled so that this is far below what sites differ by.
    weight = 1e6 * squared / (squared.max() or 1.0)
    share = [costs[s][o] / max(budget, 1e-300) for s, o in pairs]
    one = [Row([(i, 1.0) for i, (t, _) in enumerate(pairs) if t == s], 1.0, 1.0) for s in errors]
    within = Row(list(enumerate(share)), -math.inf, 1.0)
    n = len(pairs)
    found = minimise(weight.tolist(), [1] * n, [0.0] * n, [1.0] * n, [*one, within])
    if found.x is None:
        raise InputError(f"HiGHS found no assignment within the budget of {budget:g}")
    return {s: o for (s, o), x in zip(pairs, found.x, strict=True) if x > 0.5}


def _bytes(workload: Workload, site: str) -> float:
    return float(
        sum(stored_bytes(workload.model.get_submodule(p)) for _, p in paths(workload, [site]))
    )
