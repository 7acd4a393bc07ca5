"""From timed chains to curves: a Gaussian process per group of operators and backend.

A chain's time less what a run costs and less its other operators (which have curves by then) is
shared among the operators that it is about in proportion to their bounds. The hyperparameters are
scikit-learn's maximum of the marginal likelihood; what is kept are numbers (`device.learned`).
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.cost.describe import Described, pooled
from paredown.cost.learned import factors, matern
from paredown.cost.tables import COMPILED
from paredown.device.learned import Curve, Learned

LEAST = 6
"""Operators of a group below which it has no curve of its own."""
MOST = 260
"""Points of a curve: prediction and fit stay cheap."""
MIXED = "mixed"
NOISE = (1e-4, 0.1)
"""Bounds of the variance of a logarithm that no size explains."""
STRAY = 0.7
"""A logarithm of time that the others of its group contradict by more may be left out."""
Array = NDArray[np.float64]
Row = dict[str, Any]
Target = tuple[tuple[float, ...], float]


def learn(rows: Iterable[Row], run_s: dict[str, float]) -> Learned:
    """Curves and glue of every backend in ``rows`` (`deep.time_samples`).

    ``run_s`` holds what a run costs beside its calls, by backend. Kinds are fitted in the order of
    the rows: a chain that contains others' operators comes after theirs. What mixed networks take
    beyond their operators is fitted last.
    """
    by_kind: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "seconds" in row and row["parts"]:
            by_kind.setdefault((row["backend"], row["kind"]), []).append(row)
    so_far = Learned(curves={}, glue_s={f"{b}/run": s for b, s in run_s.items()})
    every: dict[str, list[Target]] = defaultdict(list)
    for (backend, kind), chains in by_kind.items():
        if kind == MIXED:
            glue = _glue(chains, so_far, backend)
            so_far = Learned(curves=so_far.curves, glue_s={**so_far.glue_s, **glue})
            continue
        found: dict[str, list[Target]] = defaultdict(list)
        for row in chains:
            for group, target in _targets(row, so_far):
                found[group].append(target)
        curves = dict(so_far.curves)
        for group, targets in found.items():
            every[f"{backend}/{group}"] += targets
            if pooled(group) != group:
                every[f"{backend}/{pooled(group)}"] += targets
        for name in {f"{backend}/{g}" for group in found for g in (group, pooled(group))}:
            if len(every[name]) >= LEAST:
                curves[name] = fit(every[name])
        so_far = Learned(curves=curves, glue_s=so_far.glue_s)
    return so_far


def _glue(chains: list[Row], so_far: Learned, backend: str) -> dict[str, float]:
    """What unlike operators take beside each other: a factor of all, s of a call, s of a view.

    Non-negative least squares of relative errors, held near a factor of 1 and no seconds.
    """
    from scipy.optimize import nnls

    run = so_far.glue_s.get(f"{backend}/run", 0.0)
    lines, asked = [], []
    for row in chains:
        parts = row["parts"]
        known = factors(so_far, backend, [Described(p[1], tuple(p[2])) for p in parts])
        total = sum(p[3] * (f[0] if f else 1.0) for p, f in zip(parts, known, strict=True))
        spent = max(row["seconds"] - run, 0.1 * row["seconds"])
        views = 0 if backend in COMPILED else row["views"]
        lines.append([total / spent, 1e-6 * len(parts) / spent, 1e-6 * views / spent])
        asked.append(1.0)
    held = 0.05 * math.sqrt(len(chains))
    lines += [[held, 0.0, 0.0], [0.0, held * 0.02, 0.0], [0.0, 0.0, held * 0.02]]
    asked += [held, 0.0, 0.0]
    factor, call, view = (float(v) for v in nnls(np.array(lines), np.array(asked))[0])
    return {
        f"{backend}/factor": factor,
        f"{backend}/call": call * 1e-6,
        f"{backend}/view": view * 1e-6,
    }


def _targets(row: Row, so_far: Learned) -> list[tuple[str, Target]]:
    """The logarithm of time over bound for each different operator that the chain is about."""
    backend, parts = row["backend"], row["parts"]
    main = _about(row["kind"])
    left = row["seconds"] - so_far.glue_s.get(f"{backend}/run", 0.0)
    left -= row["views"] * so_far.glue_s.get(f"{backend}/view", 0.0)
    others = [p for p in parts if p[0] not in main]
    known = factors(so_far, backend, [Described(p[1], tuple(p[2])) for p in others])
    left -= sum(p[3] * (f[0] if f else 1.0) for p, f in zip(others, known, strict=True))
    ours = [p for p in parts if p[0] in main]
    bound = sum(p[3] for p in ours)
    if not ours:
        return []
    # What is left of a chain whose other parts take nearly all of it says little.
    share = max(left, 0.1 * row["seconds"]) / bound
    different = {(p[1], tuple(p[2])) for p in ours}
    return [(group, (values, math.log(share))) for group, values in sorted(different)]


_ABOUT = {
    "head": {"linear", "matmul"},
    "pointwise": {"elementwise"},
    "deconv": {"conv"},
    "matmul": {"matmul", "linear"},
    "linear": {"matmul", "linear"},
}


def _about(kind: str) -> set[str]:
    return _ABOUT.get(kind, {kind})


def fit(targets: Sequence[Target]) -> Curve:
    """A Gaussian process through ``(values, log factor)`` pairs, as a `Curve`.

    Points that the others contradict by far (a preempted run) are left out, once.
    """
    step = max(len(targets) / MOST, 1.0)
    picked = [targets[int(i * step)] for i in range(int(len(targets) / step))]
    x = np.array([v for v, _ in picked])
    y = np.array([t for _, t in picked])
    scales, weights, left_out = _process(x, y)
    off = np.abs(left_out)
    good = off <= max(STRAY, 6 * float(np.median(off)))
    if not good.all() and good.sum() >= LEAST:
        x, y = x[good], y[good]
        scales, weights, left_out = _process(x, y)
    return Curve(
        scales=_digits(scales),
        low=_digits(x.min(0)),
        high=_digits(x.max(0)),
        points=tuple(_digits(p) for p in x),
        weights=tuple(float(f"{v:.9g}") for v in weights),
        mean=float(np.median(y)),
        error=float(np.expm1(np.median(np.abs(left_out)))),
        samples=len(targets),
    )


def _process(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Scales and weights of a `Curve`, and the leave-one-out errors of the logarithm."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    span = x.max(0) - x.min(0)
    wide = np.where(span > 0, span, 1.0)
    lengths: Any = wide  # one for each size; the stubs know of a single one
    shape = Matern(lengths, [(0.15 * w, 20 * w) for w in wide], nu=2.5)
    kernel = ConstantKernel(0.3, (0.01, 10.0)) * shape + WhiteKernel(1e-3, NOISE)
    mean = float(np.median(y))
    process = GaussianProcessRegressor(kernel, alpha=1e-8)
    with warnings.catch_warnings():
        # A size that does not matter drives its length to the bound: that is how it is left out.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, y - mean)
    best: Any = process.kernel_
    variance = float(best.k1.k1.constant_value)
    scales = np.broadcast_to(best.k1.k2.length_scale, wide.shape)
    covariance = variance * matern(x / scales, x / scales)
    inverse = np.linalg.inv(covariance + best.k2.noise_level * np.eye(len(x)))
    weights = inverse @ (y - mean)
    return scales, weights * variance, weights / np.diag(inverse)


def _digits(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{v:.7g}") for v in values)
