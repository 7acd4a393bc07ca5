"""Plain records of everything paredown reports. Each document carries ``schema: 1``; no torch here.

``docs/schemas/`` holds the JSON Schema of every document, written by ``scripts/schemas.py``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from paredown.figure import Figure

Verdict = Literal["met", "predicted_met", "infeasible", "predicted_infeasible", "no_gain"]
CardVerdict = Literal["holds", "partly", "fails", "not testable here"]

EXIT_CODES: dict[str, int] = {
    "met": 0,
    "predicted_met": 0,
    "infeasible": 1,
    "predicted_infeasible": 1,
    "no_gain": 1,
}


class Record(BaseModel):
    """Base of all records: unknown keys are an error, so a golden file shows every change."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Document(Record):
    """Base of all documents written by ``--json``."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    paredown: str = "0.1.0"

    def to_json(self, indent: int | None = 2) -> str:
        """The document as JSON text, keys by alias; never NaN."""
        return self.model_dump_json(by_alias=True, indent=indent)


class Fingerprint(Record):
    """What identifies a machine for a measurement; ``probe`` holds one-second rates."""

    cpu: str
    isa: list[str]
    caches: dict[str, int]
    cores: int
    memory_bytes: int
    kernel: str
    versions: dict[str, str]
    probe: dict[str, float] = {}
    gpu: str | None = None

    @property
    def key(self) -> str:
        """A short hash of what does not change between runs (the probe and versions left out)."""
        import hashlib
        import json

        stable = self.model_dump(include={"cpu", "isa", "caches", "cores", "memory_bytes", "gpu"})
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:12]


class TensorInfo(Record):
    """Name, shape and dtype of one input."""

    name: str
    shape: list[int]
    dtype: str


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
    priced_share: PricedShare
    unpriced: list[str]
    operators: list[OperatorRow]
    modules: list[ModuleRow]
    memory: list[MemoryPoint] = []
    waterline: dict[str, float] = {}
    """``intensity`` (MAC/B at which compute and memory balance), ``e_max``, ``e_predicted`` ..."""
    notes: list[str] = []
    fingerprint: Fingerprint | None = None


class ConstraintResult(Record):
    """One constraint: what was asked, what was achieved, whether that meets it."""

    metric: str
    op: Literal["<=", ">="]
    value: float
    unit: str
    relative_to: str | None
    text: str
    achieved: Figure
    met: bool
    proven: bool | None = None
    why: str | None = None


class Trial(Record):
    """One candidate: done, skipped or failed, and why."""

    id: int
    state: Literal["done", "skipped", "failed"]
    reason: str | None = None
    recipe: dict[str, Any]
    predicted: dict[str, Figure] = {}
    measured: dict[str, Figure] = {}
    seconds: float = 0.0


class Side(Record):
    """The figures of one side of a comparison (before, after, best single backend)."""

    name: str
    backend: str
    recipe: dict[str, Any] | None = None
    figures: dict[str, Figure]
    ratios: dict[str, Figure] = {}
    """Metric -> value relative to the baseline, measured interleaved."""


class SiteReport(Record):
    """What happened to one site: technique, precision executed, whether its saving is real."""

    site: str
    technique: str
    outcome: Literal["real", "simulated", "refused"]
    detail: str


class DownDoc(Document):
    """What ``pare down`` writes."""

    kind: Literal["down"] = "down"
    target: str
    device: str
    verdict: Verdict
    changed: bool = True
    interrupted: bool = False
    headline: list[str] = []
    """The result in words, one sentence each."""
    constraints: list[ConstraintResult]
    before: Side
    after: Side
    best_single_backend: Side | None
    recipe: dict[str, Any]
    trials: list[Trial]
    sites: list[SiteReport] = []
    left_out: dict[str, str] = {}
    """Technique -> why it was not searched."""
    binding: str | None = None
    layers_before: list[ModuleRow] = []
    layers_after: list[ModuleRow] = []
    memory_before: list[MemoryPoint] = []
    memory_after: list[MemoryPoint] = []
    waterline_before: dict[str, float] = {}
    waterline_after: dict[str, float] = {}
    operators_before: list[OperatorRow] = []
    operators_after: list[OperatorRow] = []
    effort_s: float
    seed: int
    threads: int
    a_a_ratio: Figure | None = None
    folder: str
    notes: list[str] = []
    fingerprint: Fingerprint


class PlanDoc(Document):
    """What ``pare plan down`` writes: what would be tried, in what time and disk."""

    kind: Literal["plan"] = "plan"
    target: str
    device: str
    constraints: list[str]
    candidates: list[dict[str, Any]]
    backends: dict[str, str | None]
    """Backend -> None when it will be tried, else the reason it will not."""
    techniques: dict[str, str]
    """Technique -> how many sites, or why it does not apply."""
    effort_s: float
    expected_s: Figure
    disk_bytes: Figure
    notes: list[str] = []


class CheckDoc(Document):
    """What ``pare check`` writes."""

    kind: Literal["check"] = "check"
    target: str
    device: str
    verdict: Verdict
    """``predicted_*`` where a prediction is among the figures; never ``no_gain``."""
    met: bool
    constraints: list[ConstraintResult]
    fingerprint: Fingerprint


class CompareDoc(Document):
    """What ``pare compare`` and ``pare bench`` write: the first side is what ratios refer to."""

    kind: Literal["compare", "bench"] = "compare"
    sides: list[Side]
    a_a_ratio: Figure | None = None
    threads: int
    notes: list[str] = []
    fingerprint: Fingerprint


class DeviceDoc(Document):
    """What ``pare device`` and ``pare calibrate`` write; devices as their TOML holds them."""

    kind: Literal["device"] = "device"
    devices: list[dict[str, Any]]


class TechniqueRow(Record):
    """One technique; ``applies`` and ``sites`` are filled when a target was given."""

    name: str
    kind: str
    family: str
    stage: str
    paper: str | None
    maturity: str
    needs: list[str]
    touches: list[str]
    summary: str
    knobs: list[dict[str, Any]] = []
    applies: bool | None = None
    sites: int | None = None
    why_not: str | None = None


class TechniquesDoc(Document):
    """What ``pare techniques`` writes."""

    kind: Literal["techniques"] = "techniques"
    target: str | None = None
    techniques: list[TechniqueRow]


class PaperRow(Record):
    """One entry of the catalogue, in our words."""

    key: str
    title: str
    year: int
    module: str
    claim: str
    verdict: CardVerdict | None = None


class PapersDoc(Document):
    """What ``pare papers`` writes."""

    kind: Literal["papers"] = "papers"
    papers: list[PaperRow]


class ZooRow(Record):
    """One network: parameters and MACs of one run as our graph counts them, beside the paper's.

    ``input`` is one image (channels, height, width), clip or volume (channels, frames or slices,
    height, width). ``source`` says where the paper's figures are from, ``why`` the reason where
    ours differ from them by more than 0.5 %.
    """

    name: str
    paper: str
    input: list[int]
    params: int
    macs: int
    paper_params: int | None
    paper_macs: int | None
    source: str
    why: str | None = None


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


class ZooDoc(Document):
    """What ``pare zoo`` writes."""

    kind: Literal["zoo"] = "zoo"
    networks: list[ZooRow]


class Finding(Record):
    """One run of a claim card at one scale on one machine (CONTRACTS, Claim cards)."""

    key: str
    verdict: CardVerdict
    why: str
    claim: str
    measured: dict[str, Figure]
    thresholds: dict[str, float]
    scale: Literal["quick", "full"]
    seeds: list[int]
    power: Figure
    seconds: float
    date: str
    fingerprint: Fingerprint
    tables: dict[str, list[dict[str, Any]]] = {}


class CardsDoc(Document):
    """What ``pare reproduce`` writes."""

    kind: Literal["cards"] = "cards"
    cards: list[Finding]


class DoctorRow(Record):
    """One thing checked: present, missing, and how to get it."""

    name: str
    state: Literal["ok", "missing", "limited"]
    detail: str
    fix: str | None = None


class DoctorDoc(Document):
    """What ``pare doctor`` writes."""

    kind: Literal["doctor"] = "doctor"
    rows: list[DoctorRow]


class ShowDoc(Document):
    """What ``pare show`` writes: an artefact's manifest, recipe and verdict."""

    kind: Literal["show"] = "show"
    folder: str
    manifest: dict[str, Any]
    recipe: dict[str, Any]
    result: dict[str, Any] | None = None


class ErrorBody(Record):
    """One refused request."""

    type: str
    message: str
    exit_code: int


class ErrorDoc(Document):
    """What ``--json -`` writes when a verb is refused."""

    error: ErrorBody
