"""Reductions, norms, softmax, pooling, resampling, sorting, scattering, transforms, losses."""

from __future__ import annotations

from math import ceil, log2, prod
from typing import Any

from paredown.graph.rules.call import Call, Rule, Unpriceable, Work, inputs, numel, outputs
from paredown.graph.rules.per_element import names, per_input, per_output

# -- reductions -----------------------------------------------------------------------------------

REDUCTION: dict[str, Rule] = {
    **dict.fromkeys(
        names(
            "sum mean prod nansum nanmean amax amin aminmax max min argmax argmin any all "
            "count_nonzero trace cumsum cumprod cummax cummin _cummax_helper _cummin_helper "
            "_linalg_check_errors median nanmedian mode diff segment_reduce sum_to_size "
            "_is_any_true _is_all_true linalg_cross cross nll_loss nll_loss_forward "
            "nll_loss_backward nll_loss2d_forward nll_loss2d_backward nll_loss_nd "
            "_foreach_max equal allclose cumulative_trapezoid trapezoid gradient"
        ),
        per_input(1),
    ),
    **dict.fromkeys(
        names(
            "var std var_mean std_mean norm linalg_vector_norm linalg_norm _foreach_norm renorm "
            "frobenius_norm nuclear_norm dist linalg_matrix_norm cov corrcoef "
            "_fused_moving_avg_obs_fq_helper"
        ),
        per_input(3),
    ),
    **dict.fromkeys(names("logsumexp logcumsumexp _logcumsumexp"), per_input(2, 1)),
    "aten::_weight_norm_interface": per_input(3),
    "aten::_weight_norm": per_input(3),
    "aten::_weight_norm_interface_backward": per_input(4),
    "aten::cross_entropy_loss": per_input(5, 1),
    "aten::_ctc_loss": per_input(8, 2),
    "aten::_ctc_loss_backward": per_input(8, 2),
    "aten::embedding_renorm": per_output(3),
}

# -- norms and softmax ----------------------------------------------------------------------------


def batch_norm(c: Call) -> Work:
    """A scale and a shift per element; in training also mean and variance."""
    n = numel(c.out)
    training = c.arg(5, "training", False) if "native_batch_norm" in c.node.op else False
    return Work(elementwise=n * (7 if training is True else 2))


NORM: dict[str, Rule] = {
    **dict.fromkeys(
        names(
            "native_batch_norm batch_norm _native_batch_norm_legit cudnn_batch_norm "
            "_batch_norm_with_update _batch_norm_no_update _native_batch_norm_legit_no_training "
            "miopen_batch_norm _batch_norm_impl_index"
        ),
        batch_norm,
    ),
    **dict.fromkeys(
        names("native_layer_norm layer_norm native_group_norm group_norm instance_norm "),
        lambda c: Work(elementwise=8 * numel(c.out)),
    ),
    **dict.fromkeys(
        names("_fused_rms_norm rms_norm"), lambda c: Work(elementwise=4 * numel(c.out))
    ),
    **dict.fromkeys(
        names(
            "native_layer_norm_backward native_group_norm_backward native_batch_norm_backward "
            "_fused_rms_norm_backward batch_norm_backward cudnn_batch_norm_backward "
            ""
        ),
        lambda c: Work(elementwise=14 * numel(c.need(0))),
    ),
    **dict.fromkeys(
        names("_softmax softmax _safe_softmax _masked_softmax _sparse_softmax"), per_output(4, 1)
    ),
    **dict.fromkeys(names("_log_softmax log_softmax _sparse_log_softmax"), per_output(4, 1)),
    **dict.fromkeys(names("_softmax_backward_data _masked_softmax_backward"), per_output(4)),
    **dict.fromkeys(names("_log_softmax_backward_data"), per_output(4, 1)),
}

# -- pooling --------------------------------------------------------------------------------------


def _taps(kernel: Any, spatial: int) -> int:
    kernel = kernel if isinstance(kernel, (list, tuple)) else [kernel]
    return kernel[0] ** spatial if len(kernel) == 1 else prod(kernel)


def _window(spatial: int, compares: bool) -> Rule:
    """Every output looks at its whole window."""

    def rule(c: Call) -> Work:
        work = numel(c.out) * _taps(c.arg(1, "kernel_size"), spatial)
        return Work(compare=work) if compares else Work(elementwise=work)

    return rule


