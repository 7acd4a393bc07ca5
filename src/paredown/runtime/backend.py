"""What a backend is: it says what it supports, compiles a workload, and owns up to what it ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from paredown.graph.graph import Graph
from paredown.workload import Workload


@dataclass(frozen=True)
class Ran:
    """How one node was executed: ``site`` is the module path where known, ``precision`` a dtype name."""

    site: str
    op: str
    precision: str
    fallback: str | None = None
    """Why it ran elsewhere or otherwise than asked, None when it ran as asked."""


@dataclass(frozen=True)
class Realised:
    """Which saving of a rewrite the lowering made real: ``site`` -> ``kept`` or the reason it was not."""

    technique: str
    kept: tuple[str, ...]
    lost: dict[str, str]


class Executable(ABC):
    """A compiled workload. Called like the model, it returns what the model returns."""

    backend: str
    threads: int
    compile_s: float

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once; shapes other than the compiled ones raise ``InputError`` naming both."""

    @abstractmethod
    def executed(self) -> list[Ran]:
        """Precision and fallbacks per node, as the runtime itself reports them."""

    @abstractmethod
    def save(self, folder: Path) -> list[Path]:
        """Write what is needed to run into ``folder``; returns the files, relative to it."""

    def weight_bytes(self) -> int | None:
        """Bytes of weights as this executable holds them, None when the runtime does not tell."""
        return None


class Backend(ABC):
    """One way of running a network. Never changes precision silently: that belongs to techniques."""

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    loads_without_paredown: ClassVar[bool] = False

    @abstractmethod
    def available(self) -> str | None:
        """None when it can be used here, else the reason and the install line."""

    @abstractmethod
    def supports(self, workload: Workload, graph: Graph | None) -> list[str]:
        """Reasons why it cannot run this workload; empty means it can."""

    @abstractmethod
    def lower(self, workload: Workload, *, threads: int) -> Executable:
        """Compile. Raises ``LoweringError`` with the runtime's own words."""

    @abstractmethod
    def load(self, folder: Path, *, threads: int, workload: Workload | None = None) -> Executable:
        """Read a saved executable back. ``workload`` (structure rebuilt from its source and Change
        records) is given to backends that need Python modules: eager and inductor."""
