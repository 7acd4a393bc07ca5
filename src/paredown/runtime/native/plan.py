"""The plan: every operator with its tensors, places in memory and constants. Plain data, printable.

A plan knows no instruction set: weights are kept as they are written and packed where it is loaded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from paredown.errors import ArtefactError

SCHEMA = 1
WIDTH = {"float32": 4, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1}
"""Bytes of an element of each dtype the engine places in memory."""


@dataclass(frozen=True)
class Tensor:
    """A strided view of a buffer; strides and offset in elements.

    Quantized values stand for ``scale * (q - zero)``.
    """

    buffer: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    scale: float = 1.0
    zero: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for s in self.shape:
            count *= s
        return count

    @property
    def extent(self) -> int:
        """Bytes of the buffer from its start to the end of this view."""
        if self.numel == 0:
            return 0
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (self.offset + last + 1) * WIDTH[self.dtype]


@dataclass
class Buffer:
    """A stretch of memory. ``kind``: arena (``offset`` in bytes), input, output (``index``)."""

    name: str
    kind: str
    nbytes: int
    index: int = 0
    offset: int = 0
    first: int = 0
    last: int = 0
    """The steps between which it is alive."""


@dataclass
class Constant:
    """A constant by the name of its tensor in the weights' file.

    ``pack`` is empty for plain values, ``dense``, ``depthwise`` or ``matvec`` (whole numbers with a
    grid, `packed_parts`) for weights that are packed for the instruction set where the plan is
    loaded; ``shape`` then holds the kernels' own fields.
    """

    name: str
    pack: str = ""
    shape: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Step:
    """One operator. ``tensors`` and ``constants`` go by the kernels' field names."""

    op: str
    site: str
    tensors: dict[str, Tensor]
    writes: tuple[str, ...]
    constants: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    fused: list[str] = field(default_factory=list)
    """The graph's operators that it stands for, in order."""
    precision: str = "float32"
    role: str = ""
    weight: str | None = None
    """The type a weight is held in."""
    fallback: str | None = None
    """Why torch runs it, None for a native operator."""
    parts: list[dict[str, str]] = field(default_factory=list)
    """Products merged into it: their site, op, precision and weight."""


@dataclass
class Plan:
    """Buffers, constants and steps of one network at one set of shapes."""

    name: str
    buffers: dict[str, Buffer]
    constants: dict[str, Constant]
    steps: list[Step]
    inputs: list[Tensor]
    outputs: list[Tensor]
    arena_bytes: int = 0
    lower_bound: int = 0
    """Most bytes alive at once: no arena can be smaller."""

    def segments(self) -> list[tuple[str, int, int]]:
        """Runs of steps ``(native | torch, first, last)``; torch's are of one step each."""
        out: list[tuple[str, int, int]] = []
        for i, step in enumerate(self.steps):
            kind = "native" if step.fallback is None else "torch"
            if out and kind == "native" and out[-1][0] == kind:
                out[-1] = (kind, out[-1][1], i + 1)
            else:
                out.append((kind, i, i + 1))
        return out

    def to_json(self) -> dict[str, Any]:
        """The whole plan as JSON-able data."""
        data = asdict(self)
        data["schema"] = SCHEMA
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Read back; raises ``ArtefactError`` for anything missing or of another version."""
        try:
            if data["schema"] != SCHEMA:
                raise ArtefactError(f"the native plan has schema {data['schema']}, not {SCHEMA}")
            return cls(
                data["name"],
                {k: Buffer(**b) for k, b in data["buffers"].items()},
                {k: Constant(**c) for k, c in data["constants"].items()},
                [_step(s) for s in data["steps"]],
                [_tensor(t) for t in data["inputs"]],
                [_tensor(t) for t in data["outputs"]],
                int(data["arena_bytes"]),
                int(data["lower_bound"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ArtefactError(f"the native plan is damaged: {e!r}") from None


def _tensor(data: dict[str, Any]) -> Tensor:
    lists = {"shape": tuple(data["shape"]), "strides": tuple(data["strides"])}
    fields: dict[str, Any] = {**data, **lists}
    return Tensor(**fields)


def _step(data: dict[str, Any]) -> Step:
    tensors = {k: _tensor(t) for k, t in data["tensors"].items()}
    fields: dict[str, Any] = {**data, "tensors": tensors, "writes": tuple(data["writes"])}
    return Step(**fields)
