"""A machine as numbers: compute units, memory levels, overheads, links. One TOML file each."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from paredown.device.learned import Learned
from paredown.figure import Figure


class Level(BaseModel):
    """One memory level, nearest to the compute units first; bytes, B/s and J/B."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    capacity_bytes: int
    read_bytes_s: float
    write_bytes_s: float | None = None
    energy_j_per_byte: float | None = None
    holds: Literal["all", "weights"] = "all"
    """``weights``: a run cannot write to it (flash), so activations find no place there."""


class Link(BaseModel):
    """A connection to another device; B/s and s."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: str
    bytes_s: float
    latency_s: float = 0.0


class Array(BaseModel):
    """A grid of multiply-accumulate units, one MAC per unit and cycle.

    ``dataflow`` says what stays in the units: ``weight``, ``output`` or ``row`` (of a kernel).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    columns: int
    clock_hz: float
    dataflow: Literal["weight", "output", "row"]
    patterns: tuple[str, ...] = ()
    """``n:m`` sparsities of weights whose zeros a unit skips: it takes m inputs for n weights."""


Kind = Literal[
    "cpu", "gpu", "microcontroller", "systolic", "scratchpad", "fpga", "dataflow", "node"
]


class Device(BaseModel):
    """What a cost model needs to know of a machine.

    ``peak_macs_s`` maps a dtype (``float32``, ``bfloat16``, ``int8`` ...) to multiply-accumulates
    per second over all allowed threads; ``elementwise_s`` to simple operations per second.
    ``overhead_s`` maps a backend to the seconds one operator call costs beside its work. ``how``
    says whether the figures are measured here or nominal; ``sources`` where each came from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    threads: int
    how: str
    peak_macs_s: dict[str, float]
    elementwise_s: float
    levels: tuple[Level, ...]
    kind: Kind = "cpu"
    count: int = 1
    """Equal devices in a node: rates and capacities are of all together, links of each."""
    array: Array | None = None
    reconfigure_s: float | None = None
    """Seconds to load another configuration (FPGA): what switching tasks costs."""
    overhead_s: dict[str, float]
    energy_j_per_mac: dict[str, float] = {}
    idle_w: float | None = None
    price_usd: float | None = None
    """What it costs to buy: for comparing machines, not for a bill."""
    links: tuple[Link, ...] = ()
    sources: dict[str, str] = {}
    isa: tuple[str, ...] = ()
    efficiency: dict[str, float] = {}
    """``backend/kind/dtype`` (``eager/conv/float32``) -> share of the peak that it reaches.

    Kinds are those of `graph.rules` with multiply-accumulates, and ``depthwise``. Calibrated; empty
    for nominal devices. ``overhead_s["eager/run"]`` is what one run costs beside its calls."""

    learned: Learned | None = Field(default=None, exclude=True, repr=False)
    """What a deep calibration learned of each backend; kept in a file beside the device's own."""

    @property
    def memory(self) -> Level:
        """The last memory level: what ``traffic`` is counted from."""
        return self.levels[-1]

    def peak(self, dtype: str) -> Figure:
        """Peak rate for a dtype in MAC/s, unavailable where the device does not say."""
        value = self.peak_macs_s.get(dtype)
        if value is None:
            return Figure(
                value=None,
                unit="MAC/s",
                how="unavailable",
                reason=f"{self.name} states no peak for {dtype}",
            )
        return Figure(
            value=value, unit="MAC/s", how="measured" if self.how == "measured" else "nominal"
        )
