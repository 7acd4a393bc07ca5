"""What eager CPU kernels allocate and free inside one call, beside their outputs.

The forms were read off torch 2.13's allocator events: oneDNN convolutions copy contiguous tensors
to a layout blocked by 16 channels and back, im2col builds its columns, attention keeps one block of
scores per thread, the fused encoder layer its projections, a recurrent layer repacked weights and
gates. Channels-last convolutions copy weights alone, which is not told apart here: an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from paredown.graph.graph import Graph, Node, Tensor
from paredown.graph.rules.call import Call, Unpriceable, numel

Scratch = Callable[[Call, int], int]


def scratch(node: Node, graph: Graph, threads: int) -> int:
    """Bytes that ``node`` needs for itself while it runs on ``threads`` threads."""
    found = SCRATCH.get(node.op)
    if found is None:
        return 0
    try:
        return found(Call(node, graph), threads)
    except (Unpriceable, IndexError, TypeError):
        return 0  # a form of the call that allocates in a way nobody looked at


def _blocked(channels: int) -> int:
    return -(-channels // 16) * 16


def _element(t: Tensor) -> int:
    return t.nbytes // max(numel(t), 1)


def convolution(c: Call, threads: int) -> int:
    """Blocked copies of input, weight and output, or the columns of im2col."""
    x, w, out = c.need(0), c.need(1), c.out
    transposed = bool(c.arg(6, "transposed", False))
    groups = int(c.arg(8, "groups", 1))
    taps = w.shape[2:]
    strides, dilations = c.arg(3, "stride", [1]), c.arg(5, "dilation", [1])
    pointwise = prod(taps) == 1 and all(s == 1 for s in strides)
    if pointwise and groups == 1 and not transposed:
        return 0
    if not transposed and not _by_onednn(x, w, strides, dilations, groups, threads):
        return x.shape[1] * prod(taps) * prod(out.shape[2:]) * _element(x)
    size = _element(x)
    depthwise = groups > 1 and w.shape[1] == 1
    inside = 0 if x.shape[1] <= 3 else x.shape[0] * _blocked(x.shape[1]) * prod(x.shape[2:]) * size
    weight = w.nbytes
    if groups == 1 and x.shape[1] > 3:
        weight = _blocked(w.shape[0]) * _blocked(w.shape[1]) * prod(taps) * size
    result = out.shape[0] * _blocked(out.shape[1]) * prod(out.shape[2:]) * size
    if depthwise:
        weight = w.nbytes
    first = inside + weight + result
    if transposed:
        first += out.nbytes
    return max(first, result + out.nbytes) - out.nbytes


def _by_onednn(
    x: Tensor, w: Tensor, strides: list[int], dilations: list[int], groups: int, threads: int
) -> bool:
    """Torch's choice for float convolutions: oneDNN unless the problem is small."""
    taps = w.shape[2:]
    shaped = (
        any(s != 1 for s in strides)
        or any(d != 1 for d in dilations)
        or x.shape[0] >= 16
        or any(t != 1 for t in taps)
        or threads > 1
    )
    large = groups > 1 or all(t > 3 for t in taps[-2:]) or x.shape[0] > 1 or numel(x) > 20480
    return x.dtype != "float32" or len(taps) != 2 or (shaped and large)


def flash_attention(c: Call, threads: int) -> int:
    """Scores, running maximum, sum and output of one block of queries, in float32, per thread."""
    q, k = c.need(0), c.need(1)
    tokens, keys, width = q.shape[-2], k.shape[-2], q.shape[-1]
    block = 256 if tokens >= 768 else 64 if tokens >= 192 else 32
    block = min(block, tokens)
    return threads * 4 * (block * min(512, keys) + 2 * block + block * width)


def encoder_layer(c: Call, threads: int) -> int:
    """Projections in two layouts, or the hidden layer; the result is not counted."""
    src = c.need(0)
    width = int(c.arg(1, "embed_dim"))
    pre = 1 if c.arg(8, "norm_first", False) is True else 0
    hidden = next(t.shape[1] for t in reversed(c.ins) if len(t.shape) == 2)
    unit = src.nbytes
    inner = numel(src) // width * hidden * _element(src)
    return max((6 + pre) * unit, (2 + pre) * unit + inner) - unit


def recurrent(c: Call, threads: int) -> int:
    """Repacked weights and bias, gates of all steps, states."""
    x, w_in, w_h = c.need(0), c.need(1), c.need(2)
    steps, rows, hidden = x.shape[0], x.shape[1], w_h.shape[1]
    gates = (steps + 1) * rows * 4 * hidden
    return 4 * (numel(w_in) + numel(w_h) + 4 * hidden + gates + (steps + 1) * rows * hidden)


SCRATCH: dict[str, Scratch] = {
    "aten::convolution": convolution,
    "aten::_scaled_dot_product_flash_attention_for_cpu": flash_attention,
    "aten::_transformer_encoder_layer_fwd": encoder_layer,
    "aten::mkldnn_rnn_layer": recurrent,
}
"""Operator -> bytes it holds inside; what is not listed holds nothing worth counting."""
