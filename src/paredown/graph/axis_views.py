"""Axis rules of views, joins, splits and lookups: where axes split, merge and move."""

from __future__ import annotations

from paredown.graph.axes import Axis, Conflict, cut, factors, freeze, product, split_front, total
from paredown.graph.axis_rules import Tracker, arg, dims_of, rule, tid, unify
from paredown.graph.graph import Node


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "unsqueeze",
    "squeeze",
    "view_as",
    "reshape_as",
    "_reshape_alias",
    "_reshape_copy",
    "view_copy",
    "unsqueeze_copy",
    "squeeze_copy",
    "ravel",
)
def view(tr: Tracker, n: Node) -> None:
    """Factors flow, outermost first, from the old axes into the new ones."""
    flow = factors(product(tr.of(tid(n.args[0]))))
    out: list[Axis] = []
    for size in tr.shape(n.outputs[0]):
        taken: list[Axis] = []
        have = 1
        while have < size:
            f = flow[0]
            if size % (have * f.size) == 0:
                taken.append(f)
                have *= f.size
                flow = flow[1:]
            else:
                if size % have or f.size % (size // have):
                    raise Conflict(f"view mixes {f.size} into {size}")
                flow = split_front(f, size // have) + flow[1:]
        out.append(product(taken))
    tr.put(n.outputs[0], out)


@rule(
    "permute",
    "transpose",
    "t",
    "movedim",
    "swapaxes",
    "numpy_T",
    "permute_copy",
    "transpose_copy",
    "t_copy",
)
def permute(tr: Tracker, n: Node) -> None:
    """Axes in another order."""
    x = tr.of(tid(n.args[0]))
    name = n.op.rpartition("::")[2].removesuffix("_copy").rstrip("_")
    order = list(range(len(x)))
    if name == "permute":
        order = dims_of(n.args[1], len(x))
    elif name in ("transpose", "swapaxes"):
        i, j = n.args[1] % len(x), n.args[2] % len(x)
        order[i], order[j] = order[j], order[i]
    elif name in ("t", "numpy_T"):
        order.reverse()
    else:
        raise Conflict("not decomposed here")
    tr.put(n.outputs[0], [x[d] for d in order])


@rule("expand", "expand_copy")
def expand(tr: Tracker, n: Node) -> None:
    """Size-1 axes become new atoms: copies."""
    x, shape = tr.of(tid(n.args[0])), tr.shape(n.outputs[0])
    lead = len(shape) - len(x)
    tr.put(
        n.outputs[0],
        [
            x[j - lead] if j >= lead and x[j - lead].size == s else Axis(s)
            for j, s in enumerate(shape)
        ],
    )


@rule("repeat", "tile")
def repeat(tr: Tracker, n: Node) -> None:
    """Copies are an outer factor."""
    x, times = list(tr.of(tid(n.args[0]))), [int(r) for r in n.args[1]]
    x = [Axis(1) for _ in range(len(times) - len(x))] + x
    tr.put(
        n.outputs[0], [product([Axis(r), a]) if r > 1 else a for r, a in zip(times, x, strict=True)]
    )


@rule("repeat_interleave")
def repeat_interleave(tr: Tracker, n: Node) -> None:
    """Copies are an inner factor."""
    x = list(tr.of(tid(n.args[0])))
    d = arg(n, 2, "dim")
    if not isinstance(n.args[1], int) or d is None:
        raise Conflict("repeats by data")
    x[d] = product([x[d], Axis(n.args[1])])
    tr.put(n.outputs[0], x)


@rule("cat", "concat", "concatenate")
def cat(tr: Tracker, n: Node) -> None:
    """Segments one after the other; the other axes agree."""
    ids = [tid(r) for r in n.args[0]]
    xs = [tr.of(i) for i in ids if tr.shape(i) != (0,)]
    d = int(arg(n, 1, "dim", 0)) % len(xs[0])
    for x in xs[1:]:
        for j in range(len(x)):
            if j != d:
                unify(xs[0][j], x[j])
    out = list(xs[0])
    out[d] = total([x[d] for x in xs])
    tr.put(n.outputs[0], out)


@rule("stack")
def stack(tr: Tracker, n: Node) -> None:
    """Equal tensors along a new axis."""
    xs = [tr.of(tid(r)) for r in n.args[0]]
    for x in xs[1:]:
        for p, q in zip(xs[0], x, strict=True):
            unify(p, q)
    d = int(arg(n, 1, "dim", 0)) % (len(xs[0]) + 1)
    out = list(xs[0])
    out.insert(d, tr.fixed(len(xs), "stacked tensors"))
    tr.put(n.outputs[0], out)


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
    "split_copy",
    "split_with_sizes_copy",
)
def split(tr: Tracker, n: Node) -> None:
    """Each output is a stretch of the axis."""
    x, d, at = tr.of(tid(n.args[0])), int(arg(n, 2, "dim", 0)), 0
    for out in n.outputs:
        size = tr.shape(out)[d]
        piece = list(x)
        piece[d] = cut(x[d], at, at + size)
        at += size
        tr.put(out, piece)


@rule("unbind", "unbind_copy")
def unbind(tr: Tracker, n: Node) -> None:
    """One output per index: that axis stays."""
    x = list(tr.of(tid(n.args[0])))
    d = int(arg(n, 1, "dim", 0)) % len(x)
    freeze(x[d], "taken apart index by index")
    for out in n.outputs:
        tr.put(out, x[:d] + x[d + 1 :])


@rule("select", "select_copy")
def select(tr: Tracker, n: Node) -> None:
    """One index of an axis: that axis stays."""
    x, d = list(tr.of(tid(n.args[0]))), int(n.args[1])
    freeze(x[d], "a fixed index of it is read")
    del x[d]
    tr.put(n.outputs[0], x)


@rule("slice", "narrow", "slice_copy", "narrow_copy")
def slice_(tr: Tracker, n: Node) -> None:
    """A stretch of an axis; with a step the axis stays."""
    x = list(tr.of(tid(n.args[0])))
    d = int(arg(n, 1, "dim", 0)) % len(x)
    size, out = x[d].size, tr.shape(n.outputs[0])[d]
    start = arg(n, 2, "start", 0) or 0
    start = min(start + size if start < 0 else start, size)
    if int(arg(n, 4, "step", 1)) != 1:
        freeze(x[d], "read with a step")
        x[d] = tr.fixed(out, "read with a step")
    else:
        x[d] = cut(x[d], start, start + out)
    tr.put(n.outputs[0], x)


@rule("as_strided")
def as_strided(tr: Tracker, n: Node) -> None:
    """Only where it merely sets strides."""
    x = tr.of(tid(n.args[0]))
    if tr.shape(n.outputs[0]) != tuple(a.size for a in x):
        raise Conflict("strides over the raw storage")
    tr.put(n.outputs[0], list(x))


@rule("embedding")
def embedding(tr: Tracker, n: Node) -> None:
    """Rows are picked by data; columns are channels."""
    w, i = tr.of(tid(n.args[0])), tr.of(tid(n.args[1]))
    freeze(w[0], "rows of a table indexed by data")
    tr.put(n.outputs[0], [*i, w[1]])


@rule("index_select")
def index_select(tr: Tracker, n: Node) -> None:
    """The indexed axis stays, the others pass."""
    x, d = list(tr.of(tid(n.args[0]))), int(n.args[1])
    freeze(x[d], "indexed by data")
    x[d] = tr.fixed(tr.shape(n.outputs[0])[d], "indexed by data")
    tr.put(n.outputs[0], x)


@rule("index", "_unsafe_index")
def index(tr: Tracker, n: Node) -> None:
    """Indexed axes stay; when they are neighbours the others pass in order."""
    x = tr.of(tid(n.args[0]))
    which = [d for d, r in enumerate(n.args[1]) if r is not None]
    if which != list(range(which[0], which[-1] + 1)):
        raise Conflict("indexed on separate axes")
    for d in which:
        freeze(x[d], "indexed by data")
    shape = tr.shape(n.outputs[0])
    count = len(shape) - (len(x) - len(which))
    new = [tr.fixed(s, "indexed by data") for s in shape[which[0] : which[0] + count]]
    tr.put(n.outputs[0], [*x[: which[0]], *new, *x[which[-1] + 1 :]])


@rule(
    "gather",
    "scatter",
    "scatter_add",
    "index_add",
    "index_copy",
    "index_put",
    "topk",
    "sort",
    "masked_scatter",
    "slice_scatter",
    "select_scatter",
)
def picks(tr: Tracker, n: Node) -> None:
    """Positions picked by data along one axis: axes of equal size elsewhere pass, that one
    stays.
    """
    x = tr.of(tid(n.args[0]))
    topk = n.op.rpartition("::")[2] in ("topk", "sort")
    d = arg(n, 2, "dim", -1) if topk else arg(n, 1, "dim")
    if not isinstance(d, int):
        raise Conflict("picked by data")
    freeze(x[d], "picked by data")
    for t in n.inputs[1:]:
        for a in tr.of(t):
            freeze(a, "picked by data")
    for out in n.outputs:
        axes = list(x)
        axes[d] = tr.fixed(tr.shape(out)[d], "picked by data")
        tr.put(
            out,
            [
                a if a.size == s else tr.fixed(s, "picked by data")
                for a, s in zip(axes, tr.shape(out), strict=True)
            ],
        )


@rule(
    "arange",
    "zeros",
    "ones",
    "full",
    "empty",
    "scalar_tensor",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "randn",
    "rand",
    "tril",
    "triu",
    "eye",
    "linspace",
    "tril_indices",
    "randint",
    "empty_strided",
    "new_empty_strided",
    "tril",
    "triu",
    "normal",
    "randperm",
    "zeros_",
)
def creation(tr: Tracker, n: Node) -> None:
    """New tensors have the size that the code said."""
    for out in n.outputs:
        tr.put(out, [tr.fixed(s, "made with a fixed size") for s in tr.shape(out)])
