"""What the verbs write that list: devices, techniques, papers, networks, cards, checks."""

from __future__ import annotations

from typing import Any, Literal

from paredown.documents.base import Document, Fingerprint, Record
from paredown.figure import Figure

CardVerdict = Literal["holds", "partly", "fails", "not testable here"]


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
