"""Convolutions, forward and backward, plain, fused with a pointwise tail, quantized, deformable."""

from __future__ import annotations

from math import prod

from paredown.graph.graph import Tensor
from paredown.graph.rules.call import Call, Rule, Work, numel


def conv_macs(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    """Multiply-accumulates: ``out x (C_in / groups) x taps``; transposed, one per input and tap.

    ``weight`` is ``(C_out, C_in / groups, *taps)``, or ``(C_in, C_out / groups, *taps)``
    transposed.
    """
    return numel(x if transposed else out) * prod(weight.shape[1:])


def _conv(transposed_at: int | None) -> Rule:
    def rule(c: Call) -> Work:
        x, w, out = c.need(0), c.need(1), c.out
        transposed = transposed_at is not None and bool(c.arg(transposed_at, "transposed", False))
        bias = c.tensor(2, "bias") is not None
        return Work(macs=conv_macs(x, w, out, transposed), elementwise=numel(out) if bias else 0)

    return rule


def _always_transposed(c: Call) -> Work:
    x, w, out = c.need(0), c.need(1), c.out
    bias = c.tensor(2, "bias") is not None
    return Work(macs=conv_macs(x, w, out, True), elementwise=numel(out) if bias else 0)


def backward(c: Call) -> Work:
    """Each wanted gradient (input, weight) costs what the forward pass does; bias is a sum."""
    grad, x, w = c.need(0), c.need(1), c.need(2)
    transposed = bool(c.arg(7, "transposed", False))
    mask = c.arg(10, "output_mask", [True, True, True])
    each = conv_macs(x, w, grad, transposed)
    return Work(
        macs=each * (bool(mask[0]) + bool(mask[1])), elementwise=numel(grad) if mask[2] else 0
    )


def deformable(c: Call) -> Work:
    """A convolution whose taps are sampled: four products for each tap and input channel."""
    w, out = c.need(1, "weight"), c.out
    taps = numel(out) // max(w.shape[0], 1) * prod(w.shape[1:])
    return Work(macs=numel(out) * prod(w.shape[1:]), elementwise=8 * taps)


def conv_tbc(c: Call) -> Work:
    """Time x batch x channels, weight ``(taps, in, out)``."""
    w = c.need(1)
    return Work(macs=numel(c.out) * w.shape[0] * w.shape[1], elementwise=numel(c.out))


CONV: dict[str, Rule] = {
    "aten::convolution": _conv(6),
    "aten::_convolution": _conv(6),
    "aten::convolution_overrideable": _conv(6),
    "aten::_convolution_mode": _conv(None),
    **dict.fromkeys(
        (
            "aten::conv1d",
            "aten::conv2d",
            "aten::conv3d",
            "aten::mkldnn_convolution",
            "aten::cudnn_convolution",
            "aten::cudnn_convolution_relu",
            "aten::thnn_conv2d",
            "aten::_slow_conv2d_forward",
            "aten::slow_conv3d",
            "aten::slow_conv_dilated2d",
            "aten::slow_conv_dilated3d",
            "aten::_conv_depthwise2d",
            "aten::conv_depthwise3d",
            "aten::cudnn_convolution_add_relu",
            "aten::_nnpack_spatial_convolution",
            "mkldnn::_convolution_pointwise",
            "mkldnn::_convolution_pointwise_",
        ),
        _conv(None),
    ),
    **dict.fromkeys(
        (
            "aten::conv_transpose1d",
            "aten::conv_transpose2d",
            "aten::conv_transpose3d",
            "aten::slow_conv_transpose2d",
            "aten::slow_conv_transpose3d",
            "aten::cudnn_convolution_transpose",
            "mkldnn::_convolution_transpose_pointwise",
        ),
        _always_transposed,
    ),
    "aten::convolution_backward": backward,
    "aten::conv_tbc": conv_tbc,
    "torchvision::deform_conv2d": deformable,
}
