"""What a backend is: it says what it supports, compiles a workload, and owns up to what it ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from paredown.graph.graph import Graph
from paredown.workload import Workload

COMPUTE = "compute"
"""The role of a node that multiplies matrices: its precision is what numeric techniques change."""


@dataclass(frozen=True)
class Asked:
    """What a module asks of the numbers, as its operators say.

    ``weight`` is ``int8``, ``int4``, ``int2``, ``binary``, ``nf4``, ``codebook`` or None;
    ``activation`` is ``static``, ``dynamic`` or None; ``dtype`` is the dtype its matrix products
    compute in.
    ``product`` is False for a module that multiplies no matrices (a norm): then ``dtype`` is that
    of its parameters.
    """

    weight: str | None = None
    activation: str | None = None
    dtype: str = "float32"
    product: bool = True

    @property
    def compute(self) -> str:
        """The precision of the multiplications: int8 when both sides are quantized."""
        return "int8" if self.weight == "int8" and self.activation else self.dtype

    def to_json(self) -> dict[str, Any]:
        """The fields, for a saved form."""
        return asdict(self)


@dataclass(frozen=True)
class Ran:
    """How one node was executed: ``site`` is its module path where known, ``precision`` a dtype.

    ``op`` ``weight`` stands for a weight as it is held, other rows for calls.
    """

    site: str
    op: str
    precision: str
    fallback: str | None = None
    """Why it ran elsewhere or otherwise than asked, None when it ran as asked."""
    role: str = ""
    """`COMPUTE` for matrix products and convolutions, else empty."""


@dataclass(frozen=True)
class Realised:
    """Which savings of a rewrite the lowering made real, and why it did not the others."""

    technique: str
    kept: tuple[str, ...]
    lost: dict[str, str]


class Executable(ABC):
    """A compiled workload. Called like the model it does one run and returns what that makes."""

    backend: str
    threads: int
    compile_s: float
    asked: dict[str, Asked]
    """Module path -> what its operators ask of the numbers; only modules with a matrix product."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once; shapes other than the compiled ones raise ``InputError`` naming both."""

    @property
    def laps(self) -> Sequence[float]:
        """Seconds from the start of the last run to the end of each step; none where one call is
        a run.
        """
        return ()

    @property
    def varies(self) -> str | None:
        """Why the cost of a run depends on its input; None where every run is the same work."""
        return None

    def forget(self) -> None:
        """Empty what is kept from one run to the next; nothing is, unless a module says so."""
        return

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model: in a loop (`generate` ...) a part of a run, else the run."""
        return self(*args, **kwargs)

    @abstractmethod
    def executed(self) -> list[Ran]:
        """Precision and fallbacks per node, as the runtime itself reports them."""

    @abstractmethod
    def save(self, folder: Path) -> list[Path]:
        """Write what is needed to run into ``folder``; returns the files, relative to it."""

    def weight_bytes(self) -> int | None:
        """Bytes of weights as this executable holds them, None when the runtime does not tell."""
        return None

    def arena_bytes(self) -> int:
        """Bytes held between runs for activations: 0 where they are allocated anew each time."""
        return 0

    def realised(
        self,
        technique: str,
        sites: Iterable[str],
        aliases: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Realised:
        """Which of a technique's sites really run or are held as asked, the others with the reason.

        ``sites`` are original names ``path:role``; the workload's ``aliases`` say where they are.
        """
        rows = self.executed()
        kept: list[str] = []
        lost: dict[str, str] = {}
        for site in sites:
            path = site.partition(":")[0]
            now = (aliases or {}).get(path, (path,))
            whys = [why for p in now if (why := _lost(p, self.asked, rows)) is not None]
            if whys:
                lost[site] = whys[0]
            else:
                kept.append(site)
        return Realised(technique, tuple(kept), lost)


_FLOATS = ("float32", "bfloat16", "float16", "float64")


def _lost(path: str, asked: Mapping[str, Asked], rows: list[Ran]) -> str | None:
    """Why what the modules at or under ``path`` ask was not realised, None when it was."""
    wanted = {p: a for p, a in asked.items() if _under(p, path)}
    if not wanted:
        return "nothing of it is in the compiled graph: it was folded away or never ran"
    for where, ask in wanted.items():
        if not ask.product:
            # Norms and tables are fused into their neighbours: only a row that differs tells.
            floats = [r for r in rows if r.site == where and r.precision in _FLOATS]
            off = next((r for r in floats if r.precision != ask.dtype), None)
            if off is not None:
                return f"asked for {ask.dtype}, {off.op} ran in {off.precision}"
            continue
        ran = [r for r in rows if r.site == where and r.role == COMPUTE]
        held = [r.precision for r in rows if r.site == where and r.op == "weight"]
        if not ran and not held:
            return "the runtime reports no layer for it"
        off = next((r for r in ran if r.precision != ask.compute), None)
        if off is not None:
            return off.fallback or f"asked for {ask.compute}, ran in {off.precision}"
        if ask.weight and ask.weight not in held:
            if ran and ran[0].fallback:
                return ran[0].fallback
            return f"asked for {ask.weight} weights, held as {', '.join(held) or 'unknown'}"
    return None


def _under(path: str, parent: str) -> bool:
    return path == parent or parent == "" or path.startswith(parent + ".")


class Backend(ABC):
    """One way of running a network. It never changes precision on its own: techniques do."""

    name: ClassVar[str]
    ours: ClassVar[bool] = False
    """Paredown's own engine: not among what a user could merely switch to."""
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
        records) is given to backends that need Python modules: eager and inductor.
        """
