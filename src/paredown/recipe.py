"""Recipes: techniques in order with settings and sites, then how to lower; read, written, run.

The YAML form is DESIGN's; ``parse_inline`` reads the one-line form of the command line. Importing
this module needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paredown import yamlform
from paredown.errors import NotApplicable, RecipeError, UnknownName
from paredown.files import write_text
from paredown.result import Document

if TYPE_CHECKING:
    from paredown.technique import Change, Decisions, Technique
    from paredown.workload import Workload

SCHEMA = 1
VERSION: str = Document.model_fields["paredown"].default


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Target(_Part):
    """What a recipe was made for: the reference as the user gave it, and its file's hash."""

    ref: str
    sha256: str | None = None


class Step(_Part):
    """One technique with its settings, where it acts, and what differs at some sites."""

    technique: str
    settings: dict[str, Any] = {}
    sites: list[str] = ["*"]
    except_: list[str] = Field(default=[], alias="except")
    overrides: dict[str, dict[str, Any]] = {}


class Lower(_Part):
    """How the result is run: a backend, and its threads (None: as many as the run is given)."""

    backend: str = "eager"
    threads: int | None = Field(default=None, ge=1)


class Recipe(_Part):
    """Techniques in order, one lowering, one seed: with the target, all a result follows from."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    paredown: str = VERSION
    target: Target | None = None
    steps: list[Step] = []
    lower: Lower = Lower()
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the YAML form's keys; empty parts are left out."""
        data = self.model_dump(by_alias=True, exclude_none=True)
        for step in data["steps"]:
            for key in ("settings", "except", "overrides"):
                if not step[key]:
                    del step[key]
        return data

    def words(self) -> str:
        """One line for people: ``structured-pruning(share=0.5) + static-int8 -> openvino``."""

        def one(s: Step) -> str:
            inside = ", ".join(f"{k}={v}" for k, v in s.settings.items())
            return s.technique + (f"({inside})" if inside else "")

        return f"{' + '.join(one(s) for s in self.steps) or 'unchanged'} -> {self.lower.backend}"

    def techniques(self) -> list[Technique]:
        """The steps' techniques; ``RecipeError`` for an unknown name, setting or bad value."""
        return [_make(s) for s in self.steps]

    def ordered(self) -> Recipe:
        """The same recipe, its steps in the order in which they are applied (by stage, stable)."""
        order = sorted(zip(self.techniques(), self.steps, strict=True), key=lambda p: p[0].stage)
        return self.model_copy(update={"steps": [s for _, s in order]})


@dataclass
class Applied:
    """A recipe carried out: the new workload and one change per step, in the order applied."""

    workload: Workload
    changes: list[Change]
    recipe: Recipe


def read(text: str, *, where: str = "recipe") -> Recipe:
    """A recipe from YAML text; ``RecipeError`` names the key, version, technique or setting."""
    try:
        data = yamlform.load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{where}{at}: not YAML: {getattr(e, 'problem', None) or e}") from None
    recipe = from_dict(data, where=where)
    recipe.techniques()
    return recipe


def from_dict(data: Any, *, where: str = "recipe") -> Recipe:
    """A recipe from plain data; checks keys and versions, not yet technique names."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: a recipe is a mapping with schema, steps and lower")
    schema = data.get("schema", SCHEMA)
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        todo = "upgrade paredown" if newer else f"this paredown reads schema {SCHEMA}"
        raise RecipeError(f"{where}: unknown recipe schema {schema!r}: {todo}")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        at = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{where}: unknown key {at!r}") from None
        raise RecipeError(f"{where}: {at}: {first['msg'].lower()}") from None
    _version(recipe.paredown, where)
    return recipe


def _version(text: str, where: str) -> None:
    m = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?([.+-]?\w+)*$", text)
    if m is None:
        raise RecipeError(f"{where}: {text!r} is not a version of paredown")
    ours = tuple(int(p) for p in VERSION.split(".")[:2])
    if (int(m[1]), int(m[2])) > ours:
        raise RecipeError(
            f"{where}: written by paredown {text}, newer than this {VERSION}: upgrade paredown"
        )


def load(path: Path | str) -> Recipe:
    """The recipe in a YAML file or an artefact folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "recipe.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"cannot read {path}: {e}") from None
    return read(text, where=str(path))


def dumps(recipe: Recipe) -> str:
    """A recipe as readable YAML text."""
    return yamlform.dump(recipe.to_dict())


def dump(recipe: Recipe, path: Path | str) -> Path:
    """Write a recipe as YAML, atomically."""
    return write_text(path, dumps(recipe))


_NEXT = re.compile(r"\s*[;+]\s*(?=[a-z][a-z0-9-]*\s*(?:[:@!;+]|$))")
_STEP = re.compile(
    r"^\s*(?P<name>[a-z][a-z0-9-]*)\s*(?::(?P<settings>[^@!]*))?"
    r"(?:@(?P<sites>[^!]*))?(?:!(?P<except>.*))?$"
)


