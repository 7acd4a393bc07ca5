"""Reuse between the output channels of a binary layer along a minimum spanning tree
("MST-compression", Vo et al. 2023, arXiv:2308.13735).

Weights are +1 and -1. An output channel differs from another's in the inputs where their weights
differ, ``y_k = y_j + 2 * sum of w_ki x_i over these``: with n inputs a channel costs n bit products
for the first and the Hamming distance for each that is made of another. A minimum spanning tree
over the distances has the fewest; its centre as the root gives the least depth, which is the
latency of a pipeline. `sign_code` is the same tree as bytes, exactly.

Deviations: of all trees of minimum length the paper takes one of least depth; here ties go to the
shallower parent, and the tree found is rooted at its centre, so a shallower one may exist. With
``negated``, which the paper does not have, a channel may be made of another's negative:
``min(d, n - d)`` differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError


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
