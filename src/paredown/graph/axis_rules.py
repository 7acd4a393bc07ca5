"""How each operator ties the axes of its tensors: the table behind the dependency groups.

A rule reads axes of the inputs from a `Tracker` and sets those of the outputs. An operator without a
rule freezes every atom it touches, with its name as the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from paredown.graph.axes import Axis, Conflict, cut, factors, freeze, product, split_front, total
from paredown.graph.axes import unify as _unify
from paredown.graph.graph import Graph, Node, Ref

HEAD_DIM = "head dimension: attention scales by its size"

Rule = Callable[["Tracker", Node], None]
RULES: dict[str, Rule] = {}


class Tracker:
    """Axes of every tensor of a graph, made on first sight and refined by the rules."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.axes: dict[int, list[Axis]] = {}
        self.weightlike: set[int] = set()
        self.caches: set[int] = set()
        """Tensors that attention reads as keys or values: a cache of them is no fixed output."""
        self.normed: set[int] = set()
        """Ids of axes that a layer normalisation runs over."""

    def of(self, tensor: int) -> list[Axis]:
        """The axes of a tensor; a tensor from before the run gets fresh ones."""
        if tensor not in self.axes:
            t = self.graph.tensors[tensor]
            why = {"input": "model input", "constant": "made with a fixed size"}.get(t.kind)
            if t.kind == "intermediate":
                why = "made by an operator that was not recorded"
            self.axes[tensor] = [Axis(n, frozen=why if n > 1 else None) for n in t.shape]
            if t.kind in ("parameter", "buffer"):
                self.weightlike.add(tensor)
        return self.axes[tensor]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The recorded shape of a tensor."""
        return self.graph.tensors[tensor].shape

    def put(self, tensor: int, axes: list[Axis]) -> None:
        """Set a tensor's axes; raises ``Conflict`` when they do not have its shape."""
        if tuple(a.size for a in axes) != self.shape(tensor):
            raise Conflict(f"rule gave {[a.size for a in axes]}, the run {list(self.shape(tensor))}")
        self.axes[tensor] = axes

    def fixed(self, size: int, why: str) -> Axis:
        """A fresh axis that may not be cut."""
        return Axis(size, frozen=why)


def walk(tracker: Tracker) -> None:
    """Run every rule in order; conflicts and unknown operators freeze what they touch."""
    for node in tracker.graph.nodes:
        name = node.op.rpartition("::")[2].rstrip("_")
        if name.startswith("_") and name not in RULES and name.lstrip("_") in RULES:
            name = name.lstrip("_")
        rule = RULES.get(name) if node.op.startswith("aten::") else RULES.get(node.op)
        where = f" at {node.line}" if node.line else ""
        if rule is None:
            _give_up(tracker, node, f"{node.op}{where} has no dependency rule")
            continue
        try:
            rule(tracker, node)
            if any(t not in tracker.axes for t in node.outputs):
                raise Conflict("an output was left without axes")
        except (Conflict, IndexError, TypeError, AttributeError) as e:
            _give_up(tracker, node, f"{node.op}{where}: {e}")
            continue
        if node.inputs and all(i in tracker.weightlike for i in node.inputs):
            tracker.weightlike.update(node.outputs)


def _give_up(tracker: Tracker, node: Node, reason: str) -> None:
    for t in node.inputs:
        for a in tracker.of(t):
            freeze(a, reason)
    for t in node.outputs:
        tracker.axes[t] = [tracker.fixed(n, reason) for n in tracker.shape(t)]


