"""A plan as a document: what is fused, where tensors lie, who shares the work."""

from __future__ import annotations

from typing import Any

from paredown.result import NativePlanDoc, NativeStep, TensorInfo
from paredown.runtime.native import views
from paredown.runtime.native.plan import Plan, Tensor


def document(executable: Any, target: str) -> NativePlanDoc:
    """The document of a native executable."""
    plan: Plan = executable.plan
    engine = executable.runner.engine
    parts = iter(engine.units)
    steps = [
        NativeStep(
            op=str(s.fields["target"]) if s.fallback is not None else s.op,
            site=s.site,
            fused=s.fused,
            precision=s.precision,
            reads=[_place(plan, t) for name, t in s.tensors.items() if name not in s.writes]
            + [f"{field} {name}" for field, name in s.constants.items()],
            writes=[_place(plan, s.tensors[name]) for name in s.writes],
            units=1 if s.fallback is not None else int(next(parts)),
            fallback=s.fallback,
        )
        for s in plan.steps
    ]
    return NativePlanDoc(
        target=target,
        isa=executable.isa,
        threads=executable.threads,
        inputs=executable.call.inputs,
        outputs=[
            TensorInfo(name=str(i), shape=list(t.shape), dtype=t.dtype)
            for i, t in enumerate(plan.outputs)
        ],
        steps=steps,
        arena_bytes=plan.arena_bytes,
        lower_bound_bytes=plan.lower_bound,
        scratch_bytes=int(engine.scratch_bytes),
        weight_bytes=executable.weight_bytes(),
        build_s=executable.compile_s,
    )


def _place(plan: Plan, t: Tensor) -> str:
    """``arena+4096 1x56x56x64 nhwc float32``: where it begins, in bytes, and how it lies."""
    b = plan.buffers.get(t.buffer)
    if b is None:
        where = t.buffer
    elif b.kind == "arena":
        where = f"arena+{b.offset}"
    else:
        where = f"{b.kind}{b.index}"
    shape = "x".join(map(str, t.shape)) or "scalar"
    return f"{where} {shape} {layout(t)} {t.dtype}"


def layout(t: Tensor) -> str:
    """``rows`` for row-major, ``nhwc``, ``view`` for a part, rows apart or another order."""
    if len(t.shape) == 4 and t.shape[1] > 1 and views.pixels(t) is not None:
        dense = t.strides == views.channels_last(t.shape)
        return "nhwc" if dense and t.offset == 0 else "nhwc-slice"
    plain = all(
        n == 1 or a == b
        for n, a, b in zip(t.shape, t.strides, views.contiguous(t.shape), strict=True)
    )
    return "rows" if plain and t.offset == 0 else "view"
