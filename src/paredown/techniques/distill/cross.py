"""Distillation across architectures: any student learns a transformer's features and logits.

ScaleKD (Fan, Li, Wang, Guo, Yao and Chen 2024, arXiv:2411.06786); official code deep-optimization/
ScaleKD. Cross-attention projectors turn two maps of the student into the teacher's grid of tokens;
each is compared in two views, as it is and without its mean over space (`frequency`); the earlier
map, projected, also runs through the teacher's frozen last stage, so that the teacher's own weights
shape what the student learns, and what comes out asks the last map (section 3.3). Logits are
distilled and labels learned besides, half and half. Only the student stays.

The teacher is ``training.teacher`` of the workload, else the network as it was given.
Deviations: differences are means over elements, so that weights do not depend on sizes (the paper
sums; its ratio of the two views is kept); class tokens that the last stage reads are the teacher's
own; AdamW under a cosine (`techniques.recover`). Cost law: inference costs nothing more; training
runs teacher, projectors and its last stage twice more per step. Limits: a teacher with a module
from features to features on one grid, a student with maps or a square grid of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.graph import Graph
from paredown.technique import Choice, Range, Sites
from paredown.techniques.companion import Companion
from paredown.techniques.distill.features import (
    first_tensor,
    last_stage,
    map_layouts,
    stage_layouts,
    student_maps,
)
from paredown.techniques.distill.frequency import apart, without_mean
from paredown.techniques.distill.projector import Projector
from paredown.techniques.distill.recover import SITE, Recover, teacher_of
from paredown.techniques.recover import Outcome, train
from paredown.workload import TrainingData, Workload, share

SECOND_VIEW = 0.75
"""Weight of the view without the mean, relative to the whole view's (0.06 over 0.08)."""


class Mimic(Companion):
    """Projectors for a student's two maps and the loss between them and a teacher's last stage."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        inputs: tuple[Any, ...],
        *,
        maps: tuple[str, str],
        stage: str,
        weight: float,
        views: int = 2,
        through: bool = True,
    ) -> None:
        super().__init__()
        self.weight, self.views, self.through = weight, views, through
        self.before, self.after = stage_layouts(teacher, stage, inputs)
        self.maps = map_layouts(student, maps, inputs)
        tokens = [w.grid[0] * w.grid[1] for w in (self.before, self.after)]
        ends = ((maps[0], self.before, tokens[0]), (maps[1], self.after, tokens[1]))
        self.projectors: Any = nn.ModuleList(
            nn.ModuleList(Projector(self.maps[p], n, to.width) for _ in range(views))
            for p, to, n in ends
        )
        # In a tuple: neither is the companion's own to train or save.
        self._frozen = (teacher, teacher.get_submodule(stage))
        self._student: dict[str, Tensor] = {}
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._wanted: Tensor | None = None
        self._watching = True
        for path in maps:
            student.get_submodule(path).register_forward_hook(self._note(path))
        self._frozen[1].register_forward_hook(self._teacher, with_kwargs=True)

    def _note(self, path: str) -> Any:
        def hook(_: nn.Module, _args: Any, out: Any) -> None:
            self._student[path] = first_tensor(out)

        return hook

    def _teacher(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if self._watching:
            self._call, self._wanted = (args, kwargs), first_tensor(out)

    def loss(self, student: nn.Module, inputs: tuple[Any, ...], target: Any, out: Any) -> Tensor:
        """Both maps in both views against the teacher's last features."""
        if self._wanted is None:  # the loop did not ask the teacher for logits
            with torch.no_grad():
                self._frozen[0](*inputs)
        assert self._wanted is not None
        wanted, (args, kwargs) = self._wanted, self._call
        self._wanted = None
        maps = [where.maps(self._student[p]).float() for p, where in self.maps.items()]
        terms: list[Tensor] = []
        for view in range(self.views):
            query = None
            if self.through:
                tokens = self.projectors[0][view](maps[0]).to(args[0].dtype)
                self._watching = False
                try:
                    ran = self._frozen[1](self.before.back(tokens, args[0]), *args[1:], **kwargs)
                finally:
                    self._watching = True
                ran = self.after.maps(first_tensor(ran)).float()
                terms.append(self._difference(view, ran, wanted))
                query = ran.flatten(2).transpose(1, 2)
            tokens = self.projectors[1][view](maps[1], query)
            grid = tokens.transpose(1, 2).unflatten(2, self.after.grid)
            terms.append(self._difference(view, grid, wanted))
        return self.weight * torch.stack(terms).sum()

    def _difference(self, view: int, ours: Tensor, wanted: Tensor) -> Tensor:
        ours, theirs = ours.float(), self.after.maps(wanted).float()
        if view == 0:
            return apart(ours, theirs)
        return SECOND_VIEW * apart(without_mean(ours), without_mean(theirs))


