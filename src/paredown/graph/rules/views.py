"""Operators that do no work: views, metadata, allocation. An explicit list; nothing else is free."""

from __future__ import annotations

_ATEN = [
    "view", "_unsafe_view", "reshape", "_reshape_alias", "view_as", "expand", "expand_as",
    "permute", "transpose", "t", "numpy_T", "mT", "mH", "adjoint", "swapaxes", "swapdims",
    "movedim", "moveaxis", "squeeze", "unsqueeze", "flatten", "unflatten", "ravel", "slice",
    "select", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "unbind",
    "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "hsplit", "vsplit", "dsplit",
    "detach", "alias", "lift", "lift_fresh", "as_strided", "diagonal", "unfold", "view_as_real",
    "view_as_complex", "_conj", "_neg_view", "conj", "resolve_conj", "resolve_neg", "real", "imag",
    "broadcast_to", "size", "stride", "sym_size", "sym_numel", "sym_stride", "sym_storage_offset",
    "storage_offset", "dim", "numel", "is_same_size", "is_contiguous", "is_complex",
    "is_floating_point", "is_nonzero", "_local_scalar_dense", "item", "result_type", "_version",
    "requires_grad_", "set_", "resize_", "retain_grad", "record_stream", "_shape_as_tensor",
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_functional_assert_async",
    "_has_compatible_shallow_copy_type", "_propagate_xla_data", "sym_constrain_range",
    "sym_constrain_range_for_size", "_fused_sdp_choice", "_debug_has_internal_overlap", "values",
    "indices", "crow_indices", "col_indices", "ccol_indices", "row_indices", "_values", "_indices",
    "_nnz", "sparse_dim", "dense_dim", "is_coalesced", "_coalesced_", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "empty_quantized",
    "_empty_affine_quantized", "_empty_per_channel_affine_quantized", "_efficientzerotensor",
    "q_scale", "q_zero_point", "q_per_channel_scales", "q_per_channel_zero_points",
    "q_per_channel_axis", "qscheme", "_sparse_coo_tensor_unsafe", "_sparse_coo_tensor_with_dims",
    "_sparse_coo_tensor_with_dims_and_tensors", "_sparse_compressed_tensor_unsafe",
    "_sparse_csr_tensor_unsafe", "_validate_sparse_coo_tensor_args",
    "_validate_sparse_compressed_tensor_args", "_validate_sparse_csr_tensor_args",
    "sparse_compressed_tensor", "sparse_csr_tensor", "sparse_coo_tensor", "_unpack_dual",
    "_fw_primal", "_make_dual",
]

VIEWS: frozenset[str] = frozenset(f"aten::{n}" for n in _ATEN) | {
    "profiler::_record_function_enter",
    "profiler::_record_function_enter_new",
    "profiler::_record_function_exit",
}
"""Qualified names of operators with zero work and no traffic of their own."""
