"""Elementwise operators, forward and backward: simple operations and exp-like ones per element.

Tables give ``name: (simple, transcendental)`` per element of the output; in-place (``add_``) and
foreach (``_foreach_add``) forms follow from the plain one.
"""

from __future__ import annotations

from paredown.graph.rules.call import Call, Rule, Work, inputs, outputs


def per_output(simple: float, transcendental: float = 0, compare: float = 0) -> Rule:
    """Work proportional to the elements written."""

    def rule(c: Call) -> Work:
        n = outputs(c) or inputs(c)
        return Work(
            elementwise=int(simple * n),
            transcendental=int(transcendental * n),
            compare=int(compare * n),
        )

    return rule


def per_input(simple: float, transcendental: float = 0, compare: float = 0) -> Rule:
    """Work proportional to the elements of the first input (reductions)."""

    def rule(c: Call) -> Work:
        n = inputs(c)
        return Work(
            elementwise=int(simple * n),
            transcendental=int(transcendental * n),
            compare=int(compare * n),
        )

    return rule


def names(text: str) -> list[str]:
    """``aten::`` names from a block of words."""
    return [f"aten::{n}" for n in text.split()]


_ONE = [
    "add",
    "sub",
    "rsub",
    "mul",
    "multiply",
    "subtract",
    "neg",
    "negative",
    "abs",
    "absolute",
    "sign",
    "sgn",
    "relu",
    "clamp",
    "clamp_min",
    "clamp_max",
    "clip",
    "where",
    "masked_fill",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "floor",
    "ceil",
    "round",
    "trunc",
    "fix",
    "frac",
    "floor_divide",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_not",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_not",
    "bitwise_xor",
    "bitwise_left_shift",
    "bitwise_right_shift",
    "__and__",
    "__or__",
    "__xor__",
    "__lshift__",
    "__rshift__",
    "isnan",
    "isinf",
    "isfinite",
    "isposinf",
    "isneginf",
    "signbit",
    "copysign",
    "square",
    "threshold",
    "positive",
    "nan_to_num",
    "heaviside",
    "isclose",
    "isin",
    "relu6",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "threshold_backward",
    "complex",
    "conj_physical",
    "not_equal",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "ldexp",
    "native_dropout_backward",
    "_masked_scale",
    "tril",
    "triu",
]

_DIVIDE = [
    "div",
    "true_divide",
    "divide",
    "remainder",
    "fmod",
    "reciprocal",
    "lerp",
    "addcmul",
    "addcdiv",
    "prelu",
    "_prelu_kernel",
    "hardtanh",
    "leaky_relu",
    "hardtanh_backward",
    "leaky_relu_backward",
    "hardshrink",
    "softshrink",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "l1_loss",
    "mse_loss_backward",
    "smooth_l1_loss_backward",
    "huber_loss_backward",
    "softshrink_backward",
    "hardshrink_backward",
    "rrelu",
]

_HARD = [
    "hardswish",
    "hardsigmoid",
    "hardswish_backward",
    "hardsigmoid_backward",
    "_prelu_kernel_backward",
    "rrelu_with_noise",
]

_EXP = [
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "tanh",
    "sigmoid",
    "erf",
    "erfc",
    "erfinv",
    "pow",
    "float_power",
    "atan2",
    "arctan2",
    "lgamma",
    "digamma",
    "polygamma",
    "i0",
    "sinc",
    "logit",
    "special_entr",
    "special_erfcx",
    "special_i0e",
    "special_i1",
    "special_i1e",
    "special_ndtri",
    "special_log_ndtr",
    "special_xlog1py",
    "special_zeta",
    "xlogy",
    "logaddexp",
    "logaddexp2",
    "hypot",
    "igamma",
    "igammac",
    "mvlgamma",
    "angle",
    "polar",
]

_GATE = [
    "gelu",
    "silu",
    "mish",
    "softplus",
    "elu",
    "selu",
    "celu",
    "log_sigmoid",
    "log_sigmoid_forward",
    "glu",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "soft_margin_loss",
    "poisson_nll_loss",
    "kl_div",
]

_GATE_BACKWARD = [
    "gelu_backward",
    "silu_backward",
    "mish_backward",
    "softplus_backward",
    "elu_backward",
    "log_sigmoid_backward",
    "glu_backward",
    "logit_backward",
    "binary_cross_entropy_backward",
    "soft_margin_loss_backward",
]

