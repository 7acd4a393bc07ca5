"""Quality figures: the paired drop of a score with its bootstrap interval, and fidelity."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from paredown.blame import blame
from paredown.errors import InputError, ParedownError
from paredown.figure import Figure, measured
from paredown.runs import Loop
from paredown.workload import Evaluate, Scores

RESAMPLES = 2000


def scores(value: Scores, *, who: str = "evaluate") -> float | np.ndarray:
    """What a judge returned, checked: a float, or a 1-D float64 array of per-example scores.

    Raises ``InputError`` for NaN, infinities, empty or higher-dimensional answers.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{who} must return a float or one score per example, got {type(value).__name__}"
        ) from None
    if array.ndim > 1:
        raise InputError(
            f"{who} must return a float or one score per example, "
            f"got an array of shape {array.shape}"
        )
    if array.size == 0:
        raise InputError(f"{who} returned no scores: its examples are empty")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        many = f"{bad} NaN or infinite of {array.size} scores"
        what = "NaN or infinity" if array.ndim == 0 else many
        raise InputError(f"{who} returned {what}")
    return float(array) if array.ndim == 0 else array


def judge(evaluate: Evaluate, model: nn.Module, *, who: str = "evaluate") -> float | np.ndarray:
    """Run ``evaluate`` or ``verify`` on a model, in eval mode without autograd; checked scores.

    Raises ``InputError``, one line with the user's own last line, when it raises.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            value = evaluate(model)
    except ParedownError:
        raise
    except Exception as e:
        raise InputError(f"{who} raised {blame(e)}") from e
    finally:
        model.train(training)
    return scores(value, who=who)


def score(value: Scores, *, who: str = "evaluate", seed: int = 0) -> Figure:
    """The mean score with its 95 % bootstrap interval (none for a single float)."""
    s = scores(value, who=who)
    if not isinstance(s, np.ndarray):
        return measured(s, "score")
    return measured(float(s.mean()), "score", spread=_interval(s, seed), n=s.size)


def drop(original: Scores, pared: Scores, *, seed: int = 0) -> Figure:
    """Original's score minus the pared one's, in score units: positive is a loss.

    Per-example scores are paired and resampled over examples (percentile bootstrap, 95 %, 2000
    draws, seeded); two floats give no interval. Raises ``InputError`` when they cannot be paired.
    """
    a, b = scores(original), scores(pared)
    if not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray):
        return measured(a - b, "score")
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        raise InputError("evaluate returned a float for one model and an array for the other")
    if a.shape != b.shape:
        raise InputError(
            f"evaluate returned {a.size} scores for the original and {b.size} for the "
            "pared network: it must judge the same examples"
        )
    d = a - b
    return measured(float(d.mean()), "score", spread=_interval(d, seed), n=d.size)


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean."""
    # Score differences take few distinct values (-1, 0, 1 for accuracy): a resample's mean depends
    # only on how often each is drawn, so one multinomial draw replaces n index draws.
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(values.size, counts / values.size, size=RESAMPLES)
    low, high = np.percentile(draws @ distinct / values.size, (2.5, 97.5))
    return float(low), float(high)


def split_by_hash(n: int, *, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Indices of ``n`` examples for the search and for the verdict, by a hash of the index.

    Used where a workload has ``evaluate`` but no ``verify``. The same index always falls on the
    same side, whatever ``n`` is; ``share`` is the expected share kept for the verdict. Both sides
    are non-empty from two examples on.
    """
    if n < 2:
        raise InputError(f"{n} example(s) cannot be split into search and verdict")
    u = np.array([int(hashlib.sha256(b"%d" % i).hexdigest()[:8], 16) / 2**32 for i in range(n)])
    held = u < share
    if held.all() or not held.any():
        held[0] = not held[0]
    return np.flatnonzero(~held), np.flatnonzero(held)


def fidelity(reference: Any, other: Any) -> float:
    """How near two outputs are, at most 1: top-1 agreement for logits, else 1 - relative error.

    Outputs are tensors or nested tuples, lists, mappings and dataclass-like outputs of them; the
    least faithful floating-point tensor counts. Logits are float tensors ``(..., classes)`` that a
    mapping or output names ``logits``, or a lone ``(batch, classes)`` tensor with 2 to 300,000
    classes. A NaN or infinity in ``other`` where the reference has none is fidelity 0.
    """
    a, b = dict(tensors(reference)), dict(tensors(other))
    if set(a) != set(b):
        raise InputError(f"outputs differ in structure: {sorted(set(a) ^ set(b))}")
    if not a:
        raise InputError("the model returns no tensor to compare")
    lone = len(a) == 1
    return min(_near(x, b[name], _logits(name, x, lone)) for name, x in a.items())


def tensors(output: Any, name: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    """Every tensor of a nested output by a dotted name."""
    if isinstance(output, torch.Tensor):
        yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(output, Sequence) and not isinstance(output, (str, bytes)):
        for i, value in enumerate(output):
            yield from tensors(value, f"{name}.{i}" if name else str(i))
    elif dataclasses.is_dataclass(output):
        for f in dataclasses.fields(output):
            yield from tensors(getattr(output, f.name), f"{name}.{f.name}" if name else f.name)


def agreement(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Share of positions whose largest class is the same, over the last axis."""
    return float((reference.argmax(-1) == other.argmax(-1)).double().mean())


def error(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Relative error ``||a - b|| / ||a||`` in float64; infinite where ``other`` is not finite."""
    a, b = reference.double(), other.double()
    same = (a == b) | (a.isnan() & b.isnan())
    d = torch.where(same, torch.zeros_like(a), a - b)
    norm = float(torch.where(a.isfinite(), a, torch.zeros_like(a)).norm())
    off = float(d.norm())
    if not math.isfinite(off):
        return math.inf
    return 0.0 if off == 0 else off / norm if norm > 0 else math.inf


def _logits(name: str, x: torch.Tensor, lone: bool) -> bool:
    if not x.is_floating_point() or x.ndim < 2 or not 2 <= x.shape[-1] <= 300_000:
        return False
    return name.rpartition(".")[2] == "logits" or (lone and x.ndim == 2)


def _near(a: torch.Tensor, b: torch.Tensor, logits: bool) -> float:
    if a.shape != b.shape:
        raise InputError(f"outputs differ in shape: {tuple(a.shape)} against {tuple(b.shape)}")
    if a.numel() == 0:
        return 1.0
    if not a.is_floating_point():
        return float((a == b).double().mean())
    e = error(a, b)
    if math.isinf(e):
        return 0.0
    return agreement(a, b) if logits else max(0.0, 1.0 - e)


def compare(
    reference: nn.Module,
    other: nn.Module,
    calls: Iterable[tuple[Any, Any]],
    *,
    loop: Loop | None = None,
) -> Figure:
    """Mean fidelity of two models over ``(args, kwargs)`` calls, with its 95 % interval.

    With a ``loop`` whole runs are compared; in a generation ``other`` is fed the reference's tokens
    (teacher forcing), so that the figure is the share of next tokens that agree.
    """
    each: list[float] = []
    with torch.inference_mode():
        for args, kwargs in calls:
            if loop is None:
                want, got = reference(*args, **kwargs), other(*args, **kwargs)
            else:
                want = loop.judged(reference, args, kwargs)
                got = loop.judged(reference, args, kwargs, call=other, like=want)
            each.append(fidelity(want, got))
    if not each:
        raise InputError("no inputs to compare outputs on")
    values = np.array(each)
    spread = _interval(values, 0) if len(each) > 1 else None
    return measured(float(values.mean()), "1", spread=spread, n=len(each))
