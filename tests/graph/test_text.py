"""Canonical text: names and storage order do not show, everything else does; it reads back."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from paredown import targets
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.graph.graph import Graph, Ref
from paredown.graph.text import canonical, parse, shape, short, text
from paredown.workload import Workload


class Branches(nn.Module):
    def __init__(self, width: int = 4, *, names: str = "abc") -> None:
        super().__init__()
        for n in names:
            setattr(self, n, nn.Conv2d(3, width, 3, padding=1))
        self.order = names
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [getattr(self, n)(x) for n in self.order]
        y = torch.relu_(self.norm(parts[0])) + torch.tanh(parts[1]) * parts[2]
        return y.mean((2, 3))


def graph(model: nn.Module, *shape: int) -> Graph:
    return capture(Workload(model.eval(), (torch.zeros(*shape or (1, 3, 8, 8)),)))


def shuffled(given: Graph, seed: int) -> Graph:
    """The same graph with new numbers for tensors and nodes, nodes in another valid order."""
    r = random.Random(seed)
    made = replace(given, source=None, nodes=[replace(n) for n in given.nodes])
    ids = list(made.tensors)
    new = dict(zip(ids, r.sample(range(1000, 1000 + len(ids)), len(ids)), strict=True))

    def moved(value):
        if isinstance(value, Ref):
            return Ref(new[value.tensor])
        if isinstance(value, (list, tuple)):
            return type(value)(moved(v) for v in value)
        return value

    ready: set[int] = {t.id for t in made.tensors.values()} - {
        t for n in made.nodes for t in n.outputs
    }
    left, order = list(made.nodes), []
    while left:
        can = [n for n in left if set(n.inputs) <= ready]
        n = r.choice([c for c in can if not c.op.endswith("_")] or can)
        left.remove(n)
        ready |= set(n.outputs)
        order.append(n)
    for i, n in enumerate(order):
        n.index, n.args = i, moved(n.args)
        n.kwargs = {k: moved(v) for k, v in n.kwargs.items()}
        n.inputs, n.outputs = tuple(new[t] for t in n.inputs), tuple(new[t] for t in n.outputs)
        n.module = f"other.{r.random()}"
    made.nodes = order
    made.tensors = {
        new[i]: type(t)(new[i], t.shape, t.dtype, t.nbytes, t.storage, t.kind, "renamed")
        for i, t in made.tensors.items()
    }
    made.inputs = tuple(new[t] for t in made.inputs)
    made.outputs = tuple(new[t] for t in made.outputs)
    return made


@pytest.mark.parametrize("mode", ["chain", "nodes", "ops"])
@pytest.mark.parametrize("seed", range(4))
def test_names_and_order_do_not_show(mode, seed: int) -> None:
    given = graph(Branches())
    assert text(shuffled(given, seed), mode) == text(given, mode)


def test_names_of_modules_do_not_show() -> None:
    assert text(graph(Branches())) == text(graph(Branches(names="zyx")))


def test_structure_shapes_and_attributes_show() -> None:
    base = text(graph(Branches()))
    assert text(graph(Branches(5))) != base
    assert text(graph(Branches(), 1, 3, 8, 9)) != base
    groups = [text(graph(nn.Conv2d(4, 4, 3, groups=g), 1, 4, 8, 8)) for g in (1, 2)]
    assert groups[0] != groups[1]
    slopes = [text(graph(nn.LeakyReLU(s), 1, 4)) for s in (0.1, 0.2)]
    assert "0.1" in slopes[0]
    assert slopes[0] != slopes[1]


def test_what_is_written_reads_back() -> None:
    given = graph(Branches())
    records, order = parse(text(given, "nodes")), canonical(given)
    assert [r.op for r in records] == [short(n.op) for n in order]
    for record, node in zip(records, order, strict=True):
        assert [s for _, s in record.results] == [shape(given.tensors[t]) for t in node.outputs]
        assert len(record.arguments) == len(node.args) + len(node.kwargs)
    conv = next(r for r in records if r.op == "convolution")
    assert conv.arguments[0] == "In0"
    assert conv.arguments[3:] == ("[1^2]", "[1^2]", "[1^2]", "F", "[0^2]", "1")
    with pytest.raises(InputError, match="line 2"):
        parse("In0:1 float32\nnothing here")


def test_writes_in_place_keep_their_place() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = y + 1  # reads y before it is overwritten
            y.mul_(3)
            return z - y

    given = graph(Late(), 4)
    at = {n.op: i for i, n in enumerate(canonical(given))}
    assert at["aten::add"] < at["aten::mul_"] < at["aten::sub"]


def test_runs_are_joined() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    lines = text(graph(net)).splitlines()
    assert len(lines) == 3
    assert lines[1].count(" -> ") == 3
    assert lines[1].endswith("= %1:1x4x4x4 float32")
    assert lines[2] == "Out(%1)"


@pytest.mark.parametrize("name", ["mobilenetv2?width=0.25", "vit-s"])
def test_any_captured_network_has_a_text(name: str) -> None:
    given = capture(targets.resolve(f"zoo:{name}"))
    assert len(parse(text(given, "nodes"))) == len(canonical(given))
    assert text(shuffled(given, 1)) == text(given)