def parse_inline(text: str) -> Recipe:
    """A recipe from one line: ``NAME[:key=value,...][@site,...][!site,...]; NAME ...``.

    ``+`` joins steps too. ``@`` says where a step acts, ``!`` where it does not:
    ``structured-pruning:share=0.5; static-int8:percentile=99.9@blocks.*!head``.
    Raises ``RecipeError`` for a malformed step, an unknown technique or setting.
    """
    steps: list[Step] = []
    for part in _NEXT.split(text.strip().rstrip(";")):
        m = _STEP.match(part)
        if m is None:
            raise RecipeError(f"malformed step {part!r}: write NAME:key=value,...@site,...")
        settings: dict[str, Any] = {}
        for pair in _commas(m["settings"] or ""):
            key, eq, value = pair.partition("=")
            if not eq or not key.strip():
                raise RecipeError(f"malformed setting {pair!r} in {part!r}: write key=value")
            if key.strip() in settings:
                raise RecipeError(f"setting {key.strip()!r} is given twice in {part!r}")
            try:
                settings[key.strip()] = yamlform.load(value)
            except yaml.YAMLError:
                raise RecipeError(f"cannot read the value of {pair!r} in {part!r}") from None
        steps.append(
            Step.model_validate(
                {
                    "technique": m["name"],
                    "settings": settings,
                    "sites": _commas(m["sites"] or "") or ["*"],
                    "except": _commas(m["except"] or ""),
                }
            )
        )
    recipe = Recipe(steps=steps)
    recipe.techniques()
    return recipe


def _commas(text: str) -> list[str]:
    """Split at commas outside brackets."""
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "[{(") - (c in ")}]")
        if c == "," and depth == 0:
            out.append(text[start:i])
            start = i + 1
    return [p.strip() for p in (*out, text[start:]) if p.strip()]


def _make(step: Step) -> Technique:
    from paredown import registry

    try:
        kind = registry.technique(step.technique)
        for settings in (step.settings, *step.overrides.values()):
            _typed(kind, settings)
            registry.make(step.technique, {**step.settings, **settings})
        made = registry.make(step.technique, step.settings)
    except UnknownName as e:
        raise RecipeError(str(e)) from None
    return made


def _typed(technique: type[Technique], settings: dict[str, Any]) -> None:
    """Refuse values of another type than a knob's: a word for a number, a name not offered."""
    from paredown.technique import Choice

    for knob in technique.knobs():
        if knob.name not in settings or settings[knob.name] is None:
            continue
        value, what = settings[knob.name], f"{technique.name}: {knob.name}"
        options = knob.space.options if isinstance(knob.space, Choice) else (knob.default,)
        numbers = all(isinstance(o, (int, float)) for o in options)
        if numbers and not isinstance(value, (int, float)):
            raise RecipeError(f"{what} is a number, got {value!r}")
        names = isinstance(knob.space, Choice) and all(isinstance(o, str) for o in options)
        if names and value not in options:
            raise RecipeError(f"{what} is one of {', '.join(options)}, got {value!r}")


def run(
    recipe: Recipe,
    workload: Workload,
    *,
    decisions: Sequence[Decisions | None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Applied:
    """Carry a recipe out on a copy of ``workload``; the caller's model is never changed.

    Steps run in stage order, each on a fresh capture of what the last one left. ``decisions``, one
    per step in that order, replays recorded ones without weights, data or search. Every step is
    seeded from ``recipe.seed`` and its name, so that a recipe run in two halves gives the same.
    Raises ``RecipeError`` for an unknown site or a conflict (`ordering`), ``NotApplicable`` when a
    step has nowhere to act.
    """
    from paredown import ordering
    from paredown.graph.capture import capture

    recipe = recipe.ordered()
    techniques = recipe.techniques()
    if decisions is not None and len(decisions) != len(techniques):
        raise RecipeError(f"{len(decisions)} recorded decisions for {len(techniques)} steps")
    teacher = workload.model if workload.original is None else workload.original
    current = replace(workload.copy(), original=teacher)
    changes: list[Change] = []
    for i, (step, technique) in enumerate(zip(recipe.steps, techniques, strict=True)):
        if progress is not None:
            progress(f"{technique.name} ({i + 1} of {len(techniques)})")
        nth = sum(s.technique == step.technique for s in recipe.steps[:i])
        foreign = technique.foreign(current)
        if foreign is not None:
            raise NotApplicable(f"{technique.name}: {foreign}")
        with seeded(recipe.seed, f"{step.technique}/{nth}"):
            found = technique.sites(current, capture(current))
            sites = found.only(step.sites, step.except_, step.overrides)
            earlier = list(zip(techniques, changes, strict=False))
            why = ordering.clash(earlier, technique, sites.ok)
            if why is not None:
                raise RecipeError(f"conflict: {why}")
            known = decisions[i] if decisions is not None else None
            if known is None:
                change = technique.apply(current, sites)
            elif not sites.ok:
                raise NotApplicable(f"{technique.name} has no site on {workload.name}")
            else:
                change = technique.rewrite(current, sites, known)
        change.technique = technique.name
        changes.append(change)
        current = change.workload
    return Applied(current, changes, recipe)


@contextlib.contextmanager
def seeded(seed: int, step: str = "") -> Generator[None]:
    """Seed torch, numpy and random for one step, and give the caller's states back afterwards."""
    import random

    import numpy as np
    import torch

    value = int(hashlib.sha256(f"{seed}/{step}".encode()).hexdigest()[:8], 16)
    state, np_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(np_state)
