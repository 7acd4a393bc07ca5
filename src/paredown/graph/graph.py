"""What a run does: one node per operator call, with its work, bytes and the storages it makes.

Plain data, no torch. `graph.capture` makes it, `graph.rules` prices each node's work, `cost` prices
it on a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Kind = Literal["input", "parameter", "buffer", "constant", "intermediate"]
Phase = Literal["forward", "backward", "optimizer", "prefill", "decode", "first", "step"]

PACKED = {"paredown::dequantize_groups": 0, "paredown::embedding_groups": 1}
"""Operators that unpack a matrix of 8- or 4-bit weights -> where it stands in their arguments."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor inside a node's recorded arguments."""

    tensor: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a run: ``shape``, ``dtype`` (``float32``, ``int8`` ...), the storage under it.

    ``name`` is the qualified name of a parameter or buffer, or the argument's name of an input.
    ``nbytes`` is elements x element size (of the view, not of the storage); of a sparse tensor what
    its values and indices take, and ``nnz`` counts those values (None: dense). ``strides`` are in
    elements, None where they are not known.
    """

    id: int
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    storage: int
    kind: Kind = "intermediate"
    name: str | None = None
    nnz: int | None = None
    strides: tuple[int, ...] | None = None


@dataclass(slots=True)
class Storage:
    """One allocation: ``created``, ``freed`` are node indices (-1: before the run, None: never)."""

    id: int
    nbytes: int
    kind: Kind
    created: int
    freed: int | None = None


@dataclass(slots=True)
class Node:
    """One operator call.

    ``op`` is ``namespace::name`` with the overload left out (``aten::convolution``); ``module`` the
    qualified path of the innermost module, ``line`` the user's ``file.py:12``. ``work`` counts
    logical work by kind (``macs``, ``elementwise``, ``transcendental``, ``compare``); ``macs`` is
    None when no rule knows the operator, and then ``priced`` is False. ``view`` marks views and
    metadata operators, which stand outside every share. ``share`` is how often a run is expected to
    call it: below 1 where that depends on the input (`graph.varying`).
    """

    index: int
    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    module: str = ""
    line: str | None = None
    phase: Phase = "forward"
    macs: int | None = None
    work: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    priced: bool = True
    view: bool = False
    why: str | None = None
    share: float = 1.0


@dataclass
class Graph:
    """A captured run.

    ``modules`` maps qualified paths to class names; ``source`` is the fake workload it was captured
    from (None once read back from a file), kept so that a technique can preview itself.
    """

    nodes: list[Node]
    tensors: dict[int, Tensor]
    storages: dict[int, Storage]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    modules: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    source: Any = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of every priced node; an expectation where shares are below 1."""
        return round(sum((n.macs or 0) * n.share for n in self.nodes))

    @property
    def params(self) -> int:
        """Weights in all parameters, tied ones once, packed ones as the weights they hold."""
        return sum(self.weights().values())

    def weights(self) -> dict[int, int]:
        """Storage of a parameter -> the weights in it; two 4-bit weights in a byte count as two."""
        found: dict[int, int] = {}
        for t in self.tensors.values():
            if t.kind == "parameter":
                found[t.storage] = max(found.get(t.storage, 0), prod(t.shape))
        for n in self.nodes:
            if n.op in PACKED:
                at = PACKED[n.op]
                packed = self.tensors[n.inputs[at]]
                if packed.kind == "parameter":
                    # Behind the matrix stand its scales, zero points, bits and columns.
                    found[packed.storage] = packed.shape[0] * n.args[at + 4]
        return found

    @property
    def unpriced(self) -> list[str]:
        """Names of operators without a rule, each once."""
        return sorted({n.op for n in self.nodes if not n.priced and not n.view})

    def work_nodes(self) -> Iterator[Node]:
        """Nodes that do or move something: views and metadata operators left out."""
        return (n for n in self.nodes if not n.view)

    def producers(self) -> dict[int, Node]:
        """Tensor id -> the node that makes it."""
        return {t: n for n in self.nodes for t in n.outputs}
