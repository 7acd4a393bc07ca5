"""Claim card of ArchGym: agents with swept settings on one cost model, and a proxy of its logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, ClassVar

import numpy as np

from paredown import device
from paredown.figure import Figure, counted
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards.arrays import network
from paredown.papers.timing import side_by_side
from paredown.search.gym import AGENTS, Environment, Proxy
from paredown.search.gym.environment import array_environment

TASKS: dict[str, tuple[str, ...]] = {
    "latency": ("latency",),
    "latency and area": ("latency", "area"),
    "latency and energy": ("latency", "energy"),
}
BUDGETS = (30, 300)
DRAWS = {"quick": 8, "full": 20}
SEEDS = 3
TIMED = 64
"""Designs of one timed run."""


class ArchGymCard(Card):
    """Systolic arrays for MobileNetV1, five agents, settings drawn from each one's grid.

    Targets are the tenth percentile of each metric over random designs (area: the median). The
    simulator is a formula, so a proxy has less to gain in time than over one that takes seconds.
    """

    key = "archgym"
    claim = (
        "with tuned settings all agents meet a target equally well, and settings matter more than "
        "the agent; a proxy of the logs has an error of 0.61% and is 2000x faster than simulation"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "worst_agents_best_over_the_best": 0.95,
        "spread_of_settings_over_spread_of_agents": 1.0,
        "tasks_whose_order_changes_with_the_budget": 1,
        "proxy_error": 0.02,
        "proxy_over_simulator": 100,
        "single_agent_error_over_mixed": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Every agent, draw and seed at two budgets; then proxies on what they logged."""
        t = self.thresholds
        rows: list[dict[str, Any]] = []
        logs: dict[str, list[Any]] = {a.name: [] for a in AGENTS}
        for name, metrics in TASKS.items():
            env = environment(metrics)
            rows += sweep(name, env, DRAWS[scale], logs if name == "latency" else None)
            progress(f"{name}: {min_over_max(rows, name):.3f}")
        level = min(min_over_max(rows, name) for name in TASKS)
        spreads = [spread(rows, name) for name in TASKS]
        order = sum(ranking(rows, name, 0) != ranking(rows, name, 1) for name in TASKS)
        proxies = proxy_rows(logs)
        mixed = next(r["error"] for r in proxies if r["agent"] == "mixed")
        single = [r["error"] for r in proxies if r["agent"] != "mixed"]
        timed = side_by_side(
            simulations, seconds=4.0 if scale == "quick" else 10.0, threads=1, limit_s=120
        )
        ratio: Figure = timed["proxy"]["ratio"]
        low, high = ratio.spread or (ratio.known(), ratio.known())
        faster = 1 / ratio.known()
        checks = [
            Check("worst agent's best reward over the best agent's", level, ">=",
                  t["worst_agents_best_over_the_best"]),
            Check("spread of settings over spread of agents, least of three tasks", min(spreads),
                  ">=", t["spread_of_settings_over_spread_of_agents"]),
            Check("tasks whose order of agents differs at a tenth of the budget", order, ">=",
                  t["tasks_whose_order_changes_with_the_budget"]),
            Check("error of the proxy on designs not seen", mixed, "<=", t["proxy_error"]),
            Check("simulator's time over the proxy's", faster, ">=", t["proxy_over_simulator"],
                  max(1 / low - faster, faster - 1 / high), "x"),
            Check("mean error of single agents' data over mixed", float(np.mean(single)) / mixed,
                  ">=", t["single_agent_error_over_mixed"]),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            "designs": counted(environment(("latency",)).points, ""),
            "runs": counted(len(rows), ""),
            "designs per proxy": counted(proxies[0]["designs"], ""),
        }
        return Experiment(figures, checks, list(range(SEEDS)), {"sweep": rows, "proxies": proxies})


def environment(metrics: Sequence[str]) -> Environment:
    """Arrays for MobileNetV1 with targets by metric."""
    env = array_environment(
        network(), device.load("row-stationary-64"), {m: 1.0 for m in ("latency", *metrics)}
    )
    rng = np.random.default_rng(0)
    drawn = [env.step(env.random(rng))[0] for _ in range(400)]
    quantile = {"area": 0.5}
    targets = {m: float(np.quantile([d[m] for d in drawn], quantile.get(m, 0.1))) for m in metrics}
    return Environment(env.knobs, env.simulator, targets, known=env.known)


