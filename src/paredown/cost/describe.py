"""What the time of an operator depends on: the group it is learned in, and its sizes as logarithms.

Values are ``log2(1 + x)`` of counts and bytes, and 0 or 1 for layouts, so that distances between
operators are ratios. Shapes and strides alone are read: the same operator written down by another
front end is described alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2, prod

from paredown.cost.execution import Run
from paredown.cost.tables import executed_dtype
from paredown.graph.graph import Graph, Tensor

MATRICES = frozenset({"conv", "depthwise", "linear", "matmul", "attention", "recurrent"})
"""Kinds that are one group each; operators of other kinds are learned by name."""


@dataclass(frozen=True, slots=True)
class Described:
    """``group`` is ``kind[:operator]/dtype``; ``values`` have a length of their own for a kind."""

    group: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Operands:
    """The tensors of a node, empty ones left out: the first input stands for all where none is."""

    ins: tuple[Tensor, ...]
    out: Tensor


def describe(run: Run, graph: Graph) -> Described | None:
    """The description of a run; None for one that takes or makes no tensor."""
    node = run.node
    ins = tuple(t for i in node.inputs if prod((t := graph.tensors[i]).shape))
    outs = tuple(t for i in node.outputs if prod((t := graph.tensors[i]).shape))
    if not outs:
        return None
    operands = _Operands(ins or outs[:1], outs[0])
    kind = run.kind
    if kind in ("linear", "matmul") and len(ins) > 1:
        kind = "linear" if run.weight_bytes else "matmul"
        values = _product(operands)
    elif kind == "conv" and len(ins) > 1 and _widened(operands):
        kind, values = "deconv", _conv(operands)
    elif kind in _SIZES and len(ins) > (1 if kind in MATRICES else 0):
        values = _SIZES[kind](operands)
    else:
        values = _moved(operands)
    if kind == "elementwise" or kind not in MATRICES:
        # Results may take the place of an operand, which touches no new memory.
        fresh = graph.storages[operands.out.storage].created == node.index
        values = (*values, float(fresh))
    name = node.op.partition("::")[2].strip("_")
    own = kind if kind in (*MATRICES, "deconv") else f"{kind}:{name}"
    return Described(f"{own}/{executed_dtype(run.dtype)}", values)


def pooled(group: str) -> str:
    """The group of a whole kind, which stands in for operators nobody timed by name."""
    kind, _, dtype = group.rpartition("/")
    return f"{kind.partition(':')[0]}/{dtype}"


def _log(x: float) -> float:
    return log2(1 + x)


def _last(t: Tensor) -> float:
    """1 where channels are the fastest dimension of an image."""
    if t.strides is None or len(t.shape) < 4 or t.shape[1] == 1:
        return 0.0
    return float(t.strides[1] == 1 and prod(t.shape[2:]) > 1)


def _plain(t: Tensor) -> float:
    """1 where the last dimension lies in one piece."""
    return float(t.strides is None or not t.strides or t.strides[-1] == 1)


def _widened(o: _Operands) -> bool:
    return prod(o.out.shape[2:]) > prod(o.ins[0].shape[2:])


def _conv(o: _Operands) -> tuple[float, ...]:
    x, w, out = o.ins[0], o.ins[1], o.out
    pixels, area = prod(out.shape[2:]), prod(w.shape[2:])
    groups = max(x.shape[1] // max(w.shape[1], 1), 1)
    return (
        _log(out.shape[0] * pixels),
        _log(w.shape[1]),
        _log(w.shape[0] / groups),
        _log(groups),
        _log(area),
        _log(prod(x.shape[2:]) / pixels),
        _log(out.shape[0]),
        _last(x),
    )


def _depthwise(o: _Operands) -> tuple[float, ...]:
    x, w, out = o.ins[0], o.ins[1], o.out
    pixels = prod(out.shape[2:])
    return (
        _log(pixels),
        _log(out.shape[0]),
        _log(out.shape[1]),
        _log(prod(w.shape[2:])),
        _log(max(w.shape[2:]) / min(w.shape[2:])),
        _log(prod(x.shape[2:]) / pixels),
        _last(x),
    )


def _product(o: _Operands) -> tuple[float, ...]:
    """The last two inputs are the factors; an added term stands before them (``addmm``)."""
    matrices = [t for t in o.ins if len(t.shape) > 1] or list(o.ins)
    a, b = (matrices[0], matrices[-1])
    batch = prod(o.out.shape[:-2]) if len(b.shape) > 2 else 1
    rows = prod(o.out.shape[:-1]) // batch
    return (
        _log(batch),
        _log(rows),
        _log(a.shape[-1]),
        _log(o.out.shape[-1]),
        _plain(a),
        _plain(b),
    )


def _attention(o: _Operands) -> tuple[float, ...]:
    q, k = o.ins[0], o.ins[1]
    masked = len(o.ins) > 3
    return (
        _log(prod(q.shape[:-2])),
        _log(q.shape[-2]),
        _log(k.shape[-2]),
        _log(q.shape[-1]),
        float(masked),
        _plain(q),
    )


def _recurrent(o: _Operands) -> tuple[float, ...]:
    x, out = o.ins[0], o.out
    return (_log(x.shape[0]), _log(prod(x.shape[1:-1])), _log(x.shape[-1]), _log(out.shape[-1]))


def _elementwise(o: _Operands) -> tuple[float, ...]:
    read = sum(prod(t.shape) for t in o.ins)
    strides = {t.strides for t in (*o.ins, o.out) if prod(t.shape) == prod(o.out.shape)}
    return (_log(prod(o.out.shape)), read / prod(o.out.shape), float(len(strides) > 1))


def _rows(o: _Operands) -> tuple[float, ...]:
    """Norms and softmax: elements, and those of the last dimension."""
    x = o.ins[0]
    return (_log(prod(x.shape)), _log(x.shape[-1]), _log(x.shape[0]), _last(x))


def _reduced(o: _Operands) -> tuple[float, ...]:
    x = o.ins[0]
    inner = not o.out.shape or o.out.shape[-1] != x.shape[-1]
    return (_log(prod(x.shape)), _log(prod(x.shape) / prod(o.out.shape)), float(inner), _plain(x))


def _pooled(o: _Operands) -> tuple[float, ...]:
    x = o.ins[0]
    return (_log(prod(o.out.shape)), _log(prod(x.shape) / prod(o.out.shape)), _last(x))


def _moved(o: _Operands) -> tuple[float, ...]:
    """Copies and gathers: bytes made, the share that is read, the length of a piece in one."""
    x, out = max(o.ins, key=lambda t: t.nbytes), o.out
    return (_log(out.nbytes), _log(x.nbytes / out.nbytes), _log(_piece(x, out)))


def _piece(x: Tensor, out: Tensor) -> int:
    """Elements that lie side by side both where they come from and where they go."""
    if x.strides is None or out.strides is None or x.shape != out.shape:
        return out.shape[-1] if out.shape and _plain(x) else 1
    length = 1
    for size, a, b in zip(
        reversed(x.shape), reversed(x.strides), reversed(out.strides), strict=True
    ):
        if size > 1 and (a != length or b != length):
            break
        length *= size
    return length


_SIZES: dict[str, Callable[[_Operands], tuple[float, ...]]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "attention": _attention,
    "recurrent": _recurrent,
    "elementwise": _elementwise,
    "norm": _rows,
    "reduction": _reduced,
    "pool": _pooled,
}
