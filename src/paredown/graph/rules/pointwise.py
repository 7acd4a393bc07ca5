"""Elementwise operators, forward and backward: simple operations and exp-like ones per element.

A block of words has one rule, per element of the output; in-place (``add_``) and foreach
(``_foreach_add``) forms follow from the plain one (`rules.canonical`).
"""

from __future__ import annotations

from paredown.graph.rules.call import Rule
from paredown.graph.rules.per_element import per_output, table

_ONE = """
    add sub rsub mul multiply subtract neg negative abs absolute sign sgn relu clamp clamp_min
    clamp_max clip where masked_fill maximum minimum fmax fmin floor ceil round trunc fix frac
    floor_divide eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and
    bitwise_or bitwise_not bitwise_xor bitwise_left_shift bitwise_right_shift __and__ __or__
    __xor__ __lshift__ __rshift__ isnan isinf isfinite isposinf isneginf signbit copysign square
    threshold positive nan_to_num heaviside isclose isin relu6 dropout feature_dropout
    alpha_dropout threshold_backward complex conj_physical not_equal greater greater_equal less
    less_equal ldexp native_dropout_backward _masked_scale tril triu
"""

_DIVIDE = """
    div true_divide divide remainder fmod reciprocal lerp addcmul addcdiv prelu _prelu_kernel
    hardtanh leaky_relu hardtanh_backward leaky_relu_backward hardshrink softshrink smooth_l1_loss
    huber_loss mse_loss l1_loss mse_loss_backward smooth_l1_loss_backward huber_loss_backward
    softshrink_backward hardshrink_backward rrelu
"""

_HARD = """
    hardswish hardsigmoid hardswish_backward hardsigmoid_backward _prelu_kernel_backward
    rrelu_with_noise
"""

_EXP = """
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh asinh
    acosh atanh tanh sigmoid erf erfc erfinv pow float_power atan2 arctan2 lgamma digamma
    polygamma i0 sinc logit special_entr special_erfcx special_i0e special_i1 special_i1e
    special_ndtri special_log_ndtr special_xlog1py special_zeta xlogy logaddexp logaddexp2 hypot
    igamma igammac mvlgamma angle polar
"""

_GATE = """
    gelu silu mish softplus elu selu celu log_sigmoid log_sigmoid_forward glu binary_cross_entropy
    binary_cross_entropy_with_logits soft_margin_loss poisson_nll_loss kl_div
"""

_GATE_BACKWARD = """
    gelu_backward silu_backward mish_backward softplus_backward elu_backward log_sigmoid_backward
    glu_backward logit_backward binary_cross_entropy_backward soft_margin_loss_backward
"""

_NO_EXP_BACKWARD = "tanh_backward sigmoid_backward"

ELEMENTWISE: dict[str, Rule] = {
    **table(_ONE, per_output(1)),
    **table(_DIVIDE, per_output(2)),
    **table(_HARD, per_output(4)),
    **table(_EXP, per_output(0, 1)),
    **table(_GATE, per_output(3, 1)),
    **table(_GATE_BACKWARD, per_output(6, 1)),
    **table(_NO_EXP_BACKWARD, per_output(3)),
}
