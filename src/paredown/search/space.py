"""What a search may choose from: per technique off or one of its variants, a share of sites spared,
a backend.

A candidate is a point of that space and at the same time a recipe. Combinations whose techniques
conflict, or that a backend cannot run at all, never enter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paredown.ordering import conflict, same_place
from paredown.technique import Needs, Sites, Stage, Technique, Touches, matches

if TYPE_CHECKING:
    from paredown.recipe import Recipe

OFF = "off"
SPARED = "spared"
BACKEND = "backend"
NUMERIC = frozenset({Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE})


@dataclass(frozen=True)
class Axis:
    """One choice: its name and the labels that may be chosen, ``off`` first where it may be off."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """A technique as the search may use it: the variants by label, and where it can act."""

    technique: type[Technique]
    variants: dict[str, dict[str, Any]]
    sites: Sites
    always: bool = False
    """Lossless and free: on wherever it has a site (folding), never a question."""

    @property
    def name(self) -> str:
        """The technique's registered name."""
        return self.technique.name


@dataclass(frozen=True)
class Candidate:
    """One point: axis name -> label."""

    point: tuple[tuple[str, str], ...]

    def __getitem__(self, axis: str) -> str:
        return dict(self.point)[axis]

    @property
    def backend(self) -> str:
        """The backend it is lowered to."""
        return self["backend"]

    def text(self) -> str:
        """Short form for a progress line: what is on, and where it runs."""
        on = [
            f"{a} {label}" if label not in ("on", a) else a
            for a, label in self.point
            if label not in (OFF, "0") and a not in (BACKEND,)
        ]
        return f"{' + '.join(on) or 'as it is'} on {self.backend}"


@dataclass
class Space:
    """All candidates, and how one becomes a recipe.

    ``ranking(technique)`` lists its sites, the most sensitive first, and is asked only when it is
    needed; the ``spared`` axis keeps that share of them as they are.
    """

    choices: list[Choice]
    backends: list[str]
    spare: tuple[float, ...] = (0.0,)
    ranking: Callable[[str], list[str]] = lambda _: []
    keep: tuple[str, ...] = ()
    refused: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """(technique, label, backend) -> why that backend cannot run it."""

    def axes(self) -> list[Axis]:
        """Every axis with its options."""
        axes = [Axis(c.name, ("on",) if c.always else (OFF, *c.variants)) for c in self.choices]
        if any(is_numeric(c.technique) for c in self.choices):
            axes.append(Axis(SPARED, tuple(f"{s:g}" for s in self.spare)))
        return [*axes, Axis(BACKEND, tuple(self.backends))]

    def candidates(self) -> list[Candidate]:
        """Every valid candidate, in a fixed order, the plain backends first."""
        clashing = {
            frozenset({a.name, b.name})
            for a, b in itertools.combinations(self.choices, 2)
            if _clash(a, b)
        }
        found = [c for c in _points(self.axes(), clashing) if self.valid(c, clashing)]
        return sorted(found, key=lambda c: len(self.on(c)))

    def on(self, candidate: Candidate) -> list[Choice]:
        """The techniques a candidate uses, in the order they are applied."""
        chosen = dict(candidate.point)
        used = [c for c in self.choices if chosen[c.name] != OFF]
        return sorted(used, key=lambda c: c.technique.stage)

    def valid(self, candidate: Candidate, clashing: Collection[frozenset[str]] = ()) -> bool:
        """No two ``clashing`` techniques, none that the backend refuses, recovery only where
        something was cut, sites spared only where a numeric technique is on.
        """
        on = self.on(candidate)
        if any({a.name, b.name} in clashing for a, b in itertools.combinations(on, 2)):
            return False
        chosen = dict(candidate.point)
        if any((c.name, chosen[c.name], candidate.backend) in self.refused for c in on):
            return False
        numeric = [c for c in on if is_numeric(c.technique)]
        if not numeric and chosen.get(SPARED, "0") != "0":
            return False
        cuts = any(Touches.WEIGHT_SHAPE in c.technique.touches and not c.always for c in on)
        recovers = [c for c in on if Needs.TRAINING in c.technique.needs]
        return cuts or not recovers

    def recipe(self, candidate: Candidate, *, target: Any, threads: int, seed: int) -> Recipe:
        """The recipe a candidate stands for."""
        from paredown.recipe import Lower, Recipe, Step

        chosen = dict(candidate.point)
        steps: list[Step] = []
        for c in self.on(candidate):
            label = chosen[c.name]
            except_ = list(self.keep)
            if is_numeric(c.technique):
                except_ += self.spared(c.name, float(chosen.get(SPARED, "0")))
            known = (*c.sites.ok, *c.sites.refused)
            steps.append(
                Step.model_validate(
                    {
                        "technique": c.name,
                        "settings": dict(c.variants.get(label, {})),
                        "except": [e for e in except_ if _names_any(e, known)],
                    }
                )
            )
        lower = Lower(backend=candidate.backend, threads=threads)
        return Recipe(target=target, steps=steps, lower=lower, seed=seed)

    def spared(self, technique: str, share: float) -> list[str]:
        """The most sensitive share of a technique's sites."""
        if share == 0:
            return []
        ranked = self.ranking(technique)
        return ranked[: round(share * len(ranked))]


def _points(
    axes: Sequence[Axis],
    clashing: Collection[frozenset[str]],
    chosen: tuple[tuple[str, str], ...] = (),
) -> Iterator[Candidate]:
    """Every point in the order of the axes, without those that hold two ``clashing`` techniques.

    A clash is left out where it begins: a dozen techniques have millions of points otherwise.
    """
    if not axes:
        yield Candidate(chosen)
        return
    name = axes[0].name
    clashes = any(frozenset({name, a}) in clashing for a, label in chosen if label != OFF)
    for label in axes[0].options:
        if label == OFF or not clashes:
            yield from _points(axes[1:], clashing, (*chosen, (name, label)))


def _clash(a: Choice, b: Choice) -> bool:
    """Whether two techniques would set the same thing at a site where both can act."""
    return any(
        conflict(a.technique, b.technique, x) is not None
        for x in a.sites.ok
        if any(same_place(x, y) for y in b.sites.ok)
    )


def _names_any(pattern: str, sites: Iterable[str]) -> bool:
    return any(matches(s, pattern) for s in sites)


def is_numeric(technique: type[Technique]) -> bool:
    """Whether a technique changes the dtype of weights at single sites (int8, int4)."""
    return technique.stage == Stage.NUMERIC


def as_params(candidate: Candidate) -> dict[str, str]:
    """A candidate as the store's parameters."""
    return dict(candidate.point)


def from_params(params: Mapping[str, Any], axes: Sequence[Axis]) -> Candidate:
    """A candidate from the store's parameters."""
    return Candidate(tuple((a.name, str(params[a.name])) for a in axes))
