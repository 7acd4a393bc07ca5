"""Thousands of networks, one seed each: counts, differences by kind, a minimal program for each.

The state is one JSON document, written atomically; a campaign that was stopped goes on at the next
seed. Backends and rewrites are tried on every ``n``-th network.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from paredown.errors import InputError
from paredown.files import write_text
from paredown.testing.fuzz import backends, oracles, rewrites
from paredown.testing.fuzz.explained import explanation
from paredown.testing.fuzz.grow import grow
from paredown.testing.fuzz.minimal import minimal, without
from paredown.testing.fuzz.oracles import Difference
from paredown.testing.fuzz.partial import digest
from paredown.testing.fuzz.program import Program, network
from paredown.workload import Workload

SAVED_EVERY = 15.0
"""Seconds."""


@dataclass(frozen=True)
class Settings:
    """What is tried: calls per network, and of how many networks one meets backends and rewrites.

    0 leaves them out.
    """

    seed: int = 0
    size: int = 8
    backends: tuple[str, ...] = ("native", "onnxruntime", "openvino")
    backends_every: int = 0
    rewrites_every: int = 0


@dataclass
class Campaign:
    """Counts so far. ``findings`` by kind: how often, first seeds, details, the minimal program."""

    settings: Settings = field(default_factory=Settings)
    done: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    functions: Counter[str] = field(default_factory=Counter)
    """Function -> valid networks that hold it."""
    invalid: Counter[str] = field(default_factory=Counter)
    """Function that torch refused -> networks."""
    unsteady: Counter[str] = field(default_factory=Counter)
    backends: dict[str, Counter[str]] = field(default_factory=dict)
    techniques: Counter[str] = field(default_factory=Counter)
    """Technique -> networks on which it had a site and was checked."""
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    _cached: dict[str, Any] = field(default_factory=dict, repr=False)

    def run(
        self,
        count: int,
        *,
        path: Path | None = None,
        limit_s: float | None = None,
        say: Callable[[int, int], None] | None = None,
    ) -> None:
        """Go on until ``count`` networks are done or ``limit_s`` is over; the state is saved.

        A ``KeyboardInterrupt`` saves too, without the network it fell into.
        """
        began = saved = time.monotonic()
        before = self.seconds
        try:
            while self.done < count:
                self.one(self.settings.seed + self.done)
                self.done += 1
                now = time.monotonic()
                self.seconds = before + now - began
                if say is not None:
                    say(self.done, len(self.open()))
                if path is not None and now - saved > SAVED_EVERY:
                    saved = now
                    self.save(path)
                if limit_s is not None and now - began > limit_s:
                    break
        finally:
            if path is not None:
                self.save(path)

    def one(self, seed: int) -> None:
        """Grow the network of a seed and look for differences."""
        program = grow(seed, self.settings.size)
        if not program.steps:
            self.counts["empty"] += 1
            return
        self.counts["calls"] += len(program.steps)
        try:
            workload = network(program, seed)
            workload.call()
        except Exception as e:  # the rules were wrong about this network
            self.counts["invalid"] += 1
            self.invalid[_culprit(program, e)] += 1
            return
        self.counts["valid"] += 1
        self.functions.update({s.op for s in program.steps})
        graph, found = oracles.check(workload)
        self.counts["operators captured"] += len(graph.nodes) if graph else 0
        for d in found:
            self.note(d, seed, program, lambda w: oracles.check(w)[1])
        if self._due(self.settings.backends_every):
            self._backends(seed, program, workload)
        if self._due(self.settings.rewrites_every):
            self._rewrites(seed, program)

    def _due(self, every: int) -> bool:
        return every > 0 and self.counts["valid"] % every == 0

    def _backends(self, seed: int, program: Program, workload: Workload) -> None:
        why = backends.steady(workload)
        if why is not None:
            self.unsteady[why] += 1
            return
        self.counts["met backends"] += 1
        for name, seen in backends.compare(workload, self.settings.backends).items():
            tally = self.backends.setdefault(name, Counter())
            if isinstance(seen, Difference):
                tally["differs"] += 1
                self.note(seen, seed, program, lambda w, name=name: _differing(w, name))
            else:
                tally["same" if seen == "same" else seen.partition(":")[0]] += 1

    def _rewrites(self, seed: int, program: Program) -> None:
        self.counts["met rewrites"] += 1
        table = self._cached.setdefault("techniques", rewrites.techniques())
        for name, technique in table.items():
            acted, found = rewrites.check(technique, lambda: network(program, seed))
            self.techniques[name] += acted
            for d in found:

                def again(w: Workload, technique: Any = technique) -> list[Difference]:
                    return rewrites.check(technique, lambda: w)[1]

                self.note(d, seed, program, again)

    def note(
        self,
        difference: Difference,
        seed: int,
        program: Program,
        again: Callable[[Workload], list[Difference]],
    ) -> None:
        """Count a difference; the first of its kind is shrunk.

        One of memory is shrunk each time: only what is left of the network names its cause.
        """
        kind = difference.kind
        if kind in self.findings:
            self._again(kind, seed)
            return

        def seen(smaller: Program) -> Difference | None:
            try:
                w = network(smaller, seed)
                w.call()
                return next((d for d in again(w) if _alike(d, difference)), None)
            except Exception:  # an invalid network shows nothing
                return None

        small = minimal(program, lambda p: seen(p) is not None)
        difference = seen(small) or difference
        if difference.kind in self.findings:
            self._again(difference.kind, seed)
            return
        calls = [s.op for s in small.steps]
        self.findings[difference.kind] = {
            "networks": 1,
            "seeds": [seed],
            "detail": difference.detail,
            "explained": explanation(difference, calls),
            "calls": calls,
            "program": small.dumps(),
        }

    def _again(self, kind: str, seed: int) -> None:
        known = self.findings[kind]
        known["networks"] += 1
        known["seeds"] = [*known["seeds"], seed][:5]

    def open(self) -> dict[str, dict[str, Any]]:
        """Findings without an explanation."""
        return {k: f for k, f in self.findings.items() if not f["explained"]}

    def to_json(self) -> dict[str, Any]:
        """The document: settings, counts, findings."""
        told = {
            "schema": 1,
            "settings": asdict(self.settings),
            "operators": digest(),
            "networks": self.done,
            "seconds": round(self.seconds, 1),
            "counts": dict(self.counts),
            "functions used": len(self.functions),
            "functions": dict(self.functions.most_common()),
            "invalid": dict(self.invalid.most_common()),
            "unsteady": dict(self.unsteady),
            "backends": {k: dict(c) for k, c in self.backends.items()},
            "techniques": dict(self.techniques),
            "findings": self.findings,
        }
        return json.loads(json.dumps(told))

    def save(self, path: Path) -> None:
        """Write the document atomically."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, settings: Settings) -> Self:
        """Go on with a document; ``InputError`` when it was made with other settings."""
        told = json.loads(path.read_text())
        if told["operators"] != digest():
            raise InputError(f"{path} was made with other operators: give another file or --again")
        if told["settings"] != json.loads(json.dumps(asdict(settings))):
            raise InputError(
                f"{path} was made with {told['settings']}: give the same or another file"
            )
        for kind, found in told["findings"].items():
            oracle, where = kind.split(" | ", 1)
            found["explained"] = explanation(
                Difference(oracle, where, found["detail"]), found["calls"]
            )
        return cls(
            settings,
            told["networks"],
            told["seconds"],
            Counter(told["counts"]),
            Counter(told["functions"]),
            Counter(told["invalid"]),
            Counter(told["unsteady"]),
            {k: Counter(c) for k, c in told["backends"].items()},
            Counter(told["techniques"]),
            told["findings"],
        )


def _alike(a: Difference, b: Difference) -> bool:
    return a.kind == b.kind or a.oracle == b.oracle == oracles.MEMORY


def _differing(workload: Workload, name: str) -> list[Difference]:
    if backends.steady(workload) is not None:
        return []
    seen = backends.compare(workload, (name,))[name]
    return [seen] if isinstance(seen, Difference) else []


def _culprit(program: Program, error: Exception) -> str:
    """The first call that torch refuses when the network is run call by call."""
    for n in range(1, len(program.steps) + 1):
        part = without(program, list(program.steps[:n]))
        try:
            network(part).call()
        except Exception:  # the call that is looked for
            return program.steps[n - 1].op
    return type(error).__name__
