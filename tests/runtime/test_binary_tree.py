"""Spanning trees over binary channels: outputs, lengths, counts and bytes are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree

from paredown.errors import InputError
from paredown.runtime import binary, sign_code
from paredown.runtime import binary_plan as plans
from paredown.runtime import binary_tree as trees


def random_signs(channels: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1, 1], (channels, inputs)).astype(np.int8)


def near(channels: int, inputs: int, flips: float, seed: int = 0) -> np.ndarray:
    """Channels that differ from one vector in a share of their inputs."""
    g = np.random.default_rng(seed)
    return g.choice([-1, 1], inputs) * np.where(g.random((channels, inputs)) < flips, -1, 1)


def popcounts(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    a, b = (binary.pack_signs(torch.from_numpy(t).float(), torch.zeros(t.shape[1])) for t in (x, w))
    return binary.binary_product(a, b, x.shape[1]).numpy()


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize(("channels", "inputs"), [(1, 1), (2, 3), (17, 63), (40, 100)])
def test_outputs_and_popcounts_are_those_of_the_plain_product(channels, inputs, negated):
    for w in (random_signs(channels, inputs), near(channels, inputs, 0.1)):
        x = random_signs(19, inputs, seed=1)
        wanted = x.astype(np.int64) @ w.T
        tree = trees.spanning_tree(w, negated=negated)
        assert np.array_equal(trees.products(tree, w, x), wanted)
        assert np.array_equal(popcounts(x, w), wanted)


@pytest.mark.parametrize(("channels", "inputs"), [(1, 1), (2, 3), (17, 63), (40, 130)])
def test_plans_give_the_plain_product_with_or_without_a_tree(channels, inputs):
    w, x = near(channels, inputs, 0.2), random_signs(19, inputs, seed=1)
    wanted = x.astype(np.int64) @ w.T
    tree = trees.spanning_tree(w)
    spread = np.sort(np.random.default_rng(0).choice(3 * inputs, inputs, replace=False))
    for columns in (np.arange(inputs), spread):
        bits = np.zeros((19, 64 * (columns[-1] // 64 + 1)), dtype=np.uint8)
        bits[:, columns] = x < 0
        rows = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)
        for along in (tree, None):
            plan = plans.plan(w, along, columns)
            assert np.array_equal(plans.sums(plan, rows).T, wanted)
            counted = inputs * channels if along is None else tree.bit_ops
            assert plan.steps[:, 5].sum() == counted
            assert (plan.lists.size - counted) <= 14 * channels
    with pytest.raises(InputError, match="words"):
        plans.sums(plan, rows[:, :0])
    with pytest.raises(InputError, match="negated"):
        plans.plan(np.array([[1, 1, 1], [-1, -1, -1]]), negation())
    with pytest.raises(InputError, match="a tree of"):
        plans.plan(random_signs(50, 9), tree)


def negation() -> trees.Tree:
    return trees.spanning_tree(np.array([[1, 1, 1], [-1, -1, -1]]), negated=True)


def test_length_is_scipys_and_bit_ops_are_root_and_edges():
    for seed in range(5):
        w = random_signs(30, 77, seed)
        assert len(np.unique(w, axis=0)) == 30  # scipy takes distance 0 for no edge
        tree = trees.spanning_tree(w)
        assert tree.length == int(minimum_spanning_tree(trees.distances(w)).sum())
        told = sum(int((w[k] != w[j]).sum()) for k, j in enumerate(tree.parent) if j >= 0)
        assert tree.length == told
        assert tree.bit_ops == 77 + told
        assert tree.gain == 30 * 77 / (77 + told)
        assert trees.spanning_tree(w, negated=True).length <= tree.length


def test_the_root_is_the_centre_and_parents_stand_before_children():
    line = np.where(np.arange(8)[None] < np.arange(9)[:, None], -1, 1)  # each differs from the next
    tree = trees.spanning_tree(line)
    assert (tree.length, tree.depth, tree.root) == (8, 4, 4)
    place = {k: i for i, k in enumerate(tree.order)}
    assert all(place[j] < place[k] for k, j in enumerate(tree.parent) if j >= 0)
    star = near(40, 200, 0.02)
    assert trees.spanning_tree(star).depth < 40


def test_random_weights_of_the_papers_size_give_2_2():
    gains = [trees.spanning_tree(random_signs(128, 576, s)).gain for s in range(3)]
    assert np.mean(gains) == pytest.approx(2.2, abs=0.1)


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("flips", [0.0, 0.02, 0.2, 0.5])
def test_bytes_read_back_and_shrink_with_the_distances(flips, negated):
    w = near(24, 150, flips)
    tree = trees.spanning_tree(w, negated=negated)
    data = sign_code.encoded(w, tree)
    assert np.array_equal(sign_code.decoded(data), trees.signs(w))
    if flips <= 0.02:
        assert len(data) < 0.5 * sign_code.plain_bytes(w)
        assert len(data) < sign_code.deflated_bytes(w) or flips == 0


def test_bad_input_is_refused():
    w = random_signs(5, 9)
    tree = trees.spanning_tree(w)
    with pytest.raises(InputError, match="channels and inputs"):
        trees.spanning_tree(np.zeros((0, 3)))
    with pytest.raises(InputError, match="over 9 inputs"):
        trees.products(tree, w, random_signs(2, 8))
    with pytest.raises(InputError, match="not a binary weight"):
        sign_code.decoded(sign_code.encoded(w, tree)[:9])
    with pytest.raises(InputError, match="words of 9 signs"):
        binary.binary_product(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 2), 9)
    with pytest.raises(InputError, match="sizes"):
        sign_code.decoded(b"\xff" * 20)
