"""What ``pare down``, ``plan down``, ``check``, ``compare`` and ``bench`` write."""

from __future__ import annotations

from typing import Any, Literal

from paredown.documents.base import Document, Fingerprint, Record
from paredown.documents.profile import MemoryPoint, ModuleRow, OperatorRow
from paredown.figure import Figure

Verdict = Literal["met", "predicted_met", "infeasible", "predicted_infeasible", "no_gain"]


EXIT_CODES: dict[str, int] = {
    "met": 0,
    "predicted_met": 0,
    "infeasible": 1,
    "predicted_infeasible": 1,
    "no_gain": 1,
}


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
