"""The gymnasium of machines: calls counted, rewards by hand, agents beat chance."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

from paredown import device
from paredown.cost.systolic import Layer, cost
from paredown.errors import InputError
from paredown.search.gym import AGENTS, Agent, Environment, Knob, Proxy
from paredown.search.gym.environment import ARRAY, CAP, array_environment, designed

KNOBS = [Knob(n, tuple(range(8))) for n in "abcd"]


def bowl(knobs: Mapping[str, Any]) -> dict[str, float]:
    return {"cost": 10.0 + sum((v - 5) ** 2 for v in knobs.values())}


def env() -> Environment:
    return Environment(KNOBS, bowl, {"cost": 9.0})


def test_rewards_by_hand() -> None:
    e = Environment(KNOBS, bowl, {"cost": 20.0, "area": 5.0})
    assert e.reward({"cost": 30.0, "area": 5.0}) == pytest.approx(2 * CAP)
    assert e.reward({"cost": 10.0, "area": 10.0}) == pytest.approx(2)
    assert e.reward({"cost": 20.1, "area": 4.999}) == CAP**2


def test_every_call_is_counted_and_logged_but_simulated_once() -> None:
    asked: list[Mapping[str, Any]] = []

    def counting(knobs: Mapping[str, Any]) -> dict[str, float]:
        asked.append(knobs)
        return bowl(knobs)

    e = Environment(KNOBS, counting, {"cost": 9.0})
    for _ in range(3):
        assert e.step((5, 5, 5, 5)) == ({"cost": 10.0}, pytest.approx(9.0))
    assert (e.calls, len(asked), e.points) == (3, 1, 8**4)
    assert e.best() == pytest.approx(9.0)
    assert e.fresh().calls == 0


@pytest.mark.parametrize("agent", AGENTS)
def test_agents_keep_to_their_budget_and_their_seed(agent: type[Agent]) -> None:
    for settings in (agent(), agent.drawn(np.random.default_rng(3))):
        one, two = env(), env()
        best = settings.run(one, 37, np.random.default_rng(1))
        settings.run(two, 37, np.random.default_rng(1))
        assert one.calls == 37
        assert one.log == two.log
        assert best == max(r for _, _, r in one.log)
        assert set(settings.settings) == set(agent.grid)


@pytest.mark.parametrize("agent", [a for a in AGENTS if a.name != "random"])
def test_agents_beat_chance_on_a_bowl(agent: type[Agent]) -> None:
    def mean(kind: type[Agent], **settings: Any) -> float:
        runs = [kind(**settings).run(env(), 150, np.random.default_rng(s)) for s in range(8)]
        return float(np.mean(np.log(runs)))

    tuned = {"genetic": {"mutation": 0.2}, "reinforce": {"rate": 0.3}, "ants": {"ants": 8}}
    assert mean(agent, **tuned.get(agent.name, {})) > mean(AGENTS[0], restart=1.0)


def test_a_proxy_learns_the_log() -> None:
    e = env()
    rng = np.random.default_rng(0)
    AGENTS[0](restart=1.0).run(e, 900, rng)
    learned = Proxy(e, "cost", trees=15).fit(e.log[:600])
    held = [r for r in e.log[600:] if r[0] not in {a for a, _, _ in e.log[:600]}]
    mean = np.exp(np.mean([np.log(s["cost"]) for _, s, _ in e.log[:600]]))
    plain = np.sqrt(np.mean([(mean / s["cost"] - 1) ** 2 for _, s, _ in held]))
    assert learned.error(held) < 0.4 * plain
    assert learned.error(e.log[:600]) < 1e-6
    assert len(learned.predict([(0, 0, 0, 0), (5, 5, 5, 5)])) == 2


def test_arrays_as_an_environment() -> None:
    layer = Layer("x", 1, 1, 64, 64, (3, 3), (28, 28), 73728, 100352, 100352)
    base = device.load("row-stationary-64")
    e = array_environment([layer], base, {"latency": 1e-4})
    at = (3, 3, 2, 5, 4, 1)
    seen, _ = e.step(at)
    where = designed(base, e.values(at))
    assert seen["latency"] == cost(layer, where).seconds
    assert seen["area"] == 64 * 64 + 0.25 * 1024 * 1024
    assert e.points == len(list(product(*(k.values for k in ARRAY)))) == 12600


def test_refusals() -> None:
    with pytest.raises(InputError, match="each of 4 knobs"):
        env().step((1, 2, 3))
    with pytest.raises(InputError, match="each of 4 knobs"):
        env().step((1, 2, 3, 8))
    with pytest.raises(InputError, match="all above 0"):
        Environment(KNOBS, bowl, {"cost": 0.0})
    with pytest.raises(InputError, match="each knob has values"):
        Environment([Knob("a", ())], bowl, {"cost": 1.0})
    with pytest.raises(InputError, match="two designs"):
        Proxy(env(), "cost").fit([((1, 1, 1, 1), {"cost": 1.0}, 1.0)])
