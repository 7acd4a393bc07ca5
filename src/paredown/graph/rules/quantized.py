"""Quantized operators: torch's packed ones, oneDNN's, fake quantization, and paredown's own."""

from __future__ import annotations

from math import prod

from paredown.graph.rules.call import Call, Rule, Unpriceable, Work, numel
from paredown.graph.rules.conv import conv_macs
from paredown.graph.rules.moves import copy
from paredown.graph.rules.per_element import per_input, per_output


def _packed_linear(extra: int) -> Rule:
    """Weights are packed, so the inner size comes from the input; ``extra`` operations per
    output.
    """

    def rule(c: Call) -> Work:
        x, out = c.need(0), c.out
        return Work(macs=numel(out) * x.shape[-1], elementwise=extra * numel(out))

    return rule


def _dynamic_linear(c: Call) -> Work:
    """Range and rounding of the input first, then the integer product and its rescaling."""
    x, out = c.need(0), c.out
    return Work(macs=numel(out) * x.shape[-1], elementwise=5 * numel(x) + 2 * numel(out))


def _packed_conv(transposed: bool) -> Rule:
    def rule(c: Call) -> Work:
        x, w, out = c.need(0), c.need(1), c.out
        return Work(macs=conv_macs(x, w, out, transposed), elementwise=2 * numel(out))

    return rule


def qlinear_pointwise(c: Call) -> Work:
    """``onednn::qlinear_pointwise(qx, x_scale, x_zero, qw, ...)``: rescale and tail per output."""
    x, out = c.need(0), c.out
    return Work(macs=numel(out) * x.shape[-1], elementwise=3 * numel(out))


def qconv_pointwise(c: Call) -> Work:
    """``onednn::qconv_pointwise(qx, x_scale, x_zero, qw, ...)``."""
    x, out = c.need(0), c.out
    w = next((t for t in c.ins[1:] if len(t.shape) == len(x.shape)), None)
    if w is None:
        raise Unpriceable("no weight among the arguments")
    return Work(macs=conv_macs(x, w, out, False), elementwise=3 * numel(out))


def quantized_lstm(c: Call) -> Work:
    """Packed cell parameters: shapes follow from input, output and layer count."""
    x, out = c.need(0), c.out
    layers = int(c.arg(4, "num_layers", 1))
    both = 2 if c.arg(7, "bidirectional", False) is True else 1
    hidden, rows = out.shape[-1] // both, prod(x.shape[:-1])
    first = x.shape[-1] + hidden
    rest = hidden * both + hidden
    return Work(
        macs=rows * both * 4 * hidden * (first + (layers - 1) * rest),
        elementwise=8 * rows * hidden * both * layers,
        transcendental=5 * rows * hidden * both * layers,
    )


def binary_product(c: Call) -> Work:
    """One product of signs for each of ``n``, whatever words hold them."""
    return Work(macs=numel(c.out) * int(c.arg(2, "n")))


def binary_layer(c: Call) -> Work:
    """The products, and a scale and an offset for each output."""
    return Work(macs=numel(c.out) * int(c.arg(2, "n")), elementwise=2 * numel(c.out))


def dequantize_groups(c: Call) -> Work:
    """Unpack (int4: two operations), subtract the zero point, scale."""
    bits = c.arg(3, "bits")
    return Work(elementwise=numel(c.out) * (4 if bits == 4 else 2))


