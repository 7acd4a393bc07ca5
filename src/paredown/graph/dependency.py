"""Dependency groups: which parameters must be cut together, found on our own captured graph.

The idea is DepGraph's (Fang et al. 2023, arXiv:2301.12900); the means differ: every tensor axis is
followed symbolically through the captured operators (`graph.axes`, `graph.axis_rules`), so heads,
grouped key heads, concatenations and reshapes need no special cases. A group is one atom: cutting
its index ``i`` removes that position from every parameter axis in which the atom occurs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from paredown.graph import axis_layers, axis_views
from paredown.graph.axes import Axis, factors, find, freeze, leaves, positions, segments, size_after
from paredown.graph.axes import unit_of as _unit_of
from paredown.graph.axis_rules import HEAD_DIM, Tracker, tid, walk
from paredown.graph.graph import Graph, Ref

TABLES = (axis_layers, axis_views)
"""Importing these fills the table of rules."""

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Role = Literal["out", "in", "scale", "other"]


@dataclass(frozen=True)
class Member:
    """One parameter or buffer axis of a group: qualified ``name``, ``dim``, and what the module
    does with it: ``out`` produces the channels, ``in`` reads them, ``scale`` follows them.
    """

    name: str
    dim: int
    role: Role
    axis: Axis = field(repr=False, compare=False)

    @property
    def module(self) -> str:
        """Path of the module that holds it."""
        return self.name.rpartition(".")[0]


@dataclass
class Group:
    """What is cut together: ``size`` units named by ``site``; ``reason`` says why it may not be."""

    site: str
    size: int
    members: list[Member]
    leaf: Axis = field(repr=False)
    reason: str | None = None
    stream: bool = False
    """A residual stream: several producers add into it."""

    @property
    def heads(self) -> bool:
        """Whether a unit is an attention head (or a group of them)."""
        return self.site.rpartition(":")[2].startswith(("heads", "queries"))

    def units(self, member: Member) -> np.ndarray:
        """The unit of every position of a member's axis, -1 where the axis is of other atoms."""
        return _unit_of(member.axis, self.leaf)


@dataclass(frozen=True)
class Cut:
    """One parameter axis reduced to ``keep`` (ascending positions)."""

    name: str
    dim: int
    keep: tuple[int, ...]


class Dependencies:
    """The groups of one graph, and what cutting them does to every tensor of it."""

    def __init__(self, graph: Graph) -> None:
        if graph.source is None:
            raise ValueError("this graph was read from a file: capture the workload again")
        self.graph = graph
        self.tracker = Tracker(graph)
        walk(self.tracker)
        self._freeze_outputs()
        self.flips: frozenset[tuple[str, str]] | None = None
        """Ambiguous attributes that a verified cut changed, as (class, attribute)."""
        self.held = self._held()
        self.groups = self._groups()

    @classmethod
    def of(cls, graph: Graph) -> Dependencies:
        """The groups of a graph, worked out once per graph."""
        known = vars(graph).get("dependencies")
        if known is None:
            known = vars(graph)["dependencies"] = cls(graph)
        return known

    def __getitem__(self, site: str) -> Group:
        return next(g for g in self.groups if g.site == site)

    def cuts(self, kept: dict[str, list[int]]) -> list[Cut]:
        """The parameter axes that change when the groups keep these units."""
        by_leaf = self._by_leaf(kept)
        out: list[Cut] = []
        for name, axes in self.held.items():
            for dim, axis in enumerate(axes):
                if any(id(leaf) in by_leaf for leaf in leaves(axis)):
                    out.append(Cut(name, dim, tuple(int(i) for i in positions(axis, by_leaf))))
        return out

    def shapes_after(self, kept: dict[str, list[int]]) -> dict[int, tuple[int, ...]]:
        """Predicted shape of every tensor of the graph once the groups keep these units."""
        by_leaf = self._by_leaf(kept)
        return {
            t: tuple(size_after(a, by_leaf) for a in axes) for t, axes in self.tracker.axes.items()
        }

    def sizes(self, kept: dict[str, list[int]]) -> dict[str, dict[int, set[int]]]:
        """Per module path: each size that its own operators meet, and what it becomes."""
        by_leaf = self._by_leaf(kept)
        out: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for node in self.graph.nodes:
            seen = out[node.module]
            for t in (*node.inputs, *node.outputs):
                for axis in self.tracker.of(t):
                    for part in _pieces(axis):
                        seen[part.size].add(size_after(part, by_leaf))
        return out

    def _by_leaf(self, kept: dict[str, list[int]]) -> dict[int, list[int]]:
        return {id(g.leaf): kept[g.site] for g in self.groups if g.site in kept}

    def _freeze_outputs(self) -> None:
        """Outputs keep their shape, but for a cache of keys and values, which is the model's
        own.
        """
        caches = {tuple(id(find(a)) for a in self.tracker.of(t)) for t in self.tracker.caches}
        for t in self.graph.outputs:
            axes = self.tracker.of(t)
            if len(axes) == 4 and tuple(id(find(a)) for a in axes) in caches:
                continue
            for a in axes:
                freeze(a, "model output")

    def _held(self) -> dict[str, list[Axis]]:
        """Axes of every parameter and buffer that ran, in the order of first use."""
        out: dict[str, list[Axis]] = {}
        for node in self.graph.nodes:
            for i in node.inputs:
                t = self.graph.tensors[i]
                if t.kind in ("parameter", "buffer") and t.name:
                    out.setdefault(t.name, self.tracker.of(i))
        return out

    def _groups(self) -> list[Group]:
        model: nn.Module = self.graph.source.model
        found: dict[int, tuple[Axis, list[Member]]] = {}
        for name, axes in self.held.items():
            for dim, axis in enumerate(axes):
                member = Member(name, dim, role_of(model, name, dim), axis)
                for leaf in {id(x): x for x in leaves(axis)}.values():
                    found.setdefault(id(leaf), (leaf, []))[1].append(member)
        streams = self._added()
        groups: list[Group] = []
        names: set[str] = set()
        for key, (leaf, members) in found.items():
            lead = next((m for m in members if m.role == "out"), None)
            if lead is None or (leaf.frozen and not _worth_naming(lead.axis, leaf)):
                continue
            base = site = _name(leaf, lead, members)
            n = 0
            while site in names:
                n += 1
                site = f"{base}.{n}"
            names.add(site)
            several = sum(m.role == "out" and m.name.endswith("weight") for m in members) > 1
            group = Group(site, leaf.size, members, leaf, leaf.frozen)
            group.stream = several and key in streams and not group.heads
            groups.append(group)
        return groups

    def _added(self) -> set[int]:
        """Atoms of axes along which two activations are added."""
        out: set[int] = set()
        for n in self.graph.nodes:
            if n.op not in ("aten::add", "aten::add_") or len(n.args) < 2:
                continue
            if not all(isinstance(a, Ref) for a in n.args[:2]):
                continue
            a, b = tid(n.args[0]), tid(n.args[1])
            weights = self.tracker.weightlike
            if a in weights or b in weights:
                continue
            for axis in self.tracker.of(a):
                out |= {id(x) for x in leaves(axis)}
        return out


