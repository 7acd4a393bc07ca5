"""The plan of the techniques' benchmark, its results' file, and what the rows come to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paredown.files import write_text
from paredown.measure.fingerprint import Fingerprint, fingerprint

PLAN = Path(__file__).with_name("techniques.yaml")
EXPLAINED = Path(__file__).with_name("techniques_explained.yaml")


def by_interval(low: float, high: float, even: float, slack: float = 0.0) -> str:
    """A win where all of the interval lies above ``even``, a loss where all lies below."""
    if low > even + slack:
        return "win"
    return "loss" if high < even - slack else "tie"


def summary(rows: list[dict[str, Any]], plan: dict[str, Any], scale: str) -> dict[str, Any]:
    """What the rows come to, and whether that is what was asked."""
    of = len(plan["networks"]) * len(plan["budgets"])
    rows = [r for r in rows if r["scale"] == scale]
    done = [r for r in rows if "verdict" in r]
    gains = [1.0 if r["verdict"] == "luck" else r["gain"] for r in done if r["gain"] is not None]
    mean = math.exp(sum(map(math.log, gains)) / len(gains)) if gains else None
    verdicts = {v: [r["row"] for r in done if r["verdict"] == v] for v in VERDICTS}
    asked = plan["asked"]
    return {
        "rows": len(done),
        "of": of,
        "failed": {r["row"]: r["failed"] for r in rows if "failed" in r},
        "geometric_mean": mean,
        "counted_rows": len(gains),
        **verdicts,
        "reached": bool(
            len(done) == of
            and mean is not None
            and mean >= asked["geometric_mean"]
            and len(verdicts["loss"]) <= asked["losses"]
        ),
    }


VERDICTS = ("win", "tie", "loss", "luck", "neither")


def peers_summary(rows: list[dict[str, Any]], plan: dict[str, Any]) -> dict[str, Any]:
    """Wins, ties and losses; lost rows without an explanation; what was not testable or not run."""
    of = sum(len(p["networks"]) * len(p["metrics"]) for p in plan["peers"].values())
    verdicts = [v for r in rows for v in r.get("metrics", {}).values()]
    count = {v: sum(x["verdict"] == v for x in verdicts) for v in ("win", "tie", "loss")}
    lost = [
        f"{r['row']}/{m}"
        for r in rows
        for m, x in r.get("metrics", {}).items()
        if x["verdict"] == "loss"
    ]
    known = explanations()
    share = (count["win"] + count["tie"]) / len(verdicts) if verdicts else None
    return {
        "rows": len(verdicts),
        "of": of,
        **count,
        "win_or_tie": share,
        "not testable here": {r["row"]: r["failed"] for r in rows if "failed" in r},
        "unexplained": [n for n in lost if n not in known],
        "reached": bool(
            len(verdicts) == of
            and share is not None
            and share >= plan["asked_of_peers"]["win_or_tie"]
            and count["win"] > count["loss"]
        ),
    }


def explanations() -> dict[str, str]:
    """Why rows were lost, by ``peer/network/metric``."""
    return (yaml.safe_load(EXPLAINED.read_text()) or {}) if EXPLAINED.exists() else {}


def read_plan(scale: str) -> dict[str, Any]:
    """techniques.yaml with the scale's effort and a hash of all but the networks' descriptions."""
    plan = yaml.safe_load(PLAN.read_text())
    settings = json.dumps({**plan, "networks": list(plan["networks"])}, sort_keys=True)
    return {
        **plan,
        "effort": plan["efforts"][scale],
        "hash": hashlib.sha256(settings.encode()).hexdigest()[:16],
    }


@dataclass
class Book:
    """The results' file: rows are added one by one and kept when they are of this plan."""

    path: Path | None
    plan: dict[str, Any]
    scale: str
    rows: dict[str, list[dict[str, Any]]]

    @staticmethod
    def open(path: Path | None, plan: dict[str, Any], scale: str) -> Book:
        book = Book(path, plan, scale, {"families": [], "peers": []})
        if path is not None and path.exists():
            body = json.loads(path.read_text())
            here = Fingerprint.model_validate(body["machine"]).key == fingerprint().key
            for part in book.rows:
                kept = [r for r in body[part] if r["plan"] == plan["hash"]]
                book.rows[part] = kept if here else []
        return book

    def has(self, part: str, row: str) -> bool:
        """Whether a row is done; one that failed is tried again."""
        return any(
            r["row"] == row and self._same(part, r) for r in self.rows[part] if not failed(r)
        )

    def lacks(self, row: str, metrics: Sequence[str]) -> tuple[str, ...]:
        """Those of a peer's ``metrics`` that the row does not hold yet."""
        held = next((r.get("metrics", {}) for r in self.rows["peers"] if r["row"] == row), {})
        return tuple(m for m in metrics if m not in held)

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Take a row in, in place of an older one of the same name, and write.

        The file is read anew: another run may have added rows of its own meanwhile.
        """
        if self.path is not None:
            self.rows = Book.open(self.path, self.plan, self.scale).rows
        others = [r for r in self.rows[part] if r["row"] != row["row"] or not self._same(part, r)]
        if part == "peers":
            old = next((r for r in self.rows[part] if r["row"] == row["row"]), {})
            row = merged(old, row)
        self.rows[part] = [*others, row]
        self.write()

    def _same(self, part: str, row: dict[str, Any]) -> bool:
        return part == "peers" or row["scale"] == self.scale

    def write(self) -> None:
        """The file, whole."""
        if self.path is None:
            return
        scales = {r["scale"] for r in self.rows["families"]}
        body = {
            "schema": 1,
            "machine": fingerprint().model_dump(),
            "plan": self.plan["hash"],
            "summary": {s: summary(self.rows["families"], self.plan, s) for s in sorted(scales)},
            "peers_summary": peers_summary(self.rows["peers"], self.plan),
            **self.rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(body, indent=1) + "\n")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A peer's row with the metrics of an earlier run of it that the new one did not take.

    Each metric says when and under which load it was taken.
    """
    own = ("date", "command", "load_before", "load_after")
    told = {k: new[k] for k in own if k in new}
    fresh = {m: {**x, **told} for m, x in new.get("metrics", {}).items()}
    metrics = {**old.get("metrics", {}), **fresh}
    return {**new, "metrics": metrics} if metrics else new


def failed(row: dict[str, Any]) -> bool:
    return "failed" in row


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    if failed(row):
        return f"{row['row']}: {row['failed']}"
    if row.get("metrics"):
        told = ", ".join(
            f"{m} {x['verdict']} ({x['value']:.4g})" for m, x in row["metrics"].items()
        )
        return f"{row['row']}: {told}"
    gain = "no gain to tell" if row["gain"] is None else f"{row['gain']:.2f}x"
    return f"{row['row']}: {row['verdict']}, {gain}, used {row['families_used'] or 'none of them'}"