def embedding_groups(c: Call) -> Work:
    """As `dequantize_groups`, reading only the rows asked for."""
    index, tables = c.need(0, "index"), [c.need(1, "q"), c.need(2, "scale"), c.need(3, "zero")]
    rows = sum(t.nbytes // t.shape[0] for t in tables)
    work = numel(c.out) * (4 if c.arg(4, "bits") == 4 else 2)
    return Work(elementwise=work, read=index.nbytes + numel(index) * rows)


_LINEAR = (
    "quantized::linear",
    "quantized::linear_relu",
    "quantized::linear_leaky_relu",
    "quantized::linear_tanh",
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32",
)
_DYNAMIC = (
    "quantized::linear_dynamic",
    "quantized::linear_relu_dynamic",
    "quantized::linear_dynamic_fp16",
    "quantized::linear_relu_dynamic_fp16",
    "aten::fbgemm_linear_int8_weight_fp32_activation",
    "aten::fbgemm_linear_int8_weight",
)
_CONV = tuple(
    f"quantized::conv{d}d{tail}"
    for d in (1, 2, 3)
    for tail in ("", "_relu", "_add", "_add_relu", "_dynamic")
)
_CONV_T = tuple(
    f"quantized::conv_transpose{d}d{tail}" for d in (1, 2, 3) for tail in ("", "_dynamic")
)

LINEAR: dict[str, Rule] = {
    **dict.fromkeys(_LINEAR, _packed_linear(2)),
    **dict.fromkeys(_DYNAMIC, _dynamic_linear),
    "onednn::qlinear_pointwise": qlinear_pointwise,
    "aten::fbgemm_pack_gemm_matrix_fp16": copy,
    "paredown::binary_product": binary_product,
    "paredown::binary_layer": binary_layer,
}

CONV: dict[str, Rule] = {
    **dict.fromkeys(_CONV, _packed_conv(False)),
    **dict.fromkeys(_CONV_T, _packed_conv(True)),
    "onednn::qconv_pointwise": qconv_pointwise,
    "onednn::qconv2d_pointwise": qconv_pointwise,
    "onednn::qconv1d_pointwise": qconv_pointwise,
    "onednn::qconv3d_pointwise": qconv_pointwise,
}

RECURRENT: dict[str, Rule] = {"aten::quantized_lstm": quantized_lstm}

POINTWISE: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "aten::quantize_per_tensor",
            "aten::quantize_per_channel",
            "aten::quantize_per_tensor_dynamic",
            "quantized_decomposed::quantize_per_tensor",
            "quantized_decomposed::quantize_per_channel",
            "quantized_decomposed::quantize_per_token",
            "paredown::quantize",
        ),
        per_output(4),
    ),
    **dict.fromkeys(
        (
            "aten::dequantize",
            "quantized_decomposed::dequantize_per_tensor",
            "quantized_decomposed::dequantize_per_channel",
            "quantized_decomposed::dequantize_per_token",
            "paredown::dequantize",
        ),
        per_output(2),
    ),
    **dict.fromkeys(
        (
            "aten::fake_quantize_per_tensor_affine",
            "aten::fake_quantize_per_channel_affine",
            "aten::fake_quantize_per_tensor_affine_cachemask",
            "aten::fake_quantize_per_channel_affine_cachemask",
            "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
            "aten::_fake_quantize_learnable_per_tensor_affine",
            "aten::_fake_quantize_learnable_per_channel_affine",
            "aten::fused_moving_avg_obs_fake_quant",
        ),
        per_input(6),
    ),
    **dict.fromkeys(
        (
            "aten::fake_quantize_per_tensor_affine_cachemask_backward",
            "aten::fake_quantize_per_channel_affine_cachemask_backward",
        ),
        per_output(1),
    ),
    "aten::choose_qparams_optimized": per_input(2),
    "aten::_choose_qparams_per_tensor": per_input(2),
    "quantized_decomposed::choose_qparams": per_input(2),
    "quantized_decomposed::choose_qparams_per_token": per_input(2),
    "quantized_decomposed::choose_qparams_symmetric": per_input(2),
    "paredown::dynamic_quantize": per_input(6),
    "paredown::dynamic_quantize_rows": per_input(6),
    "paredown::pack_signs": per_input(1),
    "paredown::dequantize_groups": dequantize_groups,
    "paredown::dequantize_nf4": per_output(4),
    "paredown::dequantize_codebook": per_output(5),
    "paredown::dequantize_two_of_four": per_output(5),
    "paredown::embedding_groups": embedding_groups,
    **dict.fromkeys(
        (
            "quantized::add",
            "quantized::mul",
            "quantized::add_relu",
            "quantized::mul_relu",
            "quantized::add_scalar",
            "quantized::mul_scalar",
            "quantized::leaky_relu",
            "quantized::relu6",
            "quantized::hardswish",
            "quantized::celu",
            "quantized::elu",
            "quantized::prelu",
            "quantized::batch_norm",
            "quantized::batch_norm1d",
            "quantized::batch_norm2d",
            "quantized::batch_norm2d_relu",
            "quantized::batch_norm3d",
            "quantized::instance_norm",
            "quantized::group_norm",
        ),
        per_output(6),
    ),
    **dict.fromkeys(
        ("quantized::sigmoid", "quantized::softmax", "quantized::layer_norm"), per_output(6, 1)
    ),
    **dict.fromkeys(
        (
            "quantized::cat",
            "quantized::cat_relu",
            "aten::int_repr",
            "aten::_make_per_tensor_quantized_tensor",
            "aten::_make_per_channel_quantized_tensor",
            "aten::fbgemm_pack_quantized_matrix",
            "quantized::linear_prepack",
            "quantized::conv2d_prepack",
            "onednn::qlinear_prepack",
            "onednn::qconv_prepack",
            "aten::_convert_weight_to_int4pack",
            "aten::_convert_weight_to_int4pack_for_cpu",
            "aten::_dyn_quant_pack_4bit_weight",
        ),
        copy,
    ),
    **dict.fromkeys(
        (
            "quantized::embedding_byte",
            "quantized::embedding_4bit",
            "quantized::embedding_bag_byte",
            "quantized::embedding_bag_4bit",
            "quantized::embedding_bag_byte_rowwise_offsets",
            "quantized::embedding_bag_4bit_rowwise_offsets",
        ),
        lambda c: Work(elementwise=2 * numel(c.out), read=c.written_all()),
    ),
}