# -- helpers ----------------------------------------------------------------------------------------


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operator names (``aten`` left out)."""

    def add(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, f))
        return f

    return add


def arg(node: Node, i: int, name: str, default: Any = None) -> Any:
    """A positional or keyword argument of a node."""
    if i < len(node.args):
        return node.args[i]
    return node.kwargs.get(name, default)


def tid(value: Any) -> int:
    """The tensor id of an argument that must be a tensor."""
    if not isinstance(value, Ref):
        raise Conflict("expected a tensor argument")
    return value.tensor


def unify(a: Axis, b: Axis) -> None:
    """Unify two axes; on a conflict both are frozen and the walk goes on."""
    try:
        _unify(a, b)
    except Conflict as e:
        freeze(a, str(e))
        freeze(b, str(e))


def _dims(dim: Any, ndim: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(ndim))
    return [d % ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


# -- pointwise --------------------------------------------------------------------------------------

POINTWISE = [
    "abs", "acos", "acosh", "add", "addcdiv", "addcmul", "alias", "angle", "asin", "atan", "atan2",
    "bernoulli", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "ceil", "celu", "clamp",
    "clamp_max", "clamp_min", "clone", "contiguous", "copy", "cos", "cosh", "detach", "div",
    "dropout", "elu", "eq", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "feature_dropout",
    "fill", "floor", "floor_divide", "fmax", "fmin", "fmod", "frac", "ge", "gelu", "gt",
    "hardsigmoid", "hardswish", "hardtanh", "isfinite", "isinf", "isnan", "le", "leaky_relu",
    "lerp", "lift", "lift_fresh", "lift_fresh_copy", "log", "log10", "log1p", "log2", "log_sigmoid",
    "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "masked_fill",
    "maximum", "minimum", "mish", "mul", "nan_to_num", "ne", "neg", "ones_like", "pow", "rand_like",
    "randn_like", "real", "reciprocal", "relu", "relu6", "remainder", "round", "rrelu", "rsqrt",
    "rsub", "selu", "sigmoid", "sign", "silu", "sin", "sinh", "softplus", "softshrink", "softsign",
    "sqrt", "square", "sub", "subtract", "multiply", "divide", "tan", "tanh", "threshold", "to",
    "to_copy", "true_divide", "trunc", "type_as", "where", "xlogy", "zero", "zeros_like",
    "empty_like", "full_like", "prelu_kernel", "fake_quantize_per_tensor_affine", "native_dropout",
    "expand_as",
]


@rule(*POINTWISE)
def pointwise(tr: Tracker, n: Node) -> None:
    """Broadcast all tensors; axes larger than 1 that meet are one."""
    for out in n.outputs:
        shape = tr.shape(out)
        axes: list[Axis] = [Axis(1) for _ in shape]
        for t in n.inputs:
            for k, a in enumerate(reversed(tr.of(t))):
                j = len(shape) - 1 - k
                if a.size == 1 or j < 0:
                    continue
                if axes[j].size == 1:
                    axes[j] = a
                else:
                    unify(axes[j], a)
        tr.put(out, [a if a.size == s else Axis(s) for a, s in zip(axes, shape, strict=True)])


@rule("fake_quantize_per_channel_affine")
def _per_channel(tr: Tracker, n: Node) -> None:
    x, axis = tid(n.args[0]), int(arg(n, 3, "axis"))
    for i in (1, 2):
        unify(tr.of(tid(n.args[i]))[0], tr.of(x)[axis])
    tr.put(n.outputs[0], list(tr.of(x)))


@rule("_prelu_kernel", "prelu")
def _prelu(tr: Tracker, n: Node) -> None:
    x, w = tid(n.args[0]), tid(n.args[1])
    wide = [a for a in tr.of(w) if a.size > 1]
    if wide:
        unify(wide[0], tr.of(x)[1])
    tr.put(n.outputs[0], list(tr.of(x)))


# -- products of matrices ---------------------------------------------------------------------------


@rule("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "dot", "addmv")
def matmul(tr: Tracker, n: Node) -> None:
    """Contraction ties the inner axes; between two activations they are a head's size."""
    name = n.op.rpartition("::")[2]
    refs = [tid(a) for a in n.args if isinstance(a, Ref)]
    bias: int | None = None
    if name in ("addmm", "baddbmm", "addmv"):
        bias, a, b = refs[0], refs[1], refs[2]
    else:
        a, b = refs[0], refs[1]
    xa, xb = list(tr.of(a)), list(tr.of(b))
    if name == "linear":
        xb = [xb[1], xb[0]] if len(xb) == 2 else xb
        bias = refs[2] if len(refs) > 2 else None
    unify(xa[-1], xb[-2] if len(xb) > 1 else xb[0])
    if a not in tr.weightlike and b not in tr.weightlike:
        freeze(xa[-1], HEAD_DIM)
        if len(xb) > 1:
            freeze(xb[-1], HEAD_DIM)
        tr.caches.update((a, b))
    lead_a, lead_b = xa[:-2], xb[:-2]
    lead: list[Axis] = []
    for k in range(max(len(lead_a), len(lead_b))):
        p = lead_a[len(lead_a) - 1 - k] if k < len(lead_a) else Axis(1)
        q = lead_b[len(lead_b) - 1 - k] if k < len(lead_b) else Axis(1)
        if p.size > 1 and q.size > 1:
            unify(p, q)
        lead.insert(0, p if p.size > 1 else q)
    out = lead + (xa[-2:-1] if len(xa) > 1 else []) + (xb[-1:] if len(xb) > 1 else [])
    if bias is not None:
        for p, q in zip(reversed(tr.of(bias)), reversed(out), strict=False):
            if p.size > 1:
                unify(p, q)
    tr.put(n.outputs[0], out)


