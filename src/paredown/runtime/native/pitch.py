"""Rows that matrix products read in place, an odd number of cache lines apart.

A tile of a product is one cache line of each of 16 rows, and six bits of an address choose where in
L1 its line may lie: with rows a power of two of lines apart all 16 want a few places, and push each
other and the weights out. One line more between rows spreads them over all places.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from paredown.runtime.native.plan import WIDTH, Plan, Step

LINE = 64
"""Bytes of a cache line."""
SHORTEST = 512
"""Bytes of a row that is worth a line more: shorter ones stand on enough places."""
TYPES = ("bfloat16", "uint8")
"""What tiles are made of."""
FEWEST = 16
"""Rows of a tile."""

_CONV = {"in": ("in_stride",), "out": ("out_stride",), "residual": ("residual_stride",)}
_HEADS = {x: (f"{x}_batch", f"{x}_head", f"{x}_row") for x in ("q", "k", "v", "out")}
_STRIDES: dict[str, tuple[dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    "gemm": ({"a": ("lda",), "c": ("ldc",), "residual": ("residual_stride",)}, ("k", "n")),
    "conv": (_CONV, ("c", "out_c")),
    "depthwise": (_CONV, ("c",)),
    "pool": (_CONV, ("c",)),
    "global_pool": ({"in": ("in_stride",), "out": ("out_stride",)}, ("c",)),
    "expand_depthwise": ({**_CONV, "expand_a": ("expand_lda",)}, ("c", "expand_k")),
    "mlp": (
        {"expand_a": ("expand_lda",), "c": ("ldc",), "residual": ("residual_stride",)},
        ("expand_k", "n"),
    ),
    "norm": ({x: (f"{x}_stride",) for x in ("in", "add", "sum", "out")}, ("cols",)),
    "eltwise": ({x: (f"{x}_stride",) for x in ("a", "b", "out")}, ("cols",)),
    "attention": (_HEADS, ("dim",)),
}
"""The fields of each operator that say how far apart its tensors' rows are, and how long."""
_READS = {("gemm", "a"): "", ("mlp", "expand_a"): "expand_"}
"""What products read by rows, and how the names of its fields begin."""


def spread(plan: Plan) -> None:
    """Move the rows of buffers that products read in place apart, where all their readers can."""
    uses: dict[str, list[tuple[Step, str]]] = defaultdict(list)
    for step in plan.steps:
        for name, t in step.tensors.items():
            uses[t.buffer].append((step, name))
    for buffer, users in uses.items():
        held = plan.buffers.get(buffer)
        if held is None or held.kind != "arena":
            continue
        columns = _columns(users)
        if columns is None or not all(_fits(step, name, columns) for step, name in users):
            continue
        width = WIDTH[users[0][0].tensors[users[0][1]].dtype]
        pitch = columns + LINE // width
        for step, name in users:
            _move(step, name, columns, pitch)
        held.nbytes = max(step.tensors[name].extent for step, name in users)


def _columns(users: list[tuple[Step, str]]) -> int | None:
    """The columns of the matrix that a product reads whole, if its rows should be moved."""
    for step, name in users:
        before = _READS.get((step.op, name))
        if before is None:
            continue
        lda, a_type, m, k = (step.fields[before + x] for x in ("lda", "a_type", "m", "k"))
        row = k * WIDTH[a_type]
        if a_type not in TYPES or m < FEWEST or lda != k:
            continue
        if row >= SHORTEST and row % (4 * LINE) == 0:
            return int(k)
    return None


def _fits(step: Step, name: str, columns: int) -> bool:
    """Whether a step reads or writes whole rows of ``columns``, or parts of them."""
    known = _STRIDES.get(step.op)
    if step.fallback is not None or known is None or name not in known[0]:
        return False
    t, strides = step.tensors[name], [step.fields.get(x, 0) for x in known[0][name]]
    inner = t.offset % columns
    for n, s in zip(t.shape, t.strides, strict=True):
        if n > 1 and s % columns:
            inner += (n - 1) * s
    long = any(step.fields.get(x, 0) > columns for x in known[1] if _of(step.op, name, x))
    return inner < columns and not long and all(s < columns or s % columns == 0 for s in strides)


def _of(op: str, name: str, length: str) -> bool:
    """Whether a field with the length of rows is that of this tensor."""
    if op == "gemm":
        return (length == "k") == (name == "a")
    if op == "mlp":
        return (length == "expand_k") == (name == "expand_a")
    if op in ("conv", "expand_depthwise"):
        return (length in ("c", "expand_k")) == (name in ("in", "expand_a"))
    return True


def _move(step: Step, name: str, columns: int, pitch: int) -> None:
    t = step.tensors[name]
    step.tensors[name] = replace(
        t,
        strides=tuple(_moved(s, columns, pitch) for s in t.strides),
        offset=t.offset // columns * pitch + t.offset % columns,
    )
    for x in _STRIDES[step.op][0][name]:
        if x in step.fields:
            step.fields[x] = _moved(step.fields[x], columns, pitch)


def _moved(stride: int, columns: int, pitch: int) -> int:
    return stride // columns * pitch if stride % columns == 0 else stride