def _window_backward(spatial: int) -> Rule:
    def rule(c: Call) -> Work:
        return Work(elementwise=numel(c.need(0)) * _taps(c.arg(2, "kernel_size"), spatial))

    return rule


POOL: dict[str, Rule] = {
    **{f"aten::max_pool{d}d": _window(d, True) for d in (1, 2, 3)},
    **{f"aten::max_pool{d}d_with_indices": _window(d, True) for d in (1, 2, 3)},
    **{f"aten::avg_pool{d}d": _window(d, False) for d in (1, 2, 3)},
    **{f"aten::avg_pool{d}d_backward": _window_backward(d) for d in (2, 3)},
    "aten::mkldnn_max_pool2d": _window(2, True),
    "aten::quantized_max_pool2d": _window(2, True),
    **dict.fromkeys(
        names(
            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d "
            "_adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d"
        ),
        per_input(1),
    ),
    **dict.fromkeys(
        names(
            "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d "
            "fractional_max_pool3d"
        ),
        per_input(0, 0, 1),
    ),
    **dict.fromkeys(
        names(
            "max_pool2d_with_indices_backward max_pool3d_with_indices_backward "
            "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward "
            "adaptive_max_pool2d_backward max_unpool2d max_unpool3d "
            "reflection_pad1d_backward reflection_pad2d_backward "
            "replication_pad1d_backward replication_pad2d_backward"
        ),
        per_output(1),
    ),
}

# -- resampling and windows -----------------------------------------------------------------------

_UP = {
    "nearest1d": 0,
    "nearest2d": 0,
    "nearest3d": 0,
    "_nearest_exact1d": 0,
    "_nearest_exact2d": 0,
    "_nearest_exact3d": 0,
    "linear1d": 3,
    "bilinear2d": 7,
    "bicubic2d": 31,
    "trilinear3d": 15,
    "_bilinear2d_aa": 7,
    "_bicubic2d_aa": 31,
    "_lanczos2d_aa": 71,
}
_UP_NAMES = {f"_upsample{n}" if n.startswith("_") else f"upsample_{n}": k for n, k in _UP.items()}


def grid_sample(c: Call) -> Work:
    """Corner weights, four (eight in 3-D) products each, at every output."""
    corners = 2 ** (len(c.out.shape) - 2)
    return Work(elementwise=numel(c.out) * 2 * corners + 12 * numel(c.need(1)))


RESAMPLE: dict[str, Rule] = {
    **{f"aten::{n}": per_output(k) for n, k in _UP_NAMES.items()},
    **{f"aten::{n}_backward": per_input(k + 1) for n, k in _UP_NAMES.items()},
    **dict.fromkeys(
        names(
            "grid_sampler_2d grid_sampler_3d grid_sampler _grid_sampler_2d_cpu_fallback "
            "cudnn_grid_sampler"
        ),
        grid_sample,
    ),
    **dict.fromkeys(names("grid_sampler_2d_backward grid_sampler_3d_backward"), per_input(16)),
    "aten::affine_grid_generator": per_output(3),
    "aten::col2im": per_input(1),
    "torchvision::roi_align": per_output(28),
    "torchvision::roi_pool": per_output(0, 0, 8),
    "torchvision::_roi_align_backward": per_input(28),
}

# -- sorting, scattering --------------------------------------------------------------------------


def _sorting(c: Call) -> Work:
    """``n log2 n`` comparisons along the sorted axis."""
    x = c.need(0)
    dim = c.arg(1, "dim", -1)
    if c.node.op.endswith(("topk", "kthvalue")):
        dim = c.arg(2, "dim", -1)
    axis = dim if isinstance(dim, int) and not isinstance(dim, bool) else -1
    length = x.shape[axis] if x.shape else 1
    steps = ceil(log2(length)) if length > 1 else 1
    if c.node.op.endswith("topk"):
        k = c.arg(1, "k")
        steps = 1 + (ceil(log2(k)) if isinstance(k, int) and k > 1 else 0)
    return Work(compare=numel(x) * steps)


def unique(c: Call) -> Work:
    """A sort of everything."""
    n = numel(c.need(0))
    return Work(compare=n * (ceil(log2(n)) if n > 1 else 1))


