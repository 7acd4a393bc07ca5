"""What ``pare profile`` writes: totals, operators, modules, memory over time."""

from __future__ import annotations

from typing import Literal

from paredown.documents.base import Document, Fingerprint, Record, TensorInfo
from paredown.figure import Figure


class PricedShare(Record):
    """Shares of operators with a rule: by count, by input + output bytes, by eager self time."""

    operators: float
    bytes: float
    time: float | None = None


class Totals(Record):
    """Whole-run figures of a profile."""

    macs: Figure
    params: Figure
    traffic_bytes: Figure
    peak_bytes: Figure
    latency_s: Figure
    energy_j: Figure


class OperatorRow(Record):
    """One operator call of a profile. ``bound`` is what limits it: compute, memory or overhead."""

    index: int
    op: str
    module: str
    line: str | None = None
    phase: Literal["forward", "backward", "optimizer", "prefill", "decode", "first", "step"] = (
        "forward"
    )
    shapes: list[list[int]]
    dtype: str
    macs: int | None
    bytes_read: int
    bytes_written: int
    intensity: float | None
    bound: Literal["compute", "memory", "overhead", "unknown"]
    ideal_s: float | None
    predicted_s: Figure
    measured_s: Figure
    gap_s: float | None = None


class ModuleRow(Record):
    """Sums over the operators of one module (its children included)."""

    path: str
    cls: str
    macs: int
    params: int
    bytes: int
    predicted_s: float | None
    measured_s: float | None = None
    share: float | None = None


class MemoryPoint(Record):
    """Live bytes after one node, weights included, and the largest live tensors there."""

    index: int
    live_bytes: int


class ProfileDoc(Document):
    """What ``pare profile`` writes."""

    kind: Literal["profile"] = "profile"
    target: str
    device: str
    device_how: str
    backend: str = "eager"
    threads: int
    inputs: list[TensorInfo]
    totals: Totals
    run: str = "forward"
    """What one run is: ``forward``, ``generate``, ``stream``, ``sample`` or ``train_step``."""
    parts: dict[str, Figure] = {}
    """Of a loop: ``latency.first``, ``latency.per_token``, ``throughput``, MACs by phase."""
    machine: dict[str, Figure] = {}
    """What the device's own model says: of an array, of streaming pipelines, of an FPGA."""
    priced_share: PricedShare
    unpriced: list[str]
    operators: list[OperatorRow]
    modules: list[ModuleRow]
    memory: list[MemoryPoint] = []
    waterline: dict[str, float] = {}
    """``intensity`` (MAC/B at which compute and memory balance), ``e_max``, ``e_predicted`` ..."""
    notes: list[str] = []
    fingerprint: Fingerprint | None = None
