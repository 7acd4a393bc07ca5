"""Tensors in safetensors files: those with many zeros as a bit per element and the other values,
packed signs of binary layers along their spanning tree (`sign_code`).

Lossless to the bit: an element is a zero only if all its bits are (minus zero is kept). A bit mask
costs what the indices of a 2:4 pattern cost (four bits in four elements), and takes any pattern. In
the file ``NAME`` holds the values in order, ``NAME::zeros`` the mask, and the metadata the shape.
Of a matrix of bytes called ``signs`` the file holds the code under its name.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paredown.runtime import sign_code

MASK = "::zeros"
"""What the mask's name ends with; no parameter's does."""
SHAPE = "sparse:"
"""What the metadata's keys of sparse tensors begin with."""
SIGNS = "signs:"
"""What the metadata's keys of signs along a tree begin with."""
FROM = 4096
"""Elements from which a tensor is looked at for zeros."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(t: Tensor) -> tuple[Tensor, Tensor] | None:
    """``(mask, values)`` of a tensor, None where they would not be smaller.

    ``mask`` is uint8, eight elements in a byte, the first in the highest bit.
    """
    size = t.element_size()
    if t.numel() < FROM or size not in _BITS or t.is_complex() or t.layout != torch.strided:
        return None
    flat = t.detach().contiguous().reshape(-1)
    bits = flat.view(_BITS[size])
    # Counted without a mask: a sum of one would hold eight bytes for every element.
    count = int(torch.count_nonzero(bits))
    if count * size + -(-t.numel() // 8) >= t.numel() * size:
        return None
    filled = bits != 0
    mask = torch.from_numpy(np.packbits(filled.numpy()))
    return mask, flat[filled]


def unpack(mask: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor that `pack` took apart. Raises ``ValueError`` where the parts do not fit."""
    size = prod(shape)
    if mask.dtype != torch.uint8 or mask.numel() != -(-size // 8):
        raise ValueError(f"a mask of {mask.numel()} bytes for {size} elements")
    filled = torch.from_numpy(np.unpackbits(mask.numpy(), count=size)).bool()
    if int(filled.sum()) != values.numel():
        raise ValueError(f"{values.numel()} values for a mask of {int(filled.sum())}")
    out = torch.zeros(size, dtype=values.dtype)
    out[filled] = values.reshape(-1)
    return out.reshape(shape)


def packed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as they go into a file, and the metadata that says which are not as they were."""
    held: dict[str, Tensor] = {}
    shapes: dict[str, str] = {}
    for name, t in tensors.items():
        code = _along_a_tree(name, t)
        if code is not None:
            held[name] = code
            shapes[SIGNS + name] = json.dumps(list(t.shape))
            continue
        parts = pack(t)
        if parts is None:
            held[name] = t
        else:
            held[name + MASK], held[name] = parts
            shapes[SHAPE + name] = json.dumps(list(t.shape))
    return held, shapes


def _along_a_tree(name: str, t: Tensor) -> Tensor | None:
    if name.rpartition(".")[2] != "signs" or t.dtype != torch.uint8 or t.is_meta:
        return None
    code = sign_code.pack(t.detach().cpu().numpy())
    return None if code is None else torch.from_numpy(np.frombuffer(code, dtype=np.uint8).copy())


def save(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous tensors; ``metadata`` goes beside what says how they are held."""
    from safetensors.torch import save_file

    held, shapes = packed(tensors)
    save_file(held, path, metadata={**(metadata or {}), **shapes})


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors as they would lie in a file, without its header."""
    return sum(t.numel() * t.element_size() for t in packed(tensors)[0].values())


class Reader:
    """An open file: its tensors by name, whole again."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.metadata: dict[str, str] = file.metadata() or {}
        held: list[str] = file.keys()
        self.names = [name for name in held if not name.endswith(MASK)]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        given = self.metadata.get(SHAPE + name) or self.metadata.get(SIGNS + name)
        return tuple(json.loads(given) if given else self._file.get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        """A tensor. Raises ``ValueError`` where parts do not fit or a code is damaged."""
        values = self._file.get_tensor(name)
        if SIGNS + name in self.metadata:
            return torch.from_numpy(sign_code.unpack(values.numpy().tobytes(), self.shape(name)))
        if SHAPE + name not in self.metadata:
            return values
        return unpack(self._file.get_tensor(name + MASK), values, self.shape(name))

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {name: self.get(name) for name in self.names}


@contextmanager
def opened(path: Path) -> Generator[Reader]:
    """Open a file that `save`, or anyone, wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        yield Reader(f)


def load(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by name."""
    with opened(path) as f:
        return f.tensors()
