"""A binary layer's signs as bytes along their spanning tree ("MST-compression", Vo et al. 2023,
arXiv:2308.13735): the root's signs, then for each channel where it differs from its parent.

Differences are gaps in Rice codes or a mask, whichever is shorter for the layer; both are exact.
`pack` and `unpack` do so with signs packed eight to a byte, as a model holds them.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError
from paredown.runtime.binary_tree import Tree, signs, spanning_tree

Bits = NDArray[np.uint8]
MASK = 9
"""The way of writing differences that is a mask; those below are Rice codes of 0 to 8 low bits."""
MOST = 4096
"""Channels up to which `pack` builds a tree: distances are between each two."""


def encoded(weight: NDArray[Any], tree: Tree) -> bytes:
    """The signs of a weight along its tree, to be read back by `decoded` from the bytes alone.

    Channels, inputs, then in the tree's order the channel, its parent's place, whether it is
    negated, and the differences.
    """
    w = signs(weight)
    place = {k: i for i, k in enumerate(tree.order)}
    name = max(1, (len(w) - 1).bit_length())
    edges = [(k, tree.parent[k], -1 if tree.negated[k] else 1) for k in tree.order[1:]]
    masks = [w[k] != sign * w[j] for k, j, sign in edges]
    way = _shortest(masks, tree.inputs)
    parts = [_number(way, 4), (w[tree.root] < 0).astype(np.uint8), _number(tree.root, name)]
    for (k, j, sign), mask in zip(edges, masks, strict=True):
        parts += [_number(k, name), _number(place[j], name), _number(int(sign < 0), 1)]
        parts.append(_differences(mask, way))
    head = np.array([len(w), tree.inputs], dtype="<u4").tobytes()
    return head + np.packbits(np.concatenate(parts)).tobytes()


def decoded(data: bytes) -> NDArray[np.int8]:
    """The signs ``(channels, n)`` that `encoded` wrote. Raises ``InputError`` for other bytes."""
    try:
        channels, inputs = (int(v) for v in np.frombuffer(data[:8], dtype="<u4"))
        if not (0 < channels <= 8 * len(data) and 0 < inputs <= 8 * len(data)):
            raise ValueError("its sizes do not fit its length")
        bits = _Reader(data[8:])
        way, name = bits.number(4), max(1, (channels - 1).bit_length())
        out = np.zeros((channels, inputs), dtype=np.int8)
        root = 1 - 2 * bits.mask(inputs).astype(np.int8)
        order = [bits.number(name)]
        out[order[0]] = root
        for _ in range(channels - 1):
            order.append(bits.number(name))
            base = out[order[bits.number(name)]] * (-1 if bits.number(1) else 1)
            out[order[-1]] = np.where(bits.differences(inputs, way), -base, base)
    except (ValueError, IndexError) as e:
        raise InputError(f"not a binary weight along a tree: {e}") from None
    if sorted(order) != list(range(channels)):
        raise InputError("not a binary weight along a tree: channels are missing")
    return out


def pack(rows: NDArray[np.uint8]) -> bytes | None:
    """Packed signs ``(channels, bytes)``, a set bit for -1, along their tree; None where that
    would not be shorter.
    """
    if rows.ndim != 2 or rows.size == 0 or len(rows) > MOST:
        return None
    weight = 1 - 2 * np.unpackbits(rows, axis=1, bitorder="little").astype(np.int8)
    code = encoded(weight, spanning_tree(weight, negated=True))
    return code if len(code) < rows.size else None


def unpack(code: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """What `pack` was given. Raises ``ValueError`` for a damaged code or one of another shape."""
    try:
        weight = decoded(code)
    except InputError as e:
        raise ValueError(str(e)) from None
    if (len(weight), weight.shape[1] / 8) != shape:
        raise ValueError(f"signs of {weight.shape} for {shape} bytes")
    return np.packbits(weight < 0, axis=1, bitorder="little")


def plain_bytes(weight: NDArray[Any]) -> int:
    """Bytes of the signs alone, eight to a byte, behind the same eight bytes of sizes."""
    return 8 + -(-signs(weight).size // 8)


def deflated_bytes(weight: NDArray[Any]) -> int:
    """Bytes of the packed signs after zlib: what a general compressor finds without the tree."""
    return 8 + len(zlib.compress(np.packbits(signs(weight) < 0).tobytes(), 9))


def _gaps(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


def _shortest(masks: list[NDArray[np.bool_]], inputs: int) -> int:
    """The way in which the differences of all edges take the fewest bits."""
    gaps = np.concatenate([_gaps(m) for m in masks]) if masks else np.zeros(0, dtype=np.int64)
    counts = len(masks) * inputs.bit_length()
    rice = [counts + int((gaps >> low).sum()) + gaps.size * (1 + low) for low in range(MASK)]
    return int(np.argmin([*rice, len(masks) * inputs]))


def _number(value: int, width: int) -> Bits:
    return np.array([value >> i & 1 for i in reversed(range(width))], dtype=np.uint8)


def _differences(mask: NDArray[np.bool_], way: int) -> Bits:
    """How many, and the gaps before each difference in Rice codes, or the mask itself."""
    if way == MASK:
        return mask.astype(np.uint8)
    gaps = _gaps(mask)
    high, low = gaps >> way, gaps & ((1 << way) - 1)
    sizes = high + 1 + way
    ends = np.cumsum(sizes)
    out = np.ones(int(ends[-1]) if gaps.size else 0, dtype=np.uint8)
    out[ends - way - 1] = 0  # ones as many as the high part, then a zero, then the low bits
    for i in range(way):
        out[ends - 1 - i] = low >> i & 1
    return np.concatenate([_number(gaps.size, mask.size.bit_length()), out])


class _Reader:
    """Bits in order, as characters: Python's own search and conversion are the quickest here.

    Raises ``IndexError`` or ``ValueError`` behind the last.
    """

    def __init__(self, data: bytes) -> None:
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        self._bits, self._at = (bits + ord("0")).tobytes().decode("ascii"), 0

    def _take(self, count: int) -> str:
        if self._at + count > len(self._bits):
            raise IndexError("it ends early")
        self._at += count
        return self._bits[self._at - count : self._at]

    def number(self, width: int) -> int:
        return int(self._take(width), 2) if width else 0

    def mask(self, count: int) -> NDArray[np.bool_]:
        return np.frombuffer(self._take(count).encode("ascii"), dtype=np.uint8) == ord("1")

    def differences(self, inputs: int, way: int) -> NDArray[np.bool_]:
        if way >= MASK:
            return self.mask(inputs)
        mask = np.zeros(inputs, dtype=bool)
        at = -1
        for _ in range(self.number(inputs.bit_length())):
            end = self._bits.index("0", self._at)
            high, self._at = end - self._at, end + 1
            at += 1 + (high << way | self.number(way))
            mask[at] = True
        return mask
