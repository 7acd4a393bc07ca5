"""Steps merged into one kernel once the plan is whole: three pairs, a tensor less to read for each.

The expanded tensor of an inverted residual (MobileNetV2, EfficientNet) is the largest of its block
and is read once: made a row at a time where it is needed, it is never in memory. A sum and the norm
behind it read the same rows: the norm adds them itself, and writes the sum for who else needs it.
The third pair is that of an MLP's products (`mlp`).
"""

from __future__ import annotations

from collections import Counter

import torch

from paredown.runtime.native import mlp
from paredown.runtime.native.builder import FLOATS
from paredown.runtime.native.plan import Plan, Step

NARROWEST = 14
"""Pixels of a row: of fewer, a block of rows of the product is mostly empty."""


def merge(plan: Plan, weights: dict[str, torch.Tensor]) -> None:
    """Merge expansions with their depthwise convolution, products of MLPs, and sums with norms."""
    uses = Counter(t.buffer for s in plan.steps for t in s.tensors.values())
    uses.update(t.buffer for t in plan.outputs)
    steps: list[Step] = []
    for step in plan.steps:
        if steps and _fits(plan, steps[-1], step, uses):
            step = _merged(steps.pop(), step)
        elif steps and mlp.pays(plan, steps[-1], step, uses, weights):
            step = mlp.merged(steps.pop(), step)
        elif steps and _sums(steps[-1], step, weights):
            step = _summing(steps.pop(), step)
        steps.append(step)
    plan.steps = steps


def _sums(total: Step, norm: Step, weights: dict[str, torch.Tensor]) -> bool:
    """Whether a norm can add what an elementwise step before it adds, row by row."""
    if total.op != "eltwise" or norm.op != "norm" or "b" not in total.tensors:
        return False
    e, n, out, read = total.fields, norm.fields, total.tensors["out"], norm.tensors["in"]
    rows = total.constants.get("a_rows")
    plain = e["op"] == "add" and e.get("act", "none") == "none" and e["b_col"] == 1 == e["b_rows"]
    types = {e["a_type"], e["b_type"], e["out_type"], n["in_type"]}
    return (
        plain
        and len(types) == 1
        and types < set(FLOATS)
        and (out.buffer, out.offset) == (read.buffer, read.offset)
        and (e["rows"], e["cols"], e["out_stride"]) == (n["rows"], n["cols"], n["in_stride"])
        and "add" not in norm.tensors
        and "in_rows" not in norm.constants
        # A norm makes zeros where a table names no row, the sum would be the other operand.
        and (rows is None or int(weights[rows].min()) >= 0)
    )


def _summing(total: Step, norm: Step) -> Step:
    """The norm of both, which writes the sum beside its result."""
    t, e = total.tensors, total.fields
    rows = total.constants.get("a_rows")
    strides = {
        "in_stride": e["a_stride"],
        "add_stride": e["b_stride"],
        "sum_stride": e["out_stride"],
    }
    return Step(
        "norm",
        norm.site,
        norm.tensors | {"in": t["a"], "add": t["b"], "sum": t["out"]},
        ("out", "sum"),
        norm.constants | ({"in_rows": rows} if rows is not None else {}),
        norm.fields | strides,
        total.fused + norm.fused,
        norm.precision,
    )


def _fits(plan: Plan, expand: Step, depthwise: Step, uses: Counter[str]) -> bool:
    if expand.op != "gemm" or depthwise.op != "depthwise" or "residual" in expand.tensors:
        return False
    out, read = expand.tensors["c"], depthwise.tensors["in"]
    e, d = expand.fields, depthwise.fields
    buffer = plan.buffers.get(out.buffer)
    return (
        out.buffer == read.buffer
        and buffer is not None
        and buffer.kind == "arena"
        and uses[out.buffer] == 2
        and (out.offset, out.dtype) == (read.offset, read.dtype)
        and e["m"] == d["n"] * d["h"] * d["width"]
        and e["n"] == e["ldc"] == d["c"] == d["in_stride"]
        and d.get("kh", 1) * d.get("kw", 1) > 1
        and d["width"] >= NARROWEST
    )


def _merged(expand: Step, depthwise: Step) -> Step:
    """Both as one step, the fields of the first under ``expand_``."""
    first = {f"expand_{k}": v for k, v in expand.fields.items()}
    part = {
        "site": expand.site,
        "op": expand.op,
        "precision": expand.precision,
        "weight": expand.weight or "",
    }
    return Step(
        "expand_depthwise",
        depthwise.site,
        {"expand_a": expand.tensors["a"]}
        | {k: t for k, t in depthwise.tensors.items() if k != "in"},
        depthwise.writes,
        {f"expand_{k}": c for k, c in expand.constants.items()} | depthwise.constants,
        first | depthwise.fields,
        expand.fused + depthwise.fused,
        depthwise.precision,
        depthwise.role,
        depthwise.weight,
        parts=[part],
    )
