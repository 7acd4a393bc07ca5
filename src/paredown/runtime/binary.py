"""Products of signs as XNOR and popcount, as operators ("XNOR-Net", Rastegari et al. 2016,
arXiv:1603.05279, section 3.2): ``n - 2 * popcount(a xor w)``, 64 products to a word.

A sign is a bit, set for -1; 64 stand in an int64 word, the first lowest, and what a row's last word
has no sign for is zero. All results are exact integers. Kernels stand in ``kernels/cpp/signs``;
where they were not built the numpy reference here runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paredown import kernels
from paredown.errors import InputError
from paredown.runtime import binary_plan

BLOCK = 1 << 16
"""Words of a block of results of the reference: it stays in L2 between xor, count and sum."""
SPLIT = 1 << 22
"""Words of products from which a thread more pays."""


@torch.library.custom_op("paredown::pack_signs", mutates_args=())
def pack_signs(x: Tensor, threshold: Tensor) -> Tensor:
    """``(..., n)`` floats to int64 words ``(..., ceil(n / 64))``, a set bit where x < threshold.

    ``threshold`` is ``(n,)`` float32. A NaN is below nothing: it counts as +1.
    """
    n, module = x.shape[-1], _native(x)
    if module is None or not x.numel():
        return as_words(packed_bits(x.float() < threshold))
    out = torch.empty((*x.shape[:-1], -(-n // 64)), dtype=torch.int64)
    rows = x.float().contiguous().reshape(-1, n)
    module.signs_pack(rows, threshold.contiguous(), out.view(-1, out.shape[-1]), kernels.isa())
    return out


@pack_signs.register_fake
def _(x: Tensor, threshold: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], -(-x.shape[-1] // 64)), dtype=torch.int64)


@torch.library.custom_op("paredown::binary_product", mutates_args=())
def binary_product(a: Tensor, w: Tensor, n: int) -> Tensor:
    """``(rows, channels)`` int32 of packed rows and packed channels over ``n`` signs each.

    Raises ``InputError`` where both have not the same words, or too few for ``n``.
    """
    _check(a, w, n)
    out = torch.empty((a.shape[0], w.shape[0]), dtype=torch.int32, device=a.device)
    module = _native(a)
    if module is not None:
        _multiply(module, a, w, n, out, None, None)
        return out
    return out.copy_(torch.from_numpy(_reference(_words(a), _words(w), n)))


@binary_product.register_fake
def _(a: Tensor, w: Tensor, n: int) -> Tensor:
    return a.new_empty((a.shape[0], w.shape[0]), dtype=torch.int32)


@torch.library.custom_op("paredown::binary_layer", mutates_args=())
def binary_layer(a: Tensor, w: Tensor, n: int, gain: Tensor, offset: Tensor) -> Tensor:
    """``gain * binary_product + offset`` by channel, float32 ``(rows, channels)``, in one pass."""
    module = _native(a)
    if module is None:
        return binary_product(a, w, n) * gain + offset
    _check(a, w, n)
    out = torch.empty((a.shape[0], w.shape[0]))
    _multiply(module, a, w, n, out, gain.contiguous(), offset.contiguous())
    return out


@binary_layer.register_fake
def _(a: Tensor, w: Tensor, n: int, gain: Tensor, offset: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], w.shape[0]), dtype=torch.float32)


class Along:
    """Channels in the order of a tree: ``(channels, rows)`` int32 of packed rows, exact.

    ``gathers`` looks inputs up one by one, as the tree is written; else 64 positions stand in a
    word and counts in bit slices.
    """

    def __init__(self, plan: binary_plan.Plan, *, gathers: bool = False) -> None:
        self.plan, self.gathers = plan, gathers
        module: Any = kernels.native()
        steps = (plan.steps, plan.lists, plan.words, plan.inputs)
        self._checked = None if module is None else module.SignsPlan(*steps)

    def __call__(self, a: Tensor, *, isa: str | None = None) -> Tensor:
        """Packed rows ``(rows, words)`` on the CPU; raises ``InputError`` for other rows."""
        if a.ndim != 2 or a.shape[1] != self.plan.words:
            raise InputError(f"rows of {self.plan.words} words, got {tuple(a.shape)}")
        module: Any = kernels.native()
        if self._checked is None:
            return torch.from_numpy(binary_plan.sums(self.plan, _words(a)))
        out = torch.empty((len(self.plan.steps), a.shape[0]), dtype=torch.int32)
        work = a.shape[0] * self.plan.lists.size // 64
        threads, level = _threads(work), isa or kernels.isa()
        rows = a.contiguous()
        module.signs_along(self._checked, rows, out, None, None, level, self.gathers, threads)
        return out


def packed_bits(bits: Tensor) -> Tensor:
    """Booleans ``(..., n)`` as uint8 ``(..., ceil(n / 8))``, the first lowest."""
    whole = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    at = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (whole * at).sum(-1, dtype=torch.uint8)


def as_words(packed: Tensor) -> Tensor:
    """Packed bytes ``(..., b)`` as int64 words ``(..., ceil(b / 8))``."""
    return F.pad(packed, (0, -packed.shape[-1] % 8)).contiguous().view(torch.int64)


def _check(a: Tensor, w: Tensor, n: int) -> None:
    if a.ndim != 2 or w.ndim != 2 or a.shape[1] != w.shape[1] or not 0 < n <= 64 * a.shape[1]:
        raise InputError(f"words of {n} signs, got {tuple(a.shape)} and {tuple(w.shape)}")


def _native(x: Tensor) -> Any:
    return kernels.native() if x.device.type == "cpu" else None


def _threads(words: int) -> int:
    return max(1, min(torch.get_num_threads(), words // SPLIT))


def _multiply(
    module: Any, a: Tensor, w: Tensor, n: int, out: Tensor, gain: Tensor | None, offset: Any
) -> None:
    threads = _threads(a.numel() * w.shape[0])
    rows, channels = a.contiguous(), w.contiguous()
    module.signs_product(rows, channels, n, out, gain, offset, kernels.isa(), threads)


def _reference(rows: NDArray[Any], channels: NDArray[Any], n: int) -> NDArray[np.int32]:
    out = np.empty((len(rows), len(channels)), dtype=np.int32)
    step = max(1, BLOCK // rows.shape[1])
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        for k, channel in enumerate(channels):
            differ = np.bitwise_count(some ^ channel).sum(axis=1, dtype=np.int32)
            out[first : first + step, k] = n - 2 * differ
    return out


def _words(t: Tensor) -> NDArray[Any]:
    return t.detach().cpu().contiguous().numpy().view(np.uint64)