@rule("convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
      "conv_transpose3d")
def conv(tr: Tracker, n: Node) -> None:
    """Channels through a convolution; depthwise ties input to output, groups stay as many."""
    name = n.op.rpartition("::")[2]
    if name == "convolution":
        transposed, groups = bool(n.args[6]), int(n.args[8])
    else:
        transposed = "transpose" in name
        groups = int(arg(n, 7 if transposed else 6, "groups", 1)) if not transposed else int(
            arg(n, 6, "groups", 1))
    x, w = tr.of(tid(n.args[0])), tr.of(tid(n.args[1]))
    bias = arg(n, 2, "bias")
    at = len(x) - (len(w) - 1)
    w_out, w_in = (w[1], w[0]) if transposed else (w[0], w[1])
    if groups == 1:
        unify(x[at], w_in)
        out = w_out
    elif transposed or w_in.size > 1 or groups != x[at].size:
        out = _grouped(x[at], w_in, w_out, groups, transposed)
    elif w_out.size == groups:
        unify(x[at], w_out)
        out = w_out
    else:
        multiple = Axis(w_out.size // groups, frozen="channel multiplier of a depthwise convolution")
        unify(w_out, product([x[at], multiple]))
        out = w_out
    for k in w[2:]:
        freeze(k, "kernel size")
    if isinstance(bias, Ref):
        unify(tr.of(bias.tensor)[0], out)
    spatial = tr.shape(n.outputs[0])[at + 1 :]
    tr.put(n.outputs[0], [*x[:at], out, *(tr.fixed(s, "spatial size") for s in spatial)])


def _grouped(x: Axis, w_in: Axis, w_out: Axis, groups: int, transposed: bool) -> Axis:
    g = Axis(groups, frozen="number of groups of a grouped convolution")
    if not transposed:
        unify(x, product([g, w_in]))
        unify(w_out, product([g, Axis(w_out.size // groups)]))
        return w_out
    unify(x, w_in)
    unify(w_in, product([g, Axis(w_in.size // groups)]))
    return product([g, w_out])


# -- attention --------------------------------------------------------------------------------------


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
      "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_attention_math_for_mps")
def attention(tr: Tracker, n: Node) -> None:
    """``(batch, heads, tokens, head size)``; fewer key heads than query heads are tied in groups."""
    ids = [tid(a) for a in n.args[:3]]
    q, k, v = (tr.of(i) for i in ids)
    tr.caches.update(ids[1:])
    unify(q[-1], k[-1])
    for x in (q, k, v):
        freeze(x[-1], HEAD_DIM)
    unify(k[-2], v[-2])
    for j in range(len(q) - 2):
        unify(k[j], v[j])
        if q[j].size == k[j].size:
            unify(q[j], k[j])
        elif q[j].size > 1 and k[j].size > 1:
            unify(q[j], product([k[j], Axis(q[j].size // k[j].size)]))
    mask = arg(n, 3, "attn_mask") if n.op.endswith("attention") else n.kwargs.get("attn_mask")
    if isinstance(mask, Ref):
        for m, a in zip(reversed(tr.of(mask.tensor)), reversed([*q[:-1], k[-2]]), strict=False):
            if m.size > 1:
                unify(m, a)
    out = [*q[:-1], v[-1]]
    tr.put(n.outputs[0], out)
    for extra in n.outputs[1:]:
        shape = tr.shape(extra)
        same = shape == tuple(a.size for a in q[:-1])
        tr.put(extra, list(q[:-1]) if same else [tr.fixed(s, "attention statistics") for s in shape])


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod",
      "flip", "roll", "logcumsumexp", "softmin")
def along(tr: Tracker, n: Node) -> None:
    """Same shape, but positions of one axis mix: that axis is frozen."""
    x = tr.of(tid(n.args[0]))
    dims = arg(n, 2 if n.op.endswith("roll") else 1, "dims", arg(n, 1, "dim"))
    for d in _dims(dims, len(x)):
        freeze(x[d], f"{n.op} runs along it")
    tr.put(n.outputs[0], list(x))


# -- normalisation ----------------------------------------------------------------------------------


@rule("native_batch_norm", "batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_native_batch_norm_legit", "_batch_norm_with_update", "instance_norm")
def batch_norm(tr: Tracker, n: Node) -> None:
    """Scale, shift and running statistics follow the channels."""
    x = tr.of(tid(n.args[0]))
    for a in n.args[1:5]:
        if isinstance(a, Ref):
            unify(tr.of(a.tensor)[0], x[1])
    tr.put(n.outputs[0], list(x))
    for extra in n.outputs[1:]:
        shape = tr.shape(extra)
        tr.put(extra, [x[1]] if shape == (x[1].size,) else [tr.fixed(s, "statistics") for s in shape])


@rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(tr: Tracker, n: Node) -> None:
    """Scale and shift follow the normalised axes."""
    x = tr.of(tid(n.args[0]))
    count = len(n.args[1])
    for a in n.args[2:4]:
        if isinstance(a, Ref):
            for p, q in zip(tr.of(a.tensor), x[-count:], strict=True):
                unify(p, q)
    tr.put(n.outputs[0], list(x))
    for extra in n.outputs[1:]:
        keep = x[: len(tr.shape(extra)) - count] if len(tr.shape(extra)) == len(x) else x[:-count]
        tr.put(extra, [*keep, *(Axis(1) for _ in range(len(tr.shape(extra)) - len(keep)))])


@rule("native_group_norm", "group_norm")
def group_norm(tr: Tracker, n: Node) -> None:
    """Channels split into groups, which stay as many."""
    x = tr.of(tid(n.args[0]))
    fused = n.op.endswith("native_group_norm")
    groups = int(n.args[6] if fused else n.args[1])
    affine = (n.args[1], n.args[2]) if fused else (arg(n, 2, "weight"), arg(n, 3, "bias"))
    for a in affine:
        if isinstance(a, Ref):
            unify(tr.of(a.tensor)[0], x[1])
    if groups > 1:
        g = Axis(groups, frozen="number of groups of a group normalisation")
        unify(x[1], product([g, Axis(x[1].size // groups)]))
    tr.put(n.outputs[0], list(x))
    for extra in n.outputs[1:]:
        tr.put(extra, [tr.fixed(s, "statistics") for s in tr.shape(extra)])


# -- reductions and pools ---------------------------------------------------------------------------


@rule("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm", "norm",
      "any", "all", "max", "min", "argmax", "argmin", "var_mean", "std_mean", "nansum", "median")
def reduction(tr: Tracker, n: Node) -> None:
    """The axes that remain keep their atoms."""
    name = n.op.rpartition("::")[2]
    x = tr.of(tid(n.args[0]))
    if len(n.args) > 1 and isinstance(n.args[1], Ref):
        pointwise(tr, n)
        return
    at = 2 if name in ("linalg_vector_norm", "norm") else 1
    dim = arg(n, at, "dim")
    gone = _dims(dim, len(x)) if not isinstance(dim, bool) else list(range(len(x)))
    if name in ("max", "min", "argmax", "argmin", "median"):
        for d in gone:
            freeze(x[d], f"{n.op} picks an index along it")
    for out in n.outputs:
        if len(tr.shape(out)) == len(x):
            tr.put(out, [Axis(1) if d in gone else a for d, a in enumerate(x)])
        else:
            tr.put(out, [a for d, a in enumerate(x) if d not in gone])


POOLS = {f"{kind}{k}d": k for k in (1, 2, 3) for kind in (
    "max_pool", "avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool",
    "upsample_nearest", "_upsample_nearest_exact", "reflection_pad", "replication_pad")}
POOLS |= {f"max_pool{k}d_with_indices": k for k in (2, 3)}
POOLS |= {"upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_linear1d": 1,
          "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 2, "upsample_trilinear3d": 3,
          "grid_sampler_2d": 2, "mkldnn_max_pool2d": 2, "affine_grid_generator": 2}


@rule(*POOLS)
def pool(tr: Tracker, n: Node) -> None:
    """Windows over the last axes: channels pass through."""
    x, k = tr.of(tid(n.args[0])), POOLS[n.op.rpartition("::")[2]]
    for out in n.outputs:
        spatial = tr.shape(out)[-k:]
        tr.put(out, [*x[:-k], *(tr.fixed(s, "spatial size") for s in spatial)])


@rule("constant_pad_nd", "pad")
def pad(tr: Tracker, n: Node) -> None:
    """Added positions are fixed segments around the axis."""
    x, widths = list(tr.of(tid(n.args[0]))), list(n.args[1])
    for k in range(len(widths) // 2):
        lo, hi = int(widths[2 * k]), int(widths[2 * k + 1])
        if lo == hi == 0:
            continue
        d = len(x) - 1 - k
        if lo < 0 or hi < 0:
            x[d] = cut(x[d], max(0, -lo), x[d].size - max(0, -hi))
        parts = [tr.fixed(max(lo, 0), "padding"), x[d], tr.fixed(max(hi, 0), "padding")]
        x[d] = total([p for p in parts if p.size])
    tr.put(n.outputs[0], x)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def shuffle(tr: Tracker, n: Node) -> None:
    """Channels to pixels and back: channels keep their outer factor."""
    x, r = tr.of(tid(n.args[0])), int(n.args[1])
    name = n.op.rpartition("::")[2]
    spatial = [tr.fixed(s, "spatial size") for s in tr.shape(n.outputs[0])[-2:]]
    c = x[-3]
    if name == "pixel_shuffle":
        outer = Axis(c.size // (r * r))
        unify(c, product([outer, Axis(r * r, frozen="pixels of a shuffle")]))
        out = outer
    elif name == "pixel_unshuffle":
        out = product([c, Axis(r * r, frozen="pixels of a shuffle")])
    else:
        parts = [Axis(r, frozen="groups of a channel shuffle"), Axis(c.size // r)]
        unify(c, product(parts))
        out = product(list(reversed(parts)))
    tr.put(n.outputs[0], [*x[:-3], out, *spatial])


# -- shapes -----------------------------------------------------------------------------------------


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as",
      "reshape_as", "_reshape_alias", "_reshape_copy", "view_copy", "unsqueeze_copy", "squeeze_copy",
      "ravel")
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


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "permute_copy",
      "transpose_copy", "t_copy")
def permute(tr: Tracker, n: Node) -> None:
    """Axes in another order."""
    x = tr.of(tid(n.args[0]))
    name = n.op.rpartition("::")[2].removesuffix("_copy").rstrip("_")
    order = list(range(len(x)))
    if name == "permute":
        order = _dims(n.args[1], len(x))
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
    tr.put(n.outputs[0], [x[j - lead] if j >= lead and x[j - lead].size == s else Axis(s)
                          for j, s in enumerate(shape)])


@rule("repeat", "tile")
def repeat(tr: Tracker, n: Node) -> None:
    """Copies are an outer factor."""
    x, times = list(tr.of(tid(n.args[0]))), [int(r) for r in n.args[1]]
    x = [Axis(1) for _ in range(len(times) - len(x))] + x
    tr.put(n.outputs[0], [product([Axis(r), a]) if r > 1 else a
                          for r, a in zip(times, x, strict=True)])


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


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk",
      "unsafe_split_with_sizes", "split_copy", "split_with_sizes_copy")
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


# -- lookups ----------------------------------------------------------------------------------------


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


@rule("gather", "scatter", "scatter_add", "index_add", "index_copy", "index_put", "topk", "sort",
      "masked_scatter", "slice_scatter", "select_scatter")
def picks(tr: Tracker, n: Node) -> None:
    """Positions picked by data along one axis: axes of equal size elsewhere pass, that one stays."""
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
        tr.put(out, [a if a.size == s else tr.fixed(s, "picked by data")
                     for a, s in zip(axes, tr.shape(out), strict=True)])


@rule("arange", "zeros", "ones", "full", "empty", "scalar_tensor", "new_zeros", "new_ones", "new_full",
      "new_empty", "randn", "rand", "tril", "triu", "eye", "linspace", "tril_indices", "randint",
      "empty_strided", "new_empty_strided", "tril", "triu", "normal", "randperm", "zeros_")
def creation(tr: Tracker, n: Node) -> None:
    """New tensors have the size that the code said."""
    for out in n.outputs:
        tr.put(out, [tr.fixed(s, "made with a fixed size") for s in tr.shape(out)])


# -- ours -------------------------------------------------------------------------------------------


@rule("paredown::quantize", "paredown::dequantize")
def quantized(tr: Tracker, n: Node) -> None:
    """Scales and zero points follow their axis."""
    x = tr.of(tid(n.args[0]))
    axis = int(n.args[5] if n.op.endswith("::quantize") else n.args[3])
    for r in n.args[1:3]:
        s = tr.of(tid(r))
        if prod(a.size for a in s) > 1:
            unify(s[0], x[axis])
    tr.put(n.outputs[0], list(x))
