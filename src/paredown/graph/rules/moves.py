"""Operators that make tensors (fills, random numbers) or move them (copies, gathers)."""

from __future__ import annotations

from paredown.graph.rules.call import Call, Rule, Work, outputs
from paredown.graph.rules.per_element import per_output, table, written_only

_FILL = """
    zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full fill zero
    fill_diagonal arange range linspace logspace eye scalar_tensor tril_indices triu_indices
    hann_window hamming_window blackman_window bartlett_window kaiser_window vander
    _cudnn_init_dropout_state
"""

_RANDOM = """
    rand rand_like randn randn_like randint randint_like randperm normal uniform random
    exponential log_normal cauchy geometric normal_functional
"""

CREATION: dict[str, Rule] = {
    **table(_FILL, written_only(0)),
    **table(_RANDOM, written_only(8, 1)),
    **table(
        "bernoulli native_dropout _fused_dropout multinomial poisson binomial "
        "_standard_gamma _sample_dirichlet",
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
    **table(
        "clone _to_copy to contiguous cat concat concatenate stack hstack vstack dstack "
        "repeat repeat_interleave tile flip fliplr flipud rot90 roll constant_pad_nd pad "
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d _pad_circular pixel_shuffle pixel_unshuffle "
        "channel_shuffle native_channel_shuffle im2col _to_dense to_dense to_sparse "
        "to_mkldnn _to_sparse to_padded_tensor slice_backward select_backward "
        "diagonal_backward unfold_backward slice_scatter select_scatter "
        "diagonal_scatter as_strided_scatter _pack_padded_sequence _pad_packed_sequence "
        "_pack_padded_sequence_backward split_with_sizes_copy view_copy expand_copy "
        "permute_copy transpose_copy slice_copy t_copy squeeze_copy unsqueeze_copy _reshape_copy "
        "block_diag meshgrid cartesian_prod combinations _pin_memory pin_memory "
        "_chunk_cat unbind_copy split_copy detach_copy alias_copy _to_cpu "
        "mkldnn_reorder_conv2d_weight to_mkldnn_backward "
        "_mkldnn_reshape _mkldnn_transpose _nested_from_padded _to_sparse_csr "
        "_to_sparse_semi_structured coalesce _coalesce resize_as_",
        copy,
    ),
    "mkldnn::_reorder_linear_weight": copy,
    "mkldnn::_reorder_convolution_weight": copy,
    "aten::copy": copy_into,
    "aten::copy_": copy_into,
    "aten::_copy_from": copy,
    "aten::_copy_from_and_resize": copy,
    **table(
        "index_select gather take take_along_dim embedding index masked_select "
        "_unsafe_index _unsafe_masked_index nonzero_static",
        gathered,
    ),
}
