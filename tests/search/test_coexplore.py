"""Networks and a chip together: shares keep to the chip, early pruning, a search that finds."""

from __future__ import annotations

import numpy as np
import pytest

from paredown.cost.heterogeneous import within
from paredown.cost.systolic import Layer
from paredown.errors import InputError
from paredown.search.gym.coexplore import METRICS, Candidate, Chip, Joint, best, explore


def network(width: int) -> Candidate:
    layers = tuple(
        Layer(f"l{i}", 1, 1, width << i, width << i, (3, 3), (16 >> i, 16 >> i),
              18 * (width << i) ** 2, 2 * 256 * width, 2 * 256 * width)
        for i in range(3)
    )  # fmt: skip
    return Candidate(str(width), layers)


def joint(**more: float) -> Joint:
    tasks = {t: [network(w) for w in (4, 8, 16, 32)] for t in ("a", "b")}
    specs = {"latency": 2e-4, "energy": 2e7, "area": 350.0} | more
    bounds = {"latency": 1e-2, "energy": 1e9, "area": 600.0}
    chip = Chip(256, 8e9)
    return Joint(tasks, chip, specs, bounds, lambda _, n: 0.8 + 0.05 * np.log2(int(n)) / 5)


def test_shares_never_exceed_the_chip() -> None:
    space = joint()
    rng = np.random.default_rng(0)
    for _ in range(300):
        action = tuple(int(rng.integers(len(k.values))) for k in space.knobs)
        subs = space.subs(action)
        assert 1 <= len(subs) <= 2
        assert within(subs, 256, 8e9)


def test_penalty_by_hand() -> None:
    space = joint()
    on = {"latency": 2e-4, "energy": 2e7, "area": 350.0}
    assert space.penalty(on) == 0
    assert space.penalty(on | {"area": 475.0}) == pytest.approx(0.5)
    assert space.penalty(space.bounds) == pytest.approx(3)
    with pytest.raises(InputError, match="energy"):
        joint(energy=2e9)


def test_the_search_finds_designs_within_the_limits() -> None:
    space = joint()
    found = explore(space, episodes=120, seed=1)
    assert len(found) == 120 * 6
    top = best(found)
    assert top.feasible
    assert set(top.seen) == set(METRICS)
    # Only networks for which some chip kept the limits were trained.
    kept = {n.name for d in found if d.feasible for n in space.networks(d.action)}
    assert {n for _, n in space.trained} <= kept
    rng = np.random.default_rng(2)
    drawn = [tuple(int(rng.integers(len(k.values))) for k in space.knobs) for _ in range(120)]
    scores = [space.score(a) for a in drawn if space.penalty(space.cost(a)) == 0]
    assert (top.accuracy or 0) >= max(scores)
    again = best(explore(joint(), episodes=120, seed=1))
    assert again == top


def test_fixed_networks_stay() -> None:
    space = joint()
    found = explore(space, episodes=5, fixed={0: 3, 1: 2})
    assert {d.action[:2] for d in found} == {(3, 2)}


def test_limits_that_nothing_keeps() -> None:
    space = joint(latency=1e-9)
    found = explore(space, episodes=5)
    assert space.trained == set()
    assert not best(found).feasible
    assert best(found).accuracy is None