@dataclass(frozen=True)
class CrossDistillation(Recover):
    """Train towards another architecture's features through its own last stage (ScaleKD)."""

    name: ClassVar[str] = "cross-distillation"
    paper: ClassVar[str | None] = "scalekd"
    # The search's recovery is `recover`: this is for recipes, with a teacher of the user's.
    maturity: ClassVar[Any] = "study"

    temperature: Annotated[float, Choice(1.0, 2.0, 4.0), "softening of the outputs"] = 1.0
    mimic: Annotated[float, Range(0.01, 10.0, log=True), "weight of the features"] = 0.3
    views: Annotated[int, Choice(2, 1), "features as they are, and without their mean"] = 2
    through: Annotated[bool, "run projected features through the teacher's last stage"] = True
    teacher_stage: Annotated[str, "path of the teacher's last stage (empty: its last block)"] = ""
    maps: Annotated[str, "paths of the student's two maps, 'EARLIER,LAST' (empty: found)"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mimic <= 0 or self.views not in (1, 2):
            raise InputError("mimic must be positive and views 1 or 2")
        if self.maps and len(self.maps.split(",")) != 2:
            raise InputError(f"maps {self.maps!r}: two paths with a comma between them")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """All weights at once, where student and teacher have features to compare."""
        found = super().sites(workload, graph)
        if found.ok and workload.training is not None:
            try:
                teacher, student = _teacher(workload), workload.model
                inputs, maps, stage = self._places(student, teacher, workload.training)
                map_layouts(student, maps, inputs)
                stage_layouts(teacher, stage, inputs)
            except InputError as e:
                return Sites((), {SITE: str(e)})
        return found

    def _places(
        self, student: nn.Module, teacher: nn.Module, data: TrainingData
    ) -> tuple[tuple[Any, ...], tuple[str, str], str]:
        """A batch's inputs, the student's two maps, the teacher's stage; raises ``InputError``."""
        first = next(iter(data.batches()), None)
        if first is None:
            raise InputError("recovery got no batch: `training.batches()` yields nothing")
        early, _, last = self.maps.partition(",")
        maps = (early.strip(), last.strip()) if self.maps else student_maps(student, first[0])
        return first[0], maps, self.teacher_stage or last_stage(teacher, first[0])

    def _train(self, work: Workload, teacher: nn.Module | None, data: TrainingData) -> Outcome:
        """Recovery with projectors beside the student; of those nothing remains."""
        student, teacher = work.model, (teacher or _teacher(work)).eval()
        inputs, maps, stage = self._places(student, teacher, data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            beside = Mimic(
                student,
                teacher,
                inputs,
                maps=maps,
                stage=stage,
                weight=self.mimic,
                views=self.views,
                through=self.through,
            )
        return train(student, teacher, data, self._plan(), evaluate=work.evaluate, companion=beside)


def _teacher(workload: Workload) -> nn.Module:
    """The teacher; the network itself where nothing else is given."""
    return teacher_of(workload) or share(workload.model)
