"""Cases for the compute kernels: tensors in poisoned memory, one call per instruction set."""

from __future__ import annotations

from typing import Any

import torch

from paredown import kernels

native: Any = kernels.native()
LEVELS: list[str] = native.levels() if native is not None else []
TYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.uint8: "uint8",
    torch.int8: "int8",
}
POISON = {
    torch.float32: float("nan"),
    torch.bfloat16: float("nan"),
    torch.uint8: 255,
    torch.int8: -77,
}


def rows(count: int, columns: int, dtype: torch.dtype, seed: int, gap: int = 5) -> torch.Tensor:
    """A (count, columns) view with `gap` poisoned elements between rows and before and after."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.full((count * (columns + gap) + 2 * gap,), POISON[dtype], dtype=dtype)
    view = whole[gap : gap + count * (columns + gap)].view(count, columns + gap)[:, :columns]
    if dtype.is_floating_point:
        view.copy_(torch.randn(count, columns, generator=generator).to(dtype))
    else:
        low, high = (0, 256) if dtype is torch.uint8 else (-128, 128)
        view.copy_(torch.randint(low, high, (count, columns), generator=generator, dtype=dtype))
    return view


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage a view was cut from."""
    return torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())


def fields(given: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            out[f"{name}*"] = value.data_ptr()
        elif isinstance(value, torch.dtype):
            out[name] = TYPES[value]
        elif value is not None:
            out[name] = value
    return out


def pack(isa: str, kind: str, weights: torch.Tensor, shape: dict[str, Any]) -> torch.Tensor:
    """Packed weights at an address that is a multiple of 64, in a byte tensor."""
    size = native.kernel_packed_size(isa, kind, fields(shape), weights.data_ptr())
    whole = torch.full((size + 64,), 255, dtype=torch.uint8)
    start = -whole.data_ptr() % 64
    native.kernel_pack(isa, kind, fields(shape), weights.data_ptr(), 0, whole.data_ptr() + start)
    return whole[start : start + size]


def call(isa: str, op: str, given: dict[str, Any], parts: int = 1, **how: int) -> float:
    return native.kernel_call(isa, op, fields(given), parts, **how)
