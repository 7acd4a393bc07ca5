"""Attention in every fused form, forward and backward; the fused encoder layer; recurrent layers.

Causal attention is counted in full (the convention of published MAC counts): kernels that skip the
masked half save time, not logical work.
"""

from __future__ import annotations

from math import prod

from paredown.graph.graph import Tensor
from paredown.graph.rules.call import Call, Rule, Unpriceable, Work, numel


def _core(q: Tensor, k: Tensor, v: Tensor, *, tokens_at: int = -2) -> tuple[int, int]:
    """Products and scores of ``softmax(q k') v`` for shapes ``(batch, heads, tokens, head_dim)``.

    ``tokens_at`` is -3 for ``(batch, tokens, heads, head_dim)``. Grouped queries count by query
    head.
    """
    scores = prod(q.shape[:-1]) * k.shape[tokens_at]
    return scores * q.shape[-1] + scores * v.shape[-1], scores


def _forward(tokens_at: int) -> Rule:
    def rule(c: Call) -> Work:
        q, k, v = c.need(0, "query"), c.need(1, "key"), c.need(2, "value")
        macs, scores = _core(q, k, v, tokens_at=tokens_at)
        masked = sum(1 for t in c.ins[3:] if t.shape)
        return Work(macs=macs, elementwise=scores * (4 + masked), transcendental=scores)

    return rule


def _varlen(c: Call) -> Work:
    """``(batch, tokens, heads, dim)``, or packed ``(tokens, heads, dim)`` with a longest length."""
    q, k, v = c.need(0, "query"), c.need(1, "key"), c.need(2, "value")
    if len(q.shape) == 4:
        macs, scores = _core(q, k, v, tokens_at=-3)
    else:
        longest = c.arg(6, "max_k")
        if not isinstance(longest, int):
            raise Unpriceable("packed attention without a longest length")
        scores = q.shape[0] * q.shape[1] * longest
        macs = scores * (q.shape[-1] + v.shape[-1])
    return Work(macs=macs, elementwise=scores * 4, transcendental=scores)


def _backward(tokens_at: int) -> Rule:
    """Scores again, then the gradients of values, scores, queries and keys: five products."""

    def rule(c: Call) -> Work:
        q, k, v = c.need(1, "query"), c.need(2, "key"), c.need(3, "value")
        scores = prod(q.shape[:-1]) * k.shape[tokens_at]
        macs = scores * (3 * q.shape[-1] + 2 * v.shape[-1])
        return Work(macs=macs, elementwise=scores * 8, transcendental=scores)

    return rule


def _heads_attention(tokens: int, keys: int, width: int, heads: int) -> tuple[int, int]:
    """Products and scores of multi-head attention over ``tokens`` rows, each against ``keys``."""
    return 2 * tokens * keys * width, tokens * keys * heads


def encoder_layer(c: Call) -> Work:
    """The fused post- or pre-norm encoder layer: four projections, attention, two linears, two
    norms.

    ``src`` is ``(batch, tokens, width)``; arguments 1 and 2 are width and heads. The hidden width
    is that of the last matrix, the second linear's ``(width, hidden)``.
    """
    src = c.need(0)
    width, heads = int(c.arg(1, "embed_dim")), int(c.arg(2, "num_heads"))
    up = next((t for t in reversed(c.ins) if len(t.shape) == 2 and t.shape[1] != width), None)
    hidden = up.shape[1] if up is not None else width
    tokens = numel(src) // width
    attention, scores = _heads_attention(tokens, src.shape[1], width, heads)
    linears = tokens * (4 * width * width + 2 * width * hidden)
    pointwise = 2 * 8 * numel(src) + 4 * scores + tokens * (4 * width + 2 * hidden + 3 * width)
    return Work(
        macs=linears + attention, elementwise=pointwise, transcendental=scores + tokens * hidden
    )


def multi_head(c: Call) -> Work:
    """The fused multi-head attention: three projections in, attention, one out."""
    q, k = c.need(0), c.need(1)
    width, heads = int(c.arg(3, "embed_dim")), int(c.arg(4, "num_head"))
    tokens, keys = numel(q) // width, numel(k) // width
    attention, scores = _heads_attention(tokens, k.shape[1], width, heads)
    projections = (2 * tokens + 2 * keys) * width * width
    return Work(
        macs=projections + attention,
        elementwise=4 * scores + 4 * tokens * width,
        transcendental=scores,
    )


# -- recurrent layers -----------------------------------------------------------------------------


def _gates(rows: int, hidden: int, gates: int) -> dict[str, int]:
    return {
        "elementwise": rows * hidden * (gates + 4),
        "transcendental": rows * hidden * (gates + 1),
    }


