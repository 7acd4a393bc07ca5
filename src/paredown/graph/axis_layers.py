"""Axis rules of layers: products, convolutions, attention, norms, reductions, pools."""

from __future__ import annotations

from math import prod

from paredown.graph.axes import Axis, cut, freeze, product, total
from paredown.graph.axis_rules import HEAD_DIM, Tracker, arg, dims_of, pointwise, rule, tid, unify
from paredown.graph.graph import Node, Ref


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


@rule(
    "convolution",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
def conv(tr: Tracker, n: Node) -> None:
    """Channels through a convolution; depthwise ties input to output, groups stay as many."""
    name = n.op.rpartition("::")[2]
    if name == "convolution":
        transposed, groups = bool(n.args[6]), int(n.args[8])
    else:
        transposed = "transpose" in name
        groups = (
            int(arg(n, 7 if transposed else 6, "groups", 1))
            if not transposed
            else int(arg(n, 6, "groups", 1))
        )
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
        multiple = Axis(
            w_out.size // groups, frozen="channel multiplier of a depthwise convolution"
        )
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


@rule(
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)
def attention(tr: Tracker, n: Node) -> None:
    """``(batch, heads, tokens, head size)``; fewer key heads than query heads are tied in
    groups.
    """
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
        tr.put(
            extra, list(q[:-1]) if same else [tr.fixed(s, "attention statistics") for s in shape]
        )


@rule(
    "softmax",
    "_softmax",
    "log_softmax",
    "_log_softmax",
    "_safe_softmax",
    "cumsum",
    "cumprod",
    "flip",
    "roll",
    "logcumsumexp",
    "softmin",
)
def along(tr: Tracker, n: Node) -> None:
    """Same shape, but positions of one axis mix: that axis is frozen."""
    x = tr.of(tid(n.args[0]))
    dims = arg(n, 2 if n.op.endswith("roll") else 1, "dims", arg(n, 1, "dim"))
    for d in dims_of(dims, len(x)):
        freeze(x[d], f"{n.op} runs along it")
    tr.put(n.outputs[0], list(x))


@rule(
    "native_batch_norm",
    "batch_norm",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
    "instance_norm",
)
def batch_norm(tr: Tracker, n: Node) -> None:
    """Scale, shift and running statistics follow the channels."""
    x = tr.of(tid(n.args[0]))
    for a in n.args[1:5]:
        if isinstance(a, Ref):
            unify(tr.of(a.tensor)[0], x[1])
    tr.put(n.outputs[0], list(x))
    for extra in n.outputs[1:]:
        shape = tr.shape(extra)
        tr.put(
            extra, [x[1]] if shape == (x[1].size,) else [tr.fixed(s, "statistics") for s in shape]
        )


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


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "prod",
    "logsumexp",
    "linalg_vector_norm",
    "norm",
    "any",
    "all",
    "max",
    "min",
    "argmax",
    "argmin",
    "var_mean",
    "std_mean",
    "nansum",
    "median",
)
def reduction(tr: Tracker, n: Node) -> None:
    """The axes that remain keep their atoms."""
    name = n.op.rpartition("::")[2]
    x = tr.of(tid(n.args[0]))
    if len(n.args) > 1 and isinstance(n.args[1], Ref):
        pointwise(tr, n)
        return
    at = 2 if name in ("linalg_vector_norm", "norm") else 1
    dim = arg(n, at, "dim")
    gone = dims_of(dim, len(x)) if not isinstance(dim, bool) else list(range(len(x)))
    if name in ("max", "min", "argmax", "argmin", "median"):
        for d in gone:
            freeze(x[d], f"{n.op} picks an index along it")
    for out in n.outputs:
        if len(tr.shape(out)) == len(x):
            tr.put(out, [Axis(1) if d in gone else a for d, a in enumerate(x)])
        else:
            tr.put(out, [a for d, a in enumerate(x) if d not in gone])


def _pools() -> dict[str, int]:
    """Operator name -> how many last axes its windows run over."""
    kinds = (
        "max_pool avg_pool adaptive_avg_pool _adaptive_avg_pool adaptive_max_pool upsample_nearest "
        "_upsample_nearest_exact reflection_pad replication_pad"
    )
    table = {f"{kind}{k}d": k for k in (1, 2, 3) for kind in kinds.split()}
    table.update(max_pool2d_with_indices=2, max_pool3d_with_indices=3, mkldnn_max_pool2d=2)
    table.update(upsample_linear1d=1, upsample_bilinear2d=2, upsample_bicubic2d=2)
    table.update(_upsample_bilinear2d_aa=2, _upsample_bicubic2d_aa=2, upsample_trilinear3d=3)
    table.update(grid_sampler_2d=2, affine_grid_generator=2)
    return table


POOLS = _pools()


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
