"""The points of a space, with clashes left out early, are those of the whole product."""

import itertools

from paredown.search.space import OFF, Axis, Candidate, _points

AXES = [
    Axis("a", (OFF, "1", "2")),
    Axis("b", (OFF, "on")),
    Axis("c", ("on",)),
    Axis("d", (OFF, "1", "2", "3")),
    Axis("backend", ("eager", "native")),
]
CLASHING = {frozenset({"a", "b"}), frozenset({"b", "d"}), frozenset({"c", "a"})}


def test_clashes_are_left_out_and_the_order_of_the_product_is_kept():
    names = [a.name for a in AXES]
    whole = [
        tuple(zip(names, labels, strict=True))
        for labels in itertools.product(*[a.options for a in AXES])
    ]

    def clean(point):
        on = {name for name, label in point if label != OFF}
        return not any(pair <= on for pair in CLASHING)

    wanted = [Candidate(p) for p in whole if clean(p)]
    assert 0 < len(wanted) < len(whole)
    assert list(_points(AXES, CLASHING)) == wanted
    assert list(_points(AXES, set())) == [Candidate(p) for p in whole]