def _recurrent(gates: int) -> Rule:
    """A whole recurrent module: every weight matrix meets every token once."""

    def rule(c: Call) -> Work:
        x = c.need(0)
        lists = ([t for t in c.tensors(i) if len(t.shape) == 2] for i in range(1, len(c.node.args)))
        weights = next((ws for ws in lists if len(ws) > 1), [])
        return _weighed(x, weights, gates)

    return rule


def _cell(gates: int) -> Rule:
    """One step: the input's and the hidden state's weights are arguments 2 and 3."""
    return lambda c: _weighed(c.need(0), [c.need(2), c.need(3)], gates)


def _weighed(x: Tensor, weights: list[Tensor], gates: int) -> Work:
    if not weights:
        raise Unpriceable("no weight matrices among the arguments")
    rows = prod(x.shape[:-1])
    hidden = weights[0].shape[0] // gates
    return Work(
        macs=rows * sum(numel(w) for w in weights),
        **_gates(rows * max(len(weights) // 2, 1), hidden, gates),
    )


def mkldnn_layer(c: Call) -> Work:
    """One layer and direction: ``x (tokens, batch, in)``, input and hidden weights 1 and 2."""
    x, w_in, w_h = c.need(0), c.need(1), c.need(2)
    rows = prod(x.shape[:-1])
    return Work(macs=rows * (numel(w_in) + numel(w_h)), **_gates(rows, w_h.shape[-1], 4))


def mkldnn_layer_backward(c: Call) -> Work:
    """Twice the forward products: gradients of the inputs and of the weights."""
    x, w_in, w_h = c.need(0), c.need(1), c.need(2)
    rows = prod(x.shape[:-1])
    return Work(macs=2 * rows * (numel(w_in) + numel(w_h)), **_gates(rows, w_h.shape[-1], 8))


def cudnn(c: Call) -> Work:
    """All layers at once; weights come as a list."""
    x = c.need(0)
    weights = [t for t in c.tensors(1, "weight") if len(t.shape) == 2]
    rows = prod(x.shape[:-1])
    return Work(
        macs=rows * sum(numel(w) for w in weights),
        elementwise=10 * numel(c.out),
        transcendental=5 * numel(c.out),
    )


def cell_tail(c: Call) -> Work:
    """Gates of one cell, after its two products."""
    return Work(elementwise=2 * numel(c.need(0)), transcendental=numel(c.need(0)))


ATTENTION: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "aten::scaled_dot_product_attention",
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention",
            "aten::_scaled_dot_product_efficient_attention",
            "aten::_scaled_dot_product_cudnn_attention",
            "aten::_scaled_dot_product_attention_math",
            "aten::_scaled_dot_product_attention_math_for_mps",
            "aten::_scaled_dot_product_fused_attention_overrideable",
            "higher_order::flex_attention",
        ),
        _forward(-2),
    ),
    "aten::_flash_attention_forward": _varlen,
    "aten::_efficient_attention_forward": _varlen,
    "aten::_cudnn_attention_forward": _varlen,
    **dict.fromkeys(
        (
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
            "aten::_scaled_dot_product_flash_attention_backward",
            "aten::_scaled_dot_product_efficient_attention_backward",
            "aten::_scaled_dot_product_cudnn_attention_backward",
            "aten::_scaled_dot_product_fused_attention_overrideable_backward",
        ),
        _backward(-2),
    ),
    "aten::_flash_attention_backward": _backward(-3),
    "aten::_efficient_attention_backward": _backward(-3),
    "aten::_transformer_encoder_layer_fwd": encoder_layer,
    "aten::_native_multi_head_attention": multi_head,
}

RECURRENT: dict[str, Rule] = {
    "aten::lstm": _recurrent(4),
    "aten::gru": _recurrent(3),
    "aten::rnn_tanh": _recurrent(1),
    "aten::rnn_relu": _recurrent(1),
    "aten::lstm_cell": _cell(4),
    "aten::gru_cell": _cell(3),
    "aten::rnn_tanh_cell": _cell(1),
    "aten::rnn_relu_cell": _cell(1),
    "aten::mkldnn_rnn_layer": mkldnn_layer,
    "aten::mkldnn_rnn_layer_backward": mkldnn_layer_backward,
    "aten::_cudnn_rnn": cudnn,
    "aten::miopen_rnn": cudnn,
    "aten::_thnn_fused_lstm_cell": cell_tail,
    "aten::_thnn_fused_gru_cell": cell_tail,
}
