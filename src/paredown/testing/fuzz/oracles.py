"""What a captured graph must say of a run: held against a real run of the same network.

The real run is recorded on its own: real tensors, an own dispatch mode, no rule and no fake tensor.
A difference is a `Difference`: ``where`` it stands groups findings of one cause.
"""

# A storage is known by its address, which torch keeps to itself.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from paredown.errors import ParedownError
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.graph.liveness import liveness
from paredown.workload import Workload

MEMORY = "memory"
"""The oracle whose cause is known only once a network is shrunk: ``where`` lists what is left."""


@dataclass(frozen=True)
class Difference:
    """One broken expectation: which oracle, at what (an operator, a backend), and the details."""

    oracle: str
    where: str
    detail: str

    @property
    def kind(self) -> str:
        """What findings of one cause share."""
        return f"{self.oracle} | {self.where}"


@dataclass
class Event:
    """One operator of the real run."""

    op: str
    outs: list[tuple[tuple[int, ...], str]]
    alias: bool
    """Whether every output lies in a storage that an input has."""


class Witness(TorchDispatchMode):
    """Writes down what a real run does, and the most bytes that it held at once."""

    def __init__(self, held: set[int]) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.flops: dict[str, int] = {}
        """Operator -> operations by torch's own formulas, where it has one."""
        self.peak = self.now = 0
        self._known: dict[int, int] = dict.fromkeys(held, 0)
        self._alive: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and note it."""
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out
        given = {_address(t) for t in _tensors((args, kwargs or {}))}
        made = list(_tensors(out))
        for t in made:
            self._hold(t)
        self.peak = max(self.peak, self.now)
        rows = [(tuple(t.shape), str(t.dtype)[6:]) for t in made]
        alias = bool(made) and all(_address(t) in given for t in made)
        name = str(func._schema.name)
        self.events.append(Event(name, rows, alias))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = formula(*args, **(kwargs or {}), out_val=out)
            self.flops[name] = self.flops.get(name, 0) + int(flops)
        return out

    def _hold(self, t: torch.Tensor) -> None:
        storage = t.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        nbytes = storage.nbytes()
        self._known[address] = nbytes
        self.now += nbytes

        def gone(_: Any) -> None:
            self.now -= self._known.pop(address)

        self._alive.append(weakref.ref(storage, gone))


def check(workload: Workload) -> tuple[Graph | None, list[Difference]]:
    """The captured graph and where it differs from a real run."""
    try:
        graph = capture(workload)
    except ParedownError as e:
        return None, [Difference("capture", _first_line(e), str(e))]
    if graph.notes:
        return graph, [Difference("capture", "needed real weights", graph.notes[0])]
    held = {_address(t) for t in workload.model.state_dict().values()}
    held |= {_address(t) for t in workload.inputs}
    witness = Witness(held)
    with torch.no_grad(), witness:
        out = workload.once()
    return graph, [
        *_same_operators(graph, witness.events),
        *_same_outputs(graph, out),
        *_same_peak(graph, witness),
        *_same_work(graph, witness),
        *_sane_work(graph, witness.events),
    ]


def edges(workload: Workload) -> set[tuple[str, str]]:
    """Ordered pairs of operators joined by a tensor in a real run; raises what torch raises."""
    made: dict[int, str] = {}
    kept: list[torch.Tensor] = []
    found: set[tuple[str, str]] = set()

    class Pairs(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = str(func._schema.name)
            found.update((made[id(t)], name) for t in _tensors(args) if id(t) in made)
            out = func(*args, **(kwargs or {}))
            for t in _tensors(out):
                kept.append(t)  # else its id is given to another tensor
                made[id(t)] = name
            return out

    with torch.no_grad(), Pairs():
        workload.once()
    return found


def _same_operators(graph: Graph, events: list[Event]) -> list[Difference]:
    for n, (node, event) in enumerate(zip(graph.nodes, events, strict=False)):
        outs = [(graph.tensors[t].shape, graph.tensors[t].dtype) for t in node.outputs]
        if node.op != event.op:
            return [Difference("operators", f"{node.op} for {event.op}", f"operator {n}")]
        if outs != event.outs:
            return [Difference("shapes", node.op, f"captured {outs}, ran {event.outs}")]
    if len(graph.nodes) != len(events):
        more = (graph.nodes if len(graph.nodes) > len(events) else events)[
            min(len(graph.nodes), len(events))
        ]
        return [Difference("operators", more.op, f"{len(graph.nodes)} against {len(events)}")]
    return []


def _same_outputs(graph: Graph, out: Any) -> list[Difference]:
    said = [graph.tensors[t].shape for t in graph.outputs]
    real = [tuple(t.shape) for t in _tensors(out)]
    return [] if said == real else [Difference("outputs", "graph", f"{said} against {real}")]


def _same_peak(graph: Graph, witness: Witness) -> list[Difference]:
    said = liveness(graph).high_water
    if said == witness.peak:
        return []
    ops = sorted({n.op for n in graph.nodes if not n.view})
    return [Difference(MEMORY, ", ".join(ops), f"predicted {said}, held {witness.peak} bytes")]


def _same_work(graph: Graph, witness: Witness) -> list[Difference]:
    """Multiply-accumulates per operator against torch's formulas, where both know the operator."""
    theirs = {op: flops // 2 for op, flops in witness.flops.items()}
    ours: dict[str, int] = {}
    for n in graph.nodes:
        ours[n.op] = ours.get(n.op, 0) + (n.macs or 0)
    return [
        Difference("macs", op, f"{ours[op]} against {theirs[op]} by torch's formula")
        for op in ours.keys() & theirs.keys()
        if ours[op] != theirs[op] and theirs[op]
    ]


def _sane_work(graph: Graph, events: list[Event]) -> list[Difference]:
    found: list[Difference] = []
    for node, event in zip(graph.nodes, events, strict=False):
        if not node.priced:
            found.append(Difference("unpriced", node.op, node.why or ""))
            continue
        if node.view and event.outs and not event.alias and not _unwritten(node.op):
            found.append(Difference("views", node.op, "is in the table of views, but copies"))
        counts = (*node.work.values(), node.bytes_read, node.bytes_written)
        if any(c < 0 for c in counts):
            found.append(Difference("negative work", node.op, repr(node.work)))
        if not node.view and not sum(counts):
            found.append(Difference("no work", node.op, "priced, and neither works nor moves"))
        stored = sum(graph.tensors[t].nbytes for t in node.outputs)
        if node.bytes_written > max(stored, 0) and not event.alias:
            found.append(
                Difference("bytes", node.op, f"writes {node.bytes_written} of {stored} bytes")
            )
    return found


def _unwritten(op: str) -> bool:
    """Allocation alone: listed with the views, since nothing is written."""
    return "empty" in op


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)


def _address(t: torch.Tensor) -> int:
    return t.untyped_storage()._cdata


def _first_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
