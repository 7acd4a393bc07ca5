"""What cards find of several subjects with the same seeds: paired differences and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from paredown.figure import Figure
from paredown.papers.card import Progress, mean_figure
from paredown.papers.cards import _task


class Paired:
    """Values of every subject, one per seed, in the order of ``seeds``."""

    def __init__(self, seeds: Sequence[int], each: Sequence[dict[str, float]]) -> None:
        self.seeds = list(seeds)
        self._by = {name: [found[name] for found in each] for name in each[0]}

    @classmethod
    def run(
        cls,
        job: Callable[..., dict[str, float]],
        seeds: Sequence[int],
        *settings: Any,
        progress: Progress,
    ) -> Paired:
        """``job(seed, *settings)``, an importable function, for every seed, in two processes."""
        return cls(seeds, _task.over_seeds(job, seeds, *settings, progress=progress))

    def __getitem__(self, name: str) -> list[float]:
        """One subject's values."""
        return self._by[name]

    def __iter__(self) -> Iterator[str]:
        """The subjects' names."""
        return iter(self._by)

    def mean(self, name: str) -> float:
        """Mean over the seeds."""
        return sum(self[name]) / len(self.seeds)

    def less(self, a: str, b: str) -> list[float]:
        """``a`` minus ``b``, seed by seed."""
        return [x - y for x, y in zip(self[a], self[b], strict=True)]

    def over(self, a: str, b: str) -> list[float]:
        """``a`` over ``b`` less one, seed by seed."""
        return [x / y - 1 for x, y in zip(self[a], self[b], strict=True)]

    def figures(
        self, what: str, names: Iterable[str] | None = None, unit: str = ""
    ) -> dict[str, Figure]:
        """``what, NAME``: the mean with its interval of all subjects, or those named."""
        chosen = self._by if names is None else names
        return {f"{what}, {n}": mean_figure(self[n], unit) for n in chosen}

    def rows(
        self, subject: str, value: str, names: Iterable[str] | None = None
    ) -> list[dict[str, Any]]:
        """A table of every seed: ``subject`` and ``value`` are the names of its columns."""
        return [
            {subject: n, "seed": s, value: v}
            for n in (self._by if names is None else names)
            for s, v in zip(self.seeds, self[n], strict=True)
        ]
