"""Steps merged into one kernel once the plan is whole: an expansion and its depthwise convolution.

The expanded tensor of an inverted residual (MobileNetV2, EfficientNet) is the largest of its block
and is read once: made a row at a time where it is needed, it is never in memory.
"""

from __future__ import annotations

from collections import Counter

from paredown.runtime.native.plan import Plan, Step

NARROWEST = 14
"""Pixels of a row: of fewer, a block of rows of the product is mostly empty."""


def merge(plan: Plan) -> None:
    """Merge every 1 x 1 convolution whose result only the depthwise one behind it reads."""
    uses = Counter(t.buffer for s in plan.steps for t in s.tensors.values())
    uses.update(t.buffer for t in plan.outputs)
    steps: list[Step] = []
    for step in plan.steps:
        if steps and _fits(plan, steps[-1], step, uses):
            step = _merged(steps.pop(), step)
        steps.append(step)
    plan.steps = steps


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
