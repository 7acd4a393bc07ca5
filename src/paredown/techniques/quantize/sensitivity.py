"""Per-site sensitivity: what each site alone costs in output error on calibration data.

A search keeps the most sensitive sites in float (per-layer opt-out). Sites are tried one at a time
in an otherwise untouched model: the values rank sites, they do not add up to the joint error.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from paredown.errors import InputError
from paredown.technique import Sites, Technique
from paredown.workload import Workload


def sensitivity(
    workload: Workload, technique: Technique, sites: Sites, *, items: int = 8
) -> dict[str, float]:
    """Relative output error ``|y' - y| / |y|`` of rewriting each site of ``sites.ok`` alone.

    Means over the first ``items`` calibration inputs (the example inputs without calibration data),
    over all floating outputs. Decisions are taken once for all sites together; each site then costs
    one rewrite and ``items`` runs in eager. Raises ``InputError`` when the model's own output is
    not finite.
    """
    calls = list(islice(workload.calibration_inputs(), items))
    outputs = [_run(workload, call) for call in calls]
    before = [_floats(out) for out in outputs]
    if not all(bool(torch.isfinite(t).all()) for outputs in before for t in outputs):
        raise InputError(f"{workload.name} gives NaN or infinite outputs on calibration inputs")
    decisions = technique.decide(workload, sites)
    found: dict[str, float] = {}
    for site in sites.ok:
        over = {s: o for s, o in sites.overrides.items() if s == site}
        change = technique.rewrite(workload, Sites((site,), {}, over), decisions)
        errors = [
            relative_error(want, _floats(_run(change.workload, call, like)))
            for want, like, call in zip(before, outputs, calls, strict=True)
        ]
        found[site] = sum(errors) / len(errors)
    return found


def relative_error(want: list[Tensor], got: list[Tensor]) -> float:
    """``|got - want| / |want|`` over all tensors together; infinite when ``got`` is not finite."""
    pairs = zip(want, got, strict=True)
    off = sum(float((g.double() - w.double()).square().sum()) for w, g in pairs)
    size = sum(float(w.double().square().sum()) for w in want)
    if not off < float("inf"):
        return float("inf")
    return (off / size) ** 0.5 if size else off**0.5


def _run(workload: Workload, call: tuple[tuple[Any, ...], dict[str, Any]], like: Any = None) -> Any:
    was = workload.model.training
    workload.model.eval()
    with torch.inference_mode():
        out = workload.judged(call, like=like)
    workload.model.train(was)
    return out


def _floats(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
