"""A tensor's memory: whether it has any of its own, what identifies it, how many bytes it is."""

# Storages lie below torch's public surface.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

import torch

from paredown.graph.tensors import stored_values


def has_storage(t: torch.Tensor) -> bool:
    """Whether a tensor is strided memory: sparse, compressed and oneDNN-packed ones are not."""
    return t.layout == torch.strided and not t.is_mkldnn


def place_of(t: torch.Tensor) -> tuple[int, tuple[Any, ...]] | None:
    """What identifies a tensor whose Python object is gone (an alias made by autograd, say): the
    address of its storage, and where and how it lies there.
    """
    if not has_storage(t):
        return None
    s = t.untyped_storage()
    return s._cdata, (t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)


def nnz_of(t: torch.Tensor) -> int | None:
    """How many values a sparse tensor stores, None for one that is not sparse."""
    return None if t.layout == torch.strided or t.is_mkldnn else stored_values(t)


def bytes_of(t: torch.Tensor) -> int:
    """Bytes of a dense tensor, or of a sparse one's values and indices."""
    if t.layout == torch.strided or t.is_mkldnn:
        return int(t.numel()) * t.element_size()
    count = max(stored_values(t), 0)
    if t.layout == torch.sparse_coo:
        return count * (t.element_size() + 8 * t.sparse_dim())
    rows = t.shape[-2] if t.layout in (torch.sparse_csr, torch.sparse_bsr) else t.shape[-1]
    return count * (t.element_size() + 8) + 8 * (int(rows) + 1)
