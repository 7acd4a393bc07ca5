"""Streaming pipelines: never more traffic than one by one, equal for one operator, optimal cuts."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch import nn

from paredown import device, targets
from paredown.cost.fusion import Group, Operator, cut, operators, pipelines
from paredown.graph.capture import capture
from paredown.workload import Workload

NODE = device.load("sn40l")


def chain(seed: int, n: int) -> list[Operator]:
    r = random.Random(seed)
    size = [r.randint(1, 9) for _ in range(n + 1)]
    ops: list[Operator] = []
    for i in range(n):
        reads = {i: size[i]}
        if i > 1 and r.random() < 0.4:
            j = r.randrange(i)
            reads[j] = size[j]
        ops.append(Operator(f"o{i}", reads, {i + 1: size[i + 1]}, r.randint(0, 5),
                            r.randint(0, 6), r.random() * 4))  # fmt: skip
    return ops


def brute(ops: list[Operator], chip: int, call: float) -> float:
    """The best of all ways to cut, each group priced from its definition."""
    n = len(ops)
    best = float("inf")
    for mask in range(2 ** (n - 1)):
        ends = [i + 1 for i in range(n - 1) if mask >> i & 1] + [n]
        total, first = 0.0, 0
        for end in ends:
            part = ops[first:end]
            made = {s: b for o in part for s, b in o.writes.items()}
            read = {s: b for o in part for s, b in o.reads.items()}
            later = {s for o in ops[end:] for s in o.reads} | {n}
            inner = sum(-(-2 * b // 16) for s, b in made.items() if s in read)
            fits = sum(o.held for o in part) + inner <= chip
            moved = sum(o.weights for o in part)
            moved += sum(b for s, b in read.items() if s not in made)
            moved += sum(b for s, b in made.items() if s in later)
            if len(part) == 1:
                moved, fits = part[0].traffic, True
            if not fits:
                total = float("inf")
                break
            total += max(sum(o.seconds for o in part), moved / 2.0) + call
            first = end
        best = min(best, total)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_cuts_are_the_best_of_all(seed: int) -> None:
    ops = chain(seed, random.Random(seed).randint(1, 8))
    for chip in (3, 8, 100):
        found = cut(ops, {len(ops)}, chip, 2.0, 0.5)
        assert found.seconds == pytest.approx(brute(ops, chip, 0.5))
        assert [g.first for g in found.groups[1:]] == [g.end for g in found.groups[:-1]]
        assert found.groups[0].first == 0
        assert found.groups[-1].end == len(ops)
        assert found.traffic <= found.unfused_traffic
        assert found.seconds <= found.unfused_seconds


def test_one_operator_moves_the_same_fused_or_not() -> None:
    graph = capture(Workload(nn.Linear(32, 16).eval(), (torch.zeros(4, 32),)))
    found = pipelines(graph, NODE)
    assert len(found.groups) == 1
    assert found.traffic == found.unfused_traffic == 4 * (4 * 32 + 32 * 16 + 16 + 4 * 16)


def test_a_chain_that_fits_moves_inputs_weights_and_outputs_alone() -> None:
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    graph = capture(Workload(net, (torch.zeros(4, 32),)))
    found = pipelines(graph, NODE)
    weights = sum(p.nbytes for p in net.parameters())
    assert len(found.groups) == 1
    assert found.traffic == weights + 4 * 4 * (32 + 8)
    assert found.unfused_traffic == found.traffic + 4 * 4 * (4 * 64)


@pytest.mark.parametrize("name", ["mobilenetv2", "vit-s"])
def test_networks_move_less_and_smaller_chips_move_more(name: str) -> None:
    graph = capture(targets.resolve(f"zoo:{name}"))
    ops = operators(graph, NODE)
    wanted = {graph.tensors[t].storage for t in graph.outputs}
    moved: list[int] = []
    for chip in (1 << 16, 1 << 20, 1 << 32):
        found = cut(ops, wanted, chip, 1e12, 0.0)
        assert found.traffic <= found.unfused_traffic
        assert all(g.on_chip <= chip for g in found.groups if g.end - g.first > 1)
        moved.append(found.traffic)
    assert moved == sorted(moved, reverse=True)
    macs = sum(n.macs or 0 for n in graph.nodes)
    assert sum(o.seconds for o in ops) >= macs / max(NODE.peak_macs_s.values())


def test_groups_follow_each_other() -> None:
    graph = capture(targets.resolve("zoo:mobilenetv2"))
    groups = pipelines(graph, device.load("eyeriss")).groups
    assert all(isinstance(g, Group) for g in groups)
    assert all(a.end == b.first for a, b in pairwise(groups))
