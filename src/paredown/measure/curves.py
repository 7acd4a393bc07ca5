"""From timed chains to curves: a Gaussian process per group of operators and backend.

A chain's time less what a run costs and less its other operators (which have curves by then) is
shared among the operators that it is about in proportion to their analytical time. First the parts
of that time are weighed for the group (arithmetic, bytes, call: non-negative least squares of
relative errors), which is what extrapolates; the process then learns what sizes and layouts add.
Its hyperparameters are scikit-learn's maximum of the marginal likelihood; what is kept are numbers
(`device.learned`).
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.cost.describe import Described, pooled
from paredown.cost.learned import WEIGHTS_FAR, Glue, Known, matern, times
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
EDGE = 0.05
"""Quantile of the logarithms of a group that none is taken beyond."""
HELD = 0.02
"""How strongly a group's weights are held together, against one chain's relative error of 1."""
HELD_FAR = 0.3
ROBUST = 0.05
"""Relative errors beyond this count less and less."""


@dataclass(frozen=True)
class Target:
    """Operators of one description in a chain: their sizes, parts in s, and seconds, of all."""

    values: tuple[float, ...]
    parts: tuple[float, ...]
    seconds: float


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
            for group, targets in _targets(row, so_far).items():
                found[group] += targets
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
    """What unlike operators take beside each other: a factor of their arithmetic and one of the
    rest of their time (nothing is warm), s of a call, s of a view.

    Non-negative least squares of relative errors; factors are held near 1, the first more so, and
    seconds near 0.
    """
    run = Glue.of(so_far, backend).run
    lines: list[list[float]] = []
    asked: list[float] = []
    for row in chains:
        known = _known(row["parts"], so_far, backend)
        sure = sum(known[i].seconds for i in range(len(known)) if known[i].error < math.inf)
        arithmetic = sum(k.arithmetic for k in known)
        spent = max(row["seconds"] - run, 0.1 * row["seconds"])
        views = 0 if backend in COMPILED else row["views"]
        unknown = sum(k.seconds for k in known) - sure
        calls = 1e-6 * len(known)
        line = (arithmetic, sure - arithmetic, calls, 1e-6 * views)
        lines.append([v / spent for v in line])
        asked.append(1.0 - unknown / spent)
    held = np.diag([0.2, 0.05, 0.001, 0.001]) * math.sqrt(len(chains))
    wanted = held @ np.array([1.0, 1.0, 0.0, 0.0])
    found = _robust(np.array(lines), np.array(asked), held, wanted)
    arithmetic, factor, call, view = (float(v) for v in found)
    return {
        f"{backend}/arithmetic": arithmetic,
        f"{backend}/factor": factor,
        f"{backend}/call": call * 1e-6,
        f"{backend}/view": view * 1e-6,
    }


def _robust(lines: Array, asked: Array, held: Array, wanted: Array) -> Array:
    """Non-negative least squares in which lines far off count less (reweighted), and ``held``
    lines as they stand.
    """
    from scipy.optimize import nnls

    weight = np.ones(len(asked))
    found = np.zeros(lines.shape[1])
    for _ in range(10):
        every = np.vstack([lines * weight[:, None], held])
        found = nnls(every, np.concatenate([asked * weight, wanted]))[0]
        off = np.abs(lines @ found - asked)
        weight = 1 / np.sqrt(np.maximum(off / ROBUST, 1.0))
    return found


def _known(parts: Sequence[Any], so_far: Learned, backend: str) -> list[Known]:
    """Each operator as far as it is known; else the sum of its parts, its error unbounded."""
    described = [Described(p[1], tuple(p[2])) for p in parts]
    found = times(so_far, backend, described, [p[3] for p in parts])
    return [k or Known(sum(p[3]), 0.0, math.inf) for p, k in zip(parts, found, strict=True)]


def _targets(row: Row, so_far: Learned) -> dict[str, list[Target]]:
    """What the chain says of each group that it is about."""
    backend, parts = row["backend"], row["parts"]
    main = _about(row["kind"])
    glue = Glue.of(so_far, backend)
    left = row["seconds"] - glue.run - row["views"] * glue.view
    others = _known([p for p in parts if p[0] not in main], so_far, backend)
    left -= sum(k.seconds for k in others)
    ours = [p for p in parts if p[0] in main]
    bound = sum(sum(p[3]) for p in ours)
    if not ours:
        return {}
    # What is left of a chain whose other parts take nearly all of it says little.
    share = max(left, 0.1 * row["seconds"]) / bound
    alike: dict[tuple[str, tuple[float, ...]], list[Array]] = defaultdict(list)
    for p in ours:
        alike[p[1], tuple(p[2])].append(np.array(p[3]))
    found: dict[str, list[Target]] = defaultdict(list)
    for (group, values), each in sorted(alike.items()):
        whole = sum(each[1:], each[0])
        found[group].append(Target(values, tuple(whole.tolist()), share * float(whole.sum())))
    return found


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
    """Weights of the parts and a Gaussian process over what they leave, as a `Curve`.

    Points that the others contradict by far (a preempted run) are left out, once.
    """
    step = max(len(targets) / MOST, 1.0)
    picked = [targets[int(i * step)] for i in range(int(len(targets) / step))]
    parts, taken = np.array([t.parts for t in picked]), np.array([t.seconds for t in picked])
    weights_of_parts = weigh(parts, taken)
    x = np.array([t.values for t in picked])
    y = np.log(taken / (parts @ weights_of_parts))
    scales, weights, left_out = _process(x, y)
    off = np.abs(left_out)
    good = off <= max(STRAY, 6 * float(np.median(off)))
    if not good.all() and good.sum() >= LEAST:
        x, y = x[good], y[good]
        scales, weights, left_out = _process(x, y)
    inside = y - left_out  # what the others say of each
    return Curve(
        parts=_digits(weights_of_parts),
        scales=_digits(scales),
        low=_digits(x.min(0)),
        high=_digits(x.max(0)),
        points=tuple(_digits(p) for p in x),
        weights=tuple(float(f"{v:.9g}") for v in weights),
        mean=float(np.median(y)),
        least=float(np.quantile(inside, EDGE)),
        most=float(np.quantile(inside, 1 - EDGE)),
        error=float(np.expm1(np.median(np.abs(left_out)))),
        samples=len(targets),
    )


def weigh(parts: Array, seconds: Array) -> Array:
    """Weights of the columns of ``parts`` whose sum comes nearest to ``seconds``, relatively.

    None is negative; where few chains tell columns apart they are held to one common factor. The
    wait for weights in a far level is held to 1: chains are too short to lie there.
    """
    lines = parts / seconds[:, None]
    common = float(np.median(1 / lines.sum(1)))
    # A weight moves a line by its share of it: what no line contains is held to the common factor.
    strength = HELD * (np.sqrt((lines * common).mean(0)) + 0.01)
    aim = np.full(lines.shape[1], common)
    strength[WEIGHTS_FAR], aim[WEIGHTS_FAR] = HELD_FAR, 1.0
    held = np.diag(strength) * math.sqrt(len(seconds))
    return _robust(lines, np.ones(len(seconds)), held / aim, held.diagonal())


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