def role_of(model: nn.Module, name: str, dim: int) -> Role:
    """What a module does with one axis of one of its tensors."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if own == "bias" or _is_norm(module):
        return "scale"
    flip = isinstance(module, CONV_TRANSPOSE) or type(module).__name__ == "Conv1D"
    if isinstance(module, (*CONV, *CONV_TRANSPOSE)) and module.groups > 1:
        weight = module.weight
        if weight.shape[0 if flip else 1] == 1:
            return "scale" if dim == (1 if flip else 0) else "in"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "out" if dim == 1 else "in"
    if isinstance(module, (nn.Linear, *CONV)) or flip:
        return "out" if dim == (1 if flip else 0) else "in"
    ndim = getattr(module, own).ndim
    if own.endswith("weight") and ndim == 2:
        return "out" if dim == 0 else "in"
    return "other"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _pieces(axis: Axis) -> Iterator[Axis]:
    """An axis, its segments, factors and atoms: the sizes that code may name."""
    axis = find(axis)
    if axis.size <= 1:
        return
    yield axis
    if axis.kind != "leaf":
        for part in axis.parts:
            yield from _pieces(part)


def _worth_naming(axis: Axis, leaf: Axis) -> bool:
    """Whether a frozen atom of a producer deserves a refused site: it is the whole axis, or a
    head.
    """
    return find(axis) is leaf or (leaf.frozen == HEAD_DIM)


def _name(leaf: Axis, lead: Member, members: list[Member]) -> str:
    segment = next(s for s in segments(lead.axis) if any(x is leaf for x in leaves(s)))
    parts = factors(segment)
    if len(parts) < 2 or not any(_of_head(f) for f in parts):
        return f"{lead.module}:out"
    path = _common([m.module for m in members if m.role in ("out", "in")]) or lead.module
    if leaf.frozen == HEAD_DIM:
        return f"{path}:head_dim"
    free = [f for f in parts if f.frozen is None and not _of_head(f)]
    return f"{path}:{'queries' if free and free[0] is not leaf else 'heads'}"


def _of_head(axis: Axis) -> bool:
    return any(x.frozen == HEAD_DIM for x in leaves(axis))


def _common(paths: Iterable[str]) -> str:
    split = [p.split(".") for p in paths]
    out: list[str] = []
    for level in zip(*split, strict=False):
        if len(set(level)) > 1:
            break
        out.append(level[0])
    return ".".join(out)
