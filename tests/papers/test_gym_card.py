"""ArchGym's card: rows by agent and draw, spreads and orders by hand."""

from __future__ import annotations

import pytest

from paredown.papers.cards import gymnasium
from paredown.papers.cards.gymnasium import ArchGymCard
from paredown.search.gym import AGENTS


def rows() -> list[dict[str, object]]:
    # The i-th agent's two draws reach i and 2 i; at the small budget the order is the other way.
    return [
        {"task": "t", "agent": a.name, "draw": d, "seed": s, "large": (i + 1.0) * (d + 1),
         "small": 9.0 - i}
        for i, a in enumerate(AGENTS) for d in range(2) for s in range(3)
    ]  # fmt: skip


def test_spreads_and_orders() -> None:
    found = rows()
    names = [a.name for a in AGENTS]
    assert gymnasium.by_draw(found, "t", names[1], "large") == [2, 4]
    assert gymnasium.min_over_max(found, "t") == pytest.approx(2 / 10)
    assert gymnasium.spread(found, "t") == pytest.approx(0.5 / 0.8)
    assert gymnasium.ranking(found, "t", 1) == names[::-1]
    assert gymnasium.ranking(found, "t", 0) == names


def test_targets_are_reachable_and_designs_count_once() -> None:
    env = gymnasium.environment(("latency",))
    assert env.calls == 0
    assert any(v["latency"] <= env.targets["latency"] for v in env.known.values())
    log = [((0, 1), {}, 1.0), ((0, 1), {}, 1.0), ((1, 1), {}, 1.0)]
    assert len(gymnasium.dedupe(log)) == 2
    assert ArchGymCard.thresholds["proxy_error"] == 0.02
