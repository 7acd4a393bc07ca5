"""The one plug-in idea: a technique, a frozen dataclass.

Its fields are at once its knobs, its recipe keys and its search space.

A technique acts in three steps, so that pricing and replay need neither weights nor search:

- ``sites`` says where it can act and where not, and why;
- ``decide`` looks at weights and data and returns plain decisions (indices, ranks, scales);
  ``assume`` returns decisions of the same *shape* from shapes alone;
- ``rewrite`` carries decisions out. ``apply`` is decide + rewrite, ``preview`` is assume + rewrite
  on the fake copy that the graph was captured from, a replay is rewrite with recorded decisions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch

from paredown.errors import InputError, NotApplicable, RecipeError
from paredown.graph.graph import Graph
from paredown.workload import Workload


class Needs(Enum):
    """What a technique must be given beside the model."""

    CALIBRATION = "calibration"
    TRAINING = "training"
    EVALUATE = "evaluate"


class Touches(Enum):
    """What a technique changes: two that touch the same thing at the same site conflict."""

    WEIGHT_DTYPE = "weight_dtype"
    WEIGHT_SHAPE = "weight_shape"
    WEIGHT_VALUES = "weight_values"
    ACTIVATION_DTYPE = "activation_dtype"
    STRUCTURE = "structure"
    ATTENTION = "attention"
    CACHE = "cache"
    SAMPLER_STEP = "sampler_step"
    EXIT = "exit"
    TRAIN_STEP = "train_step"
    PLACEMENT = "placement"
    DATA = "data"
    SCHEDULE = "schedule"


class Stage(IntEnum):
    """The order in which techniques are applied."""

    ARCHITECTURE = 0
    STRUCTURE = 1
    SPARSITY = 2
    RANK = 3
    RECOVERY = 4
    FOLD = 5
    PRECISION = 6
    NUMERIC = 7
    RUN = 8


class Lowers(Enum):
    """What a change claims to save; an executable confirms it or the saving is `simulated`.

    ``SIZE`` is the size on disk alone: in memory and in time nothing changes. ``MEMORY`` is what a
    run allocates at most, beside the weights.
    """

    BYTES = "bytes"
    SIZE = "size"
    SHAPES = "shapes"
    TIME = "time"
    MEMORY = "memory"


@dataclass(frozen=True)
class Choice:
    """A knob with a few settings: ``Annotated[float, Choice(0.25, 0.5), "share cut"]``."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)


@dataclass(frozen=True)
class Range:
    """A numeric knob from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Knob:
    """One field of a technique as the recipe, the command line and the search see it."""

    name: str
    type: type
    default: Any
    space: Choice | Range | None
    help: str


@dataclass(frozen=True)
class Sites:
    """Where a technique acts. ``ok`` are site names ``module.path:role`` of the *original* model.

    ``refused`` maps a site to the reason; ``overrides`` maps a site to settings that differ there.
    """

    ok: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    def only(
        self,
        patterns: Iterable[str] = ("*",),
        except_: Iterable[str] = (),
        overrides: Mapping[str, dict[str, Any]] | None = None,
    ) -> Sites:
        """The sites whose name or module path matches a pattern and no exception.

        Raises ``RecipeError`` for a pattern or override that names no site at all.
        """
        known = (*self.ok, *self.refused)
        keep = list(self.ok)
        patterns, except_ = tuple(patterns), tuple(except_)
        for pattern in (*patterns, *except_, *(overrides or ())):
            if pattern != "*" and not any(matches(s, pattern) for s in known):
                raise RecipeError(f"no site matches {pattern!r}; sites are named like {known[:3]}")
        keep = [
            s
            for s in self.ok
            if any(matches(s, p) for p in patterns) and not any(matches(s, p) for p in except_)
        ]
        at = {s: o for s in keep for p, o in (overrides or {}).items() if matches(s, p)}
        return Sites(tuple(keep), dict(self.refused), {**self.overrides, **at})


def matches(site: str, pattern: str) -> bool:
    """Whether a pattern names a site: by its whole name, its path, or a parent path."""
    path = site.partition(":")[0]
    return (
        fnmatchcase(site, pattern)
        or fnmatchcase(path, pattern)
        or (not any(c in pattern for c in "*?[:") and path.startswith(pattern + "."))
    )


@dataclass(frozen=True)
class Decisions:
    """What a technique resolved: JSON-able ``values`` and ``tensors``, both enough for a replay."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Edit:
    """One structural step of a change, replayable without running any code of the artefact.

    ``op`` is one of: ``swap`` (module at ``path`` becomes form ``cls`` built from ``config``),
    ``tensor`` (parameter or buffer ``name`` of the module gets ``shape`` and ``dtype``, or is
    removed when ``shape`` is None), ``tie`` (the tensor ``name`` becomes the one that ``value``
    names), ``attr`` (an existing plain attribute ``name`` is set to ``value``),
    ``attach`` (a hook of the closed list ``cls`` with ``config`` is put on the module).
    """

    op: Literal["swap", "tensor", "tie", "attr", "attach"]
    path: str
    name: str = ""
    cls: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    value: Any = None


@dataclass
class Change:
    """What a rewrite did: the new workload, the decisions behind it, what it claims to lower."""

    workload: Workload
    edits: list[Edit]
    decisions: Decisions
    lowers: frozenset[Lowers]
    touched: dict[str, frozenset[Touches]]
    """Original site -> what was touched there."""
    renames: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Original module path -> paths it lives at after this change."""
    notes: list[str] = field(default_factory=list)
    technique: str = ""
    """Name of the technique that made the change."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its knobs."""


