"""Axes: refinement, unification and what remains after a cut, against hand-worked index sets."""

import pytest

from paredown.graph.axes import (
    Axis,
    Conflict,
    cut,
    factors,
    find,
    positions,
    product,
    size_after,
    split_front,
    total,
    unify,
    unit_of,
)


def test_a_product_keeps_whole_heads():
    heads, dim = Axis(3), Axis(2)
    axis = product([heads, dim])
    assert positions(axis, {id(heads): [0, 2]}).tolist() == [0, 1, 4, 5]
    assert size_after(axis, {id(heads): [0, 2]}) == 4
    assert unit_of(axis, heads).tolist() == [0, 0, 1, 1, 2, 2]
    assert unit_of(axis, dim).tolist() == [0, 1, 0, 1, 0, 1]


def test_a_sum_offsets_its_segments():
    a, b = Axis(2), Axis(3)
    axis = total([a, b])
    assert positions(axis, {id(b): [1]}).tolist() == [0, 1, 3]


def test_a_leaf_learns_the_structure_of_what_it_meets():
    flat, heads, dim = Axis(12), Axis(4), Axis(3)
    unify(flat, product([heads, dim]))
    assert [f.size for f in factors(flat)] == [4, 3]
    unify(product([Axis(2), Axis(6)]), flat)
    assert [f.size for f in factors(flat)] == [2, 2, 3]


def test_packed_segments_and_a_product_share_heads():
    q, k, v = (product([Axis(4), Axis(2)]) for _ in range(3))
    packed = total([q, k, v])
    unify(packed, product([Axis(3), Axis(8)]))
    assert find(factors(q)[0]) is find(factors(k)[0]) is find(factors(v)[0])


def test_slices_of_a_product_follow_its_outer_factor():
    outer, inner = Axis(6), Axis(2)
    axis = product([outer, inner])
    first = cut(axis, 0, 4)
    assert first.size == 4
    assert [f.size for f in factors(first)] == [2, 2]
    with pytest.raises(Conflict):
        cut(axis, 0, 3)


def test_sizes_that_factor_differently_conflict():
    with pytest.raises(Conflict):
        unify(product([Axis(2), Axis(3)]), product([Axis(3), Axis(2)]))
    with pytest.raises(Conflict):
        split_front(Axis(7), 2)


def test_what_is_frozen_stays_frozen_when_refined():
    axis = Axis(6, frozen="model output")
    parts = split_front(axis, 2)
    assert {p.frozen for p in parts} == {"model output"}
