"""Buffers and operator orders of captured networks: valid, never worse, the lowest where proven."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

from paredown import targets
from paredown.cost.arena import Dag, buffers, dag, lowest, overlaps, peak_of, place
from paredown.graph.capture import capture
from paredown.workload import Workload


class Branches(nn.Module):
    """The wide branch comes last, and what it makes is summed: run first, less is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.thin = nn.ModuleList([nn.Linear(64, 64) for _ in range(3)])
        self.wide = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [layer(x) for layer in self.thin]
        return torch.cat([*kept, self.wide(x)], -1)


class InPlace(nn.Module):
    """``y`` is read before it is overwritten: no order may swap the two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        z = y * 2
        y.add_(z)
        return y + z


def made(model: nn.Module, *shape: int) -> Dag:
    return dag(capture(Workload(model.eval(), (torch.zeros(shape),))))


def random_dag(n: int, seed: int) -> Dag:
    """Operators that make one buffer each and read some earlier ones."""
    r = random.Random(seed)
    before = [frozenset(r.sample(range(i), min(i, r.randint(1, 2)))) for i in range(n)]
    users = {i: frozenset({i, *(j for j in range(n) if i in before[j])}) for i in range(n)}
    return Dag(
        before=tuple(before),
        made=tuple(frozenset({i}) for i in range(n)),
        used=tuple(frozenset({i, *before[i]}) for i in range(n)),
        users=users,
        size={i: r.randint(1, 9) for i in range(n)},
        kept=frozenset({n - 1}),
    )


def by_brute_force(d: Dag) -> int:
    peaks: list[int] = []
    for order in itertools.permutations(range(d.count)):
        at = {node: i for i, node in enumerate(order)}
        if all(at[j] < at[i] for i in range(d.count) for j in d.before[i]):
            peaks.append(peak_of(d, order))
    return min(peaks)


@pytest.mark.parametrize("seed", range(10))
def test_the_lowest_peak_is_that_of_brute_force(seed: int) -> None:
    d = random_dag(7, seed)
    found = lowest(d)
    assert found.optimal
    assert found.peak == peak_of(d, found.nodes) == by_brute_force(d)


def test_the_wide_branch_runs_first() -> None:
    d = made(Branches(), 8, 64)
    found = lowest(d)
    given = peak_of(d, range(d.count))
    assert found.optimal
    assert found.peak == peak_of(d, found.nodes)
    assert given - found.peak == 3 * 8 * 64 * 4  # the three thin outputs, no longer waiting


def test_an_order_that_breaks_a_read_is_refused() -> None:
    d = made(InPlace(), 4, 4)
    assert peak_of(d, range(d.count)) > 0
    for i in range(d.count - 1):
        order = list(range(d.count))
        order[i], order[i + 1] = order[i + 1], order[i]
        with pytest.raises(ValueError, match="cannot run yet"):
            peak_of(d, order)
    with pytest.raises(ValueError, match="missing"):
        peak_of(d, range(d.count - 1))


@pytest.mark.parametrize("name", ["mobilenetv2", "unet", "inception-v4", "swin-tiny"])
def test_real_networks_get_an_arena_of_their_load(name: str) -> None:
    graph = capture(targets.resolve(f"zoo:{name}"))
    found = buffers(graph)
    d = dag(graph)
    placed = place(found)
    assert placed.how == "optimal"
    assert placed.height == placed.load == peak_of(d, range(d.count))
    beaten = placed.height < placed.greedy_height
    assert beaten == (name in ("unet", "inception-v4"))
    assert not overlaps(found, placed.offsets)
    order = lowest(d, states=200)
    assert order.peak <= placed.load
    assert max(b.upper for b in buffers(graph, order.nodes)) <= d.count
