"""Whether a network fits a machine: by how many bytes it does not, and which tensors are to blame.

A microcontroller keeps weights in flash, which a run cannot write, and activations in its memories;
elsewhere the last level holds both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paredown.device.device import Device
from paredown.graph.graph import Graph, Storage
from paredown.graph.liveness import WEIGHTS, liveness

NAMED = 4
"""Tensors named in a message."""


@dataclass(frozen=True)
class Misfit:
    """What does not fit: ``needed`` bytes against the ``capacity`` of a level or of several.

    ``tensors`` are the largest of what takes the place, with their bytes.
    """

    what: str
    level: str
    needed: int
    capacity: int
    tensors: tuple[tuple[str, int], ...]

    @property
    def short(self) -> int:
        """Bytes that are missing."""
        return self.needed - self.capacity

    def words(self, device: Device) -> str:
        """The misfit in one line."""
        names = ", ".join(f"{name} ({size:,} B)" for name, size in self.tensors[:NAMED])
        return (
            f"does not fit {device.name}: {self.what} take {self.needed:,} B, {self.short:,} B "
            f"more than the {self.capacity:,} of {self.level}; the largest: {names}"
        )


def misfits(graph: Graph, device: Device) -> list[Misfit]:
    """What of a run does not fit a device; empty where it does.

    Activations are inputs and the high-water mark of what the run allocates, as liveness has it.
    """
    lives = liveness(graph)
    names = _names(graph)
    weights = [s for s in graph.storages.values() if s.created < 0 and s.kind in WEIGHTS]
    inputs = [s for s in graph.storages.values() if s.created < 0 and s.kind == "input"]
    running = [*inputs, *lives.largest]
    active = lives.inputs + lives.high_water
    last = device.memory
    if last.holds == "weights":
        data = device.levels[:-1]
        asked = [
            ("weights", last.name, lives.weights, last.capacity_bytes, weights),
            (
                "activations",
                " and ".join(lv.name for lv in data),
                active,
                sum(lv.capacity_bytes for lv in data),
                running,
            ),
        ]
    else:
        whole = lives.weights + active
        both = [*weights, *running]
        asked = [("weights and activations", last.name, whole, last.capacity_bytes, both)]
    return [
        Misfit(what, level, needed, capacity, _largest(holders, names))
        for what, level, needed, capacity, holders in asked
        if needed > capacity
    ]


def _largest(storages: Sequence[Storage], names: dict[int, str]) -> tuple[tuple[str, int], ...]:
    order = sorted(storages, key=lambda s: -s.nbytes)
    return tuple((names.get(s.id, f"storage {s.id}"), s.nbytes) for s in order[:16])


def _names(graph: Graph) -> dict[int, str]:
    """Storage -> the name of a weight or input, or the operator and module that made it."""
    found: dict[int, str] = {}
    for t in graph.tensors.values():
        if t.name is not None:
            found.setdefault(t.storage, t.name)
    for node in graph.nodes:
        for t in node.outputs:
            op = node.op.partition("::")[2]
            name = f"{op} of {node.module}" if node.module else op
            found.setdefault(graph.tensors[t].storage, name)
    return found
