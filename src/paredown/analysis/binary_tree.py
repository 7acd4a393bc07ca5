"""Reuse between the output channels of a binary layer along a minimum spanning tree
("MST-compression", Vo et al. 2023, arXiv:2308.13735).

Weights are +1 and -1. An output channel differs from another's in the inputs where their weights
differ, ``y_k = y_j + 2 * sum of w_ki x_i over these``: with n inputs a channel costs n bit products
for the first and the Hamming distance for each that is made of another. A minimum spanning tree
over the distances has the fewest; its centre as the root gives the least depth, which is the
latency of a pipeline. `encoded` is the same tree as bytes, exactly.

Deviations: of all trees of minimum length the paper takes one of least depth; here ties go to the
shallower parent, and the tree found is rooted at its centre, so a shallower one may exist. With
``negated``, which the paper does not have, a channel may be made of another's negative:
``min(d, n - d)`` differences.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError

Bits = NDArray[np.uint8]
MODES = 10
"""Ways in which differences are written: Rice codes of 0 to 8 low bits, or a mask."""


@dataclass(frozen=True)
class Tree:
    """A spanning tree over the channels of a layer.

    ``parent`` is -1 for the root. ``negated`` tells the channels made of their parent's negative;
    ``order`` lists channels so that a parent stands before its children.
    """

    inputs: int
    parent: tuple[int, ...]
    negated: tuple[bool, ...]
    distance: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def root(self) -> int:
        """The channel that is computed in full."""
        return self.order[0]

    @property
    def length(self) -> int:
        """Differences over all edges."""
        return sum(self.distance)

    @property
    def depth(self) -> int:
        """Edges from the root to the farthest channel."""
        return max(depths(self.parent, self.order))

    @property
    def bit_ops(self) -> int:
        """Products of bits for one output position: the root's inputs and every edge's."""
        return self.inputs + self.length

    @property
    def gain(self) -> float:
        """Products of bits without the tree over those with it."""
        return self.inputs * len(self.parent) / self.bit_ops


def depths(parent: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """Edges from the root to each channel."""
    found = [0] * len(parent)
    for k in order[1:]:
        found[k] = found[parent[k]] + 1
    return found


def signs(weight: NDArray[Any]) -> NDArray[np.int8]:
    """A weight ``(channels, ...)`` as ``(channels, n)`` of +1 and -1; zero counts as +1.

    Raises ``InputError`` for no channels or no inputs.
    """
    if weight.ndim < 2 or weight.size == 0:
        raise InputError(f"a binary weight has channels and inputs, got shape {weight.shape}")
    flat = weight.reshape(weight.shape[0], -1)
    return np.where(flat >= 0, 1, -1).astype(np.int8)


def distances(weight: NDArray[Any]) -> NDArray[np.int64]:
    """Inputs in which each two channels differ, ``(channels, channels)``."""
    w = signs(weight).astype(np.float64)  # sums below 2**53: exact
    return ((w.shape[1] - w @ w.T) / 2).astype(np.int64)


def spanning_tree(weight: NDArray[Any], *, negated: bool = False) -> Tree:
    """The tree of least length over the channels, rooted at its centre (Prim's algorithm)."""
    between = distances(weight)
    count, inputs = len(between), int(signs(weight).shape[1])
    flipped = between * 2 > inputs if negated else np.zeros_like(between, dtype=bool)
    between = np.where(flipped, inputs - between, between)
    start = int(between.sum(axis=1).argmin())
    depth = np.zeros(count, dtype=np.int64)
    nearest = between[start].copy()
    by = np.full(count, start)
    left = np.ones(count, dtype=bool)
    left[start] = False
    edges: list[tuple[int, int]] = []
    for _ in range(count - 1):
        k = int(np.where(left, nearest, inputs + 1).argmin())
        j = int(by[k])
        edges.append((j, k))
        left[k] = False
        depth[k] = depth[j] + 1
        closer = (between[k] < nearest) | ((between[k] == nearest) & (depth[k] < depth[by]))
        nearest = np.where(closer, between[k], nearest)
        by = np.where(closer, k, by)
    parent, order = _rooted(count, edges)
    pairs = list(enumerate(parent))
    return Tree(
        inputs,
        parent,
        tuple(j >= 0 and bool(flipped[k, j]) for k, j in pairs),
        tuple(0 if j < 0 else int(between[k, j]) for k, j in pairs),
        order,
    )


def _rooted(count: int, edges: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Parents and order of a tree from its centre, half way along its longest path."""
    near: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)

    def walk(root: int) -> tuple[list[int], list[int]]:
        parent, order = [-1] * count, [root]
        for k in order:
            for other in near[k]:
                if other != parent[k]:
                    parent[other] = k
                    order.append(other)
        return parent, order

    _, order = walk(0)
    parent, order = walk(order[-1])  # a walk by width ends at a farthest channel
    path = [order[-1]]
    while parent[path[-1]] >= 0:
        path.append(parent[path[-1]])
    parent, order = walk(path[len(path) // 2])
    return tuple(parent), tuple(order)


def products(tree: Tree, weight: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
    """Outputs ``(positions, channels)`` of +-1 inputs ``(positions, n)``, in the tree's order.

    Only the root's product is a whole one. Raises ``InputError`` where the inputs do not fit.
    """
    w = signs(weight)
    if x.ndim != 2 or x.shape[1] != tree.inputs or w.shape != (len(tree.parent), tree.inputs):
        raise InputError(f"a tree over {tree.inputs} inputs, got {x.shape} and {w.shape}")
    out = np.empty((len(w), len(x)), dtype=np.float64)  # whole numbers below 2**53: exact
    wide = np.ascontiguousarray(x.T, dtype=np.float64)
    out[tree.root] = w[tree.root].astype(np.float64) @ wide
    for k in tree.order[1:]:
        j = tree.parent[k]
        sign = -1 if tree.negated[k] else 1
        at = np.flatnonzero(w[k] != sign * w[j])
        out[k] = sign * out[j] + 2 * (w[k, at].astype(np.float64) @ wide[at])
    return out.T.astype(np.int64)


# ---------------------------------------------------------------- as bytes
def encoded(weight: NDArray[Any], tree: Tree) -> bytes:
    """The signs of a weight along its tree, to be read back by `decoded` from the bytes alone.

    Channels, inputs, then in the tree's order the channel, its parent's place, whether it is
    negated, and the differences: gaps in Rice codes, or a mask, whichever is shorter for the layer.
    """
    w = signs(weight)
    place = {k: i for i, k in enumerate(tree.order)}
    name = max(1, (len(w) - 1).bit_length())
    best: Bits | None = None
    for mode in range(MODES):
        parts = [_number(mode, 4), (w[tree.root] < 0).astype(np.uint8)]
        for i, k in enumerate(tree.order):
            parts.append(_number(k, name))
            if i == 0:
                continue
            j, sign = tree.parent[k], -1 if tree.negated[k] else 1
            parts += [_number(place[j], name), _number(int(tree.negated[k]), 1)]
            parts.append(_differences((w[k] != sign * w[j]).astype(np.uint8), mode))
        bits = np.concatenate(parts)
        if best is None or bits.size < best.size:
            best = bits
    assert best is not None
    head = np.array([len(w), tree.inputs], dtype="<u4").tobytes()
    return head + np.packbits(best).tobytes()


def decoded(data: bytes) -> NDArray[np.int8]:
    """The signs ``(channels, n)`` that `encoded` wrote. Raises ``InputError`` for other bytes."""
    try:
        channels, inputs = (int(v) for v in np.frombuffer(data[:8], dtype="<u4"))
        bits = _Reader(np.unpackbits(np.frombuffer(data[8:], dtype=np.uint8)))
        mode, name = bits.number(4), max(1, (channels - 1).bit_length())
        out = np.zeros((channels, inputs), dtype=np.int8)
        root = 1 - 2 * bits.take(inputs).astype(np.int8)
        order: list[int] = []
        for i in range(channels):
            k = bits.number(name)
            order.append(k)
            if i == 0:
                out[k] = root
                continue
            base = out[order[bits.number(name)]] * (-1 if bits.number(1) else 1)
            out[k] = np.where(bits.differences(inputs, mode), -base, base)
    except (ValueError, IndexError) as e:
        raise InputError(f"not a binary weight along a tree: {e}") from None
    if sorted(order) != list(range(channels)):
        raise InputError("not a binary weight along a tree: channels are missing")
    return out


def plain_bytes(weight: NDArray[Any]) -> int:
    """Bytes of the signs alone, eight to a byte, behind the same eight bytes of sizes."""
    return 8 + -(-signs(weight).size // 8)


def deflated_bytes(weight: NDArray[Any]) -> int:
    """Bytes of the packed signs after zlib: what a general compressor finds without the tree."""
    return 8 + len(zlib.compress(np.packbits(signs(weight) < 0).tobytes(), 9))


def _number(value: int, width: int) -> Bits:
    return np.array([value >> i & 1 for i in reversed(range(width))], dtype=np.uint8)


def _differences(mask: Bits, mode: int) -> Bits:
    """How many, and the gaps before each difference in Rice codes, or the mask itself."""
    if mode == MODES - 1:
        return mask
    at = np.flatnonzero(mask)
    gaps = np.diff(at, prepend=-1) - 1
    high, low = gaps >> mode, gaps & ((1 << mode) - 1)
    sizes = high + 1 + mode
    ends = np.cumsum(sizes)
    out = np.ones(int(ends[-1]) if at.size else 0, dtype=np.uint8)
    out[ends - mode - 1] = 0  # ones as many as the high part, then a zero, then the low bits
    for i in range(mode):
        out[ends - 1 - i] = low >> i & 1
    return np.concatenate([_number(at.size, mask.size.bit_length()), out])


class _Reader:
    """Bits in order. Raises ``IndexError`` behind the last."""

    def __init__(self, bits: Bits) -> None:
        self._bits, self._at = bits, 0

    def take(self, count: int) -> Bits:
        if self._at + count > self._bits.size:
            raise IndexError("it ends early")
        self._at += count
        return self._bits[self._at - count : self._at]

    def number(self, width: int) -> int:
        value = 0
        for bit in self.take(width):
            value = value << 1 | int(bit)
        return value

    def differences(self, inputs: int, mode: int) -> NDArray[np.bool_]:
        if mode >= MODES - 1:
            return self.take(inputs).astype(bool)
        mask = np.zeros(inputs, dtype=bool)
        at = -1
        for _ in range(self.number(inputs.bit_length())):
            high = 0
            while self.take(1)[0]:
                high += 1
            at += 1 + (high << mode | self.number(mode))
            mask[at] = True
        return mask