def search(c: Call) -> Work:
    """Binary search of every value."""
    sorted_, values = (c.need(0), c.ins[1]) if "sorted" in c.node.op else (c.ins[-1], c.need(0))
    length = sorted_.shape[-1] if sorted_.shape else 1
    return Work(compare=numel(values) * (ceil(log2(length)) if length > 1 else 1))


def _scattered(source_at: int) -> Rule:
    """In place: touches what it writes (source and index), not the whole target."""

    def rule(c: Call) -> Work:
        source = c.tensor(source_at)
        indices = sum(c.stored(t) for t in c.ins[1:] if t.dtype in ("int64", "int32", "bool"))
        moved = c.stored(source) if source is not None else indices
        in_place = c.node.op.endswith("_")
        whole = 0 if in_place else c.stored(c.need(0))
        adds = numel(source) if source is not None else 0
        return Work(elementwise=adds, read=2 * moved + indices + whole, written=moved + whole)

    return rule


def index_put(c: Call) -> Work:
    """``target[indices] = values``."""
    return _scattered(2)(c)


def embedding_bag(c: Call) -> Work:
    """Reads one row per index, adds it to its bag."""
    weight, indices = c.need(0), c.need(1)
    rows = numel(indices)
    moved = rows * weight.shape[1] * (weight.nbytes // max(numel(weight), 1))
    return Work(elementwise=rows * weight.shape[1], read=moved + indices.nbytes)


def embedding_backward(c: Call) -> Work:
    """Adds every gradient row to its place in a table of zeros."""
    grad = c.need(0)
    return Work(elementwise=numel(grad))


SCATTER: dict[str, Rule] = {
    **dict.fromkeys(names("sort argsort msort topk kthvalue"), _sorting),
    **dict.fromkeys(
        names("_unique _unique2 unique_dim unique_consecutive bincount histc histogram"), unique
    ),
    **dict.fromkeys(names("searchsorted bucketize"), search),
    **dict.fromkeys(
        names("scatter scatter_add index_add index_copy scatter_reduce index_reduce"), _scattered(3)
    ),
    **dict.fromkeys(
        names("index_put _unsafe_index_put _index_put_impl put masked_scatter"), index_put
    ),
    "aten::index_fill": per_output(0),
    "aten::embedding_bag": embedding_bag,
    "aten::_embedding_bag": embedding_bag,
    "aten::_embedding_bag_forward_only": embedding_bag,
    "aten::embedding_dense_backward": embedding_backward,
    "aten::gather_backward": per_input(1),
    "aten::nonzero": per_input(1),
    "aten::argwhere": per_input(1),
    "aten::one_hot": per_output(1),
    "torchvision::nms": lambda c: Work(
        compare=numel(c.need(1)) ** 2 // 2, elementwise=4 * numel(c.need(1)) ** 2
    ),
}

# -- transforms -----------------------------------------------------------------------------------


def _fft(flops_per_point: float) -> Rule:
    """``5 N log2 N`` real operations for a complex transform of N points, half that for a
    real one.
    """

    def rule(c: Call) -> Work:
        dims = c.arg(1, "dim")
        big = max((*c.ins, *c.outs), key=numel)
        if not isinstance(dims, (list, tuple)):
            raise Unpriceable("a transform without dimensions")
        shape = c.out.shape if c.node.op.endswith("c2r") else c.need(0).shape
        points = prod(shape[d] for d in dims)
        steps = log2(points) if points > 1 else 0.0
        n = max(numel(c.need(0)), numel(c.out)) if flops_per_point < 5 else numel(big)
        return Work(elementwise=round(flops_per_point * n * steps))

    return rule


FFT: dict[str, Rule] = {
    "aten::_fft_c2c": _fft(5),
    "aten::_fft_r2c": _fft(2.5),
    "aten::_fft_c2r": _fft(2.5),
    "aten::stft": lambda c: Work(
        elementwise=round(2.5 * outputs(c) * log2(max(int(c.arg(1, "n_fft")), 2)))
    ),
    "aten::istft": lambda c: Work(
        elementwise=round(2.5 * inputs(c) * log2(max(int(c.arg(1, "n_fft")), 2)))
    ),
}