@dataclass
class GraphEdit:
    """What a technique would change: the graph afterwards, priced like any other."""

    graph: Graph
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Technique:
    """Root of every technique. Subclass one of the five kinds, not this."""

    name: ClassVar[str] = ""
    kind: ClassVar[str] = "technique"
    paper: ClassVar[str | None] = None
    family: ClassVar[str] = ""
    stage: ClassVar[Stage]
    needs: ClassVar[frozenset[Needs]] = frozenset()
    touches: ClassVar[frozenset[Touches]] = frozenset()
    lowers: ClassVar[frozenset[Lowers]] = frozenset()
    maturity: ClassVar[Literal["stable", "trial", "study"]] = "trial"
    onnx: ClassVar[bool] = False
    """Whether it acts on the layers of an ONNX file too; all others need a torch module."""

    @classmethod
    def knobs(cls) -> list[Knob]:
        """The fields with their defaults, search space and help."""
        hints = get_type_hints(cls, include_extras=True)
        out: list[Knob] = []
        for f in dataclasses.fields(cls):
            hint, space, help_ = hints[f.name], None, ""
            if get_origin(hint) is Annotated:
                base, *meta = get_args(hint)
                space = next((m for m in meta if isinstance(m, (Choice, Range))), None)
                help_ = next((m for m in meta if isinstance(m, str)), "")
            else:
                base = hint
            out.append(Knob(f.name, base, f.default, space, help_))
        return out

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Settings a search tries, by label: the default, and each `Choice` knob varied alone.

        A technique whose knobs are many or cost alike overrides this with a short list of its own.
        """
        out: dict[str, dict[str, Any]] = {"on": {}}
        for knob in cls.knobs():
            if isinstance(knob.space, Choice):
                for value in knob.space.options:
                    if value != knob.default:
                        out[f"{knob.name}={value}"] = {knob.name: value}
        return out

    def settings(self) -> dict[str, Any]:
        """The knobs' values, as a recipe holds them."""
        return dataclasses.asdict(self)

    def at(self, sites: Sites, site: str) -> Self:
        """The same technique with the settings that hold at one site."""
        over = sites.overrides.get(site)
        return dataclasses.replace(self, **over) if over else self

    def missing(self, workload: Workload) -> str | None:
        """What the workload lacks for this technique, in one line, or None."""
        why = self.foreign(workload)
        if why is not None:
            return why
        given = workload.calibration
        if Needs.CALIBRATION in self.needs and given is not None and len(given) == 0:
            return f"{self.name} needs calibration data; the workload's is empty"
        if Needs.TRAINING in self.needs and workload.training is None:
            return (
                f"{self.name} needs training data: give the workload `training=TrainingData(...)`"
            )
        if Needs.EVALUATE in self.needs and workload.evaluate is None:
            return f"{self.name} needs `evaluate`"
        return None

    def foreign(self, workload: Workload) -> str | None:
        """Why this cannot act on what a workload holds at all, in one line, or None."""
        from paredown.runtime.onnx_model import needs_torch

        return None if self.onnx else needs_torch(workload)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Where this can act on the workload, and where not and why."""
        raise NotApplicable(f"{self.name} names no sites")

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Look at weights and data; return everything `rewrite` needs beyond shapes."""
        return Decisions()

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Decisions of the same shapes from shapes alone; for wherever `decide` reads weights."""
        return self.decide(workload, sites)

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Carry decisions out on a copy of the workload, real or fake; must not read data."""
        raise NotApplicable(f"{self.name} rewrites nothing")

    def apply(self, workload: Workload, sites: Sites) -> Change:
        """Decide and rewrite. Raises ``NotApplicable`` when there is no site to act on."""
        lack = self.missing(workload)
        if lack:
            raise InputError(lack)
        if not sites.ok:
            first = next(iter(sites.refused.items()), None)
            why = f": {first[0]}: {first[1]}" if first else ""
            raise NotApplicable(f"{self.name} has no site on {workload.name}{why}")
        return self.rewrite(workload, sites, self.decide(workload, sites))

    def preview(self, graph: Graph, sites: Sites) -> GraphEdit:
        """The graph after this technique, without weights."""
        from paredown.graph.capture import capture, fake

        if graph.source is None:
            raise NotApplicable("a graph read from a file: capture the workload to preview it")
        with fake(graph.source):
            change = self.rewrite(graph.source, sites, self.assume(graph.source, graph, sites))
        return GraphEdit(capture(change.workload, already_fake=True), change.notes)


class Rewrite(Technique):
    """Changes the model into a cheaper model."""

    kind: ClassVar[str] = "rewrite"


class Policy(Technique):
    """Installs run-time hooks from a closed list that a backend says it honours or not."""

    kind: ClassVar[str] = "policy"
    stage: ClassVar[Stage] = Stage.RUN
    hooks: ClassVar[frozenset[Literal["attention", "cache", "sampler_step", "exit"]]] = frozenset()


class Plan(Technique):
    """Changes `train_step` into one that fits."""

    kind: ClassVar[str] = "plan"
    stage: ClassVar[Stage] = Stage.RUN


class Partition(Technique):
    """Places named stages of the model on devices with links."""

    kind: ClassVar[str] = "partition"
    stage: ClassVar[Stage] = Stage.RUN


class Selection(Technique):
    """Keeps less of the data."""

    kind: ClassVar[str] = "selection"
    stage: ClassVar[Stage] = Stage.ARCHITECTURE
