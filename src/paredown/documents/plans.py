"""What ``pare plan native``, ``pare plan memory`` and ``pare plan serving`` write."""

from __future__ import annotations

from typing import Literal

from paredown.documents.base import Document, Record, TensorInfo
from paredown.figure import Figure


class NativeStep(Record):
    """One operator of a native plan: what it stands for, where it reads and writes."""

    op: str
    site: str
    fused: list[str]
    precision: str
    reads: list[str]
    writes: list[str]
    units: int
    """Parts that threads may share; 1 for torch's."""
    fallback: str | None = None


class NativePlanDoc(Document):
    """What ``pare plan native`` writes; tensors read as ``name@offset shape layout dtype``."""

    kind: Literal["plan-native"] = "plan-native"
    target: str
    isa: str
    threads: int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    steps: list[NativeStep]
    arena_bytes: int
    lower_bound_bytes: int
    scratch_bytes: int
    weight_bytes: int
    build_s: float


class PlacedBuffer(Record):
    """A buffer that lives in steps ``lower <= t < upper``, and its place in bytes."""

    id: str
    lower: int
    upper: int
    size: int
    offset: int


class MemoryPlanDoc(Document):
    """What ``pare plan memory`` writes.

    ``certificate``: ``optimal`` (no arena is smaller), ``bound`` (it fits; a smaller one was
    neither found nor excluded), ``no room`` (proven; ``buffers`` then are the nearest plan).
    """

    kind: Literal["plan-memory"] = "plan-memory"
    source: str
    capacity_bytes: int
    arena_bytes: int
    lower_bound_bytes: int
    certificate: Literal["optimal", "bound", "no room"]
    proof: str
    load_bytes: int
    """The most bytes alive at once, at ``peak_step`` the first time."""
    peak_step: int
    at_peak: list[str]
    """Buffers alive there, the largest first."""
    greedy_bytes: int
    nodes: int
    buffers: list[PlacedBuffer]
    out: str | None = None


class ServingSplit(Record):
    """A node's devices shared out: seconds to the first token of a batch, and of each later one."""

    tensor: int
    pipeline: int
    first_s: Figure
    token_s: Figure
    tokens_s: Figure
    bound: str


class ServingLink(Record):
    """What exchanging tokens between experts takes at least over one link, per layer and token."""

    link: str
    layer_s: Figure
    token_s: Figure


class ServingPool(Record):
    """The best number of devices of one or two kinds; ``attention`` 0: one kind does all."""

    devices: str
    model: int
    attention: int
    batch: int
    token_s: Figure
    tokens_s: Figure
    price_usd: float
    tokens_s_per_usd: Figure
    link_bytes_s: Figure | None = None


class ServingPlanDoc(Document):
    """What ``pare plan serving`` writes: all predicted from shapes and data sheets."""

    kind: Literal["plan-serving"] = "plan-serving"
    model: str
    title: str
    device: str
    batch: int
    context: int
    figures: dict[str, Figure]
    memory: str
    """The level that weights and cache lie in, and whether they fit it."""
    fits: bool
    splits: list[ServingSplit]
    streamed: dict[str, Figure] = {}
    """Where they do not fit: weights fetched layer by layer from a slower level."""
    exchange: list[ServingLink] = []
    pools: list[ServingPool] = []
    notes: list[str] = []