_NO_EXP_BACKWARD = ["tanh_backward", "sigmoid_backward"]

ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys((f"aten::{n}" for n in _ONE), per_output(1)),
    **dict.fromkeys((f"aten::{n}" for n in _DIVIDE), per_output(2)),
    **dict.fromkeys((f"aten::{n}" for n in _HARD), per_output(4)),
    **dict.fromkeys((f"aten::{n}" for n in _EXP), per_output(0, 1)),
    **dict.fromkeys((f"aten::{n}" for n in _GATE), per_output(3, 1)),
    **dict.fromkeys((f"aten::{n}" for n in _GATE_BACKWARD), per_output(6, 1)),
    **dict.fromkeys((f"aten::{n}" for n in _NO_EXP_BACKWARD), per_output(3)),
}
"""``aten`` name -> rule; see `rules.lookup` for in-place and foreach forms."""


def _written_only(simple: float, transcendental: float = 0) -> Rule:
    """Overwrites its output without reading it: fills, ranges, random numbers."""

    def rule(c: Call) -> Work:
        n = outputs(c)
        return Work(elementwise=int(simple * n), transcendental=int(transcendental * n), read=0)

    return rule


_FILL = [
    "zeros",
    "ones",
    "full",
    "zeros_like",
    "ones_like",
    "full_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "fill",
    "zero",
    "fill_diagonal",
    "arange",
    "range",
    "linspace",
    "logspace",
    "eye",
    "scalar_tensor",
    "tril_indices",
    "triu_indices",
    "hann_window",
    "hamming_window",
    "blackman_window",
    "bartlett_window",
    "kaiser_window",
    "vander",
    "_cudnn_init_dropout_state",
]

_RANDOM = [
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "randint",
    "randint_like",
    "randperm",
    "normal",
    "uniform",
    "random",
    "exponential",
    "log_normal",
    "cauchy",
    "geometric",
    "normal_functional",
]

CREATION: dict[str, Rule] = {
    **dict.fromkeys((f"aten::{n}" for n in _FILL), _written_only(0)),
    **dict.fromkeys((f"aten::{n}" for n in _RANDOM), _written_only(8, 1)),
    **dict.fromkeys(
        names(
            "bernoulli native_dropout _fused_dropout multinomial poisson binomial "
            "_standard_gamma _sample_dirichlet"
        ),
        per_output(9),
    ),
}


def copy(c: Call) -> Work:
    """Reads its source, writes its output; a cast is one operation per element."""
    source = c.ins[0] if c.ins else None
    cast = source is not None and c.outs and source.dtype != c.outs[0].dtype
    return Work(elementwise=outputs(c) if cast else 0)


def copy_into(c: Call) -> Work:
    """``copy_``: the overwritten tensor is not read."""
    source = c.tensor(1)
    if source is None:
        return Work(read=0)
    cast = source.dtype != c.out.dtype
    return Work(elementwise=outputs(c) if cast else 0, read=c.stored(source))


def gathered(c: Call) -> Work:
    """Reads as much as it writes (each output element has one source), and small index tensors."""
    integers = sum(c.stored(t) for t in c.ins if t.dtype in ("int64", "int32", "bool"))
    written = c.written_all()
    index_out = c.outs and c.outs[0].dtype in ("int64", "int32", "bool")
    return Work(read=written + (0 if index_out else integers))


COPY: dict[str, Rule] = {
    **dict.fromkeys(
        names(
            "clone _to_copy to contiguous cat concat concatenate stack hstack vstack dstack "
            "repeat repeat_interleave tile flip fliplr flipud rot90 roll constant_pad_nd pad "
            "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
            "replication_pad2d replication_pad3d _pad_circular pixel_shuffle pixel_unshuffle "
            "channel_shuffle native_channel_shuffle im2col _to_dense to_dense to_sparse "
            "to_mkldnn _to_sparse to_padded_tensor slice_backward select_backward "
            "diagonal_backward unfold_backward slice_scatter select_scatter "
            "diagonal_scatter as_strided_scatter _pack_padded_sequence _pad_packed_sequence "
            "_pack_padded_sequence_backward split_with_sizes_copy view_copy expand_copy "
            "permute_copy "
            "transpose_copy slice_copy t_copy squeeze_copy unsqueeze_copy _reshape_copy "
            "block_diag meshgrid cartesian_prod combinations _pin_memory pin_memory "
            "_chunk_cat unbind_copy split_copy detach_copy alias_copy _to_cpu "
            "mkldnn_reorder_conv2d_weight to_mkldnn_backward "
            "_mkldnn_reshape _mkldnn_transpose _nested_from_padded _to_sparse_csr "
            "_to_sparse_semi_structured coalesce _coalesce resize_as_"
        ),
        copy,
    ),
    "mkldnn::_reorder_linear_weight": copy,
    "mkldnn::_reorder_convolution_weight": copy,
    "aten::copy": copy_into,
    "aten::copy_": copy_into,
    "aten::_copy_from": copy,
    "aten::_copy_from_and_resize": copy,
    **dict.fromkeys(
        names(
            "index_select gather take take_along_dim embedding index masked_select "
            " _unsafe_index _unsafe_masked_index nonzero_static"
        ),
        gathered,
    ),
}
