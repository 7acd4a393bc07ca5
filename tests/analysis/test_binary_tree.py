"""Spanning trees over binary channels: outputs, lengths, counts and bytes are exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree

from paredown.analysis import binary_tree as trees
from paredown.analysis import binary_words as words
from paredown.errors import InputError


def random_signs(channels: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1, 1], (channels, inputs)).astype(np.int8)


def near(channels: int, inputs: int, flips: float, seed: int = 0) -> np.ndarray:
    """Channels that differ from one vector in a share of their inputs."""
    g = np.random.default_rng(seed)
    return g.choice([-1, 1], inputs) * np.where(g.random((channels, inputs)) < flips, -1, 1)


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize(("channels", "inputs"), [(1, 1), (2, 3), (17, 63), (40, 100)])
def test_outputs_and_popcounts_are_those_of_the_plain_product(channels, inputs, negated):
    for w in (random_signs(channels, inputs), near(channels, inputs, 0.1)):
        x = random_signs(19, inputs, seed=1)
        wanted = x.astype(np.int64) @ w.T
        tree = trees.spanning_tree(w, negated=negated)
        assert np.array_equal(trees.products(tree, w, x), wanted)
        assert np.array_equal(words.products(words.packed(x), words.packed(w), inputs), wanted)


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
    data = trees.encoded(w, tree)
    assert np.array_equal(trees.decoded(data), trees.signs(w))
    if flips <= 0.02:
        assert len(data) < 0.5 * trees.plain_bytes(w)
        assert len(data) < trees.deflated_bytes(w) or flips == 0


def test_bad_input_is_refused():
    w = random_signs(5, 9)
    tree = trees.spanning_tree(w)
    with pytest.raises(InputError, match="channels and inputs"):
        trees.spanning_tree(np.zeros((0, 3)))
    with pytest.raises(InputError, match="over 9 inputs"):
        trees.products(tree, w, random_signs(2, 8))
    with pytest.raises(InputError, match="not a binary weight"):
        trees.decoded(trees.encoded(w, tree)[:9])
    with pytest.raises(InputError, match="words"):
        words.products(words.packed(w), words.packed(random_signs(2, 99)), 9)