def sweep(
    task: str, env: Environment, draws: int, logs: dict[str, list[Any]] | None
) -> list[dict[str, Any]]:
    """Best rewards of every agent, draw and seed at both budgets; logs of the larger one."""
    rows: list[dict[str, Any]] = []
    for at, agent in enumerate(AGENTS):
        for draw, seed in product(range(draws), range(SEEDS)):
            made = agent.drawn(np.random.default_rng([at, draw]))
            run = env.fresh()
            made.run(run, BUDGETS[1], np.random.default_rng([at, draw, seed]))
            rewards = [r for _, _, r in run.log]
            rows.append(
                {"task": task, "agent": agent.name, "draw": draw, "seed": seed,
                 "small": max(rewards[: BUDGETS[0]]), "large": max(rewards)}
            )  # fmt: skip
            if logs is not None:
                logs[agent.name] += run.log
    return rows


def by_draw(rows: Sequence[dict[str, Any]], task: str, agent: str, key: str) -> list[float]:
    """Mean reward over seeds of every draw of an agent's settings."""
    mine = [r for r in rows if (r["task"], r["agent"]) == (task, agent)]
    draws = sorted({r["draw"] for r in mine})
    return [float(np.mean([r[key] for r in mine if r["draw"] == d])) for d in draws]


def bests(rows: Sequence[dict[str, Any]], task: str, key: str) -> dict[str, float]:
    """Every agent's best draw."""
    return {a.name: max(by_draw(rows, task, a.name, key)) for a in AGENTS}


def min_over_max(rows: Sequence[dict[str, Any]], task: str) -> float:
    """The worst agent's best reward over the best agent's, at the large budget."""
    found = bests(rows, task, "large").values()
    return min(found) / max(found)


def spread(rows: Sequence[dict[str, Any]], task: str) -> float:
    """Median over agents of the spread between settings, over the spread between agents' bests."""
    between = 1 - min_over_max(rows, task)
    within = [1 - min(v) / max(v) for a in AGENTS if (v := by_draw(rows, task, a.name, "large"))]
    return float(np.median(within)) / max(between, 1e-9)


def ranking(rows: Sequence[dict[str, Any]], task: str, large: int) -> list[str]:
    """Agents by their best draw; equal ones by name."""
    found = bests(rows, task, ("small", "large")[large])
    return sorted(found, key=lambda a: (-found[a], a))


def proxy_rows(logs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Errors of proxies of latency: one per agent's designs, one of as many from all of them."""
    env = environment(("latency",))
    rng = np.random.default_rng(1)
    once = {name: dedupe(log) for name, log in logs.items()}
    size = min(1000, *(len(v) for v in once.values()))
    parts = {n: [v[int(i)] for i in rng.permutation(len(v))] for n, v in once.items()}
    every = dedupe([r for v in parts.values() for r in v[: size // len(parts) + 1]])[:size]
    seen = {a for v in once.values() for a, _, _ in v}
    test = env.fresh()
    while test.calls < 600:
        at = env.random(rng)
        if at not in seen:
            test.step(at)
    rows: list[dict[str, Any]] = []
    for name, log in {**{n: v[:size] for n, v in parts.items()}, "mixed": every}.items():
        error = Proxy(env, "latency").fit(log).error(test.log)
        rows.append({"agent": name, "designs": len(log), "error": error})
    return rows


def dedupe(log: Sequence[Any]) -> list[Any]:
    """Each design once."""
    return list({r[0]: r for r in log}.values())


def simulations() -> Sequence[tuple[str, Callable[[], Any]]]:
    """The same designs by the simulator and by a proxy."""
    env = environment(("latency",))
    rng = np.random.default_rng(2)
    designs = [env.random(rng) for _ in range(TIMED)]
    proxy = Proxy(env, "latency").fit(
        [(env.random(rng), {"latency": float(i + 1)}, 0.0) for i in range(800)]
    )
    return [
        ("simulator", lambda: [env.simulator(env.values(a))["latency"] for a in designs]),
        ("proxy", lambda: proxy.predict(designs)),
    ]
