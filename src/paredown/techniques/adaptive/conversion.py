"""Hard-to-easy conversion in front of a light network (CBNet; Mahmud et al. 2024,
arXiv:2403.07036).

An early exit makes a light network of a trained one: its trunk up to a head. What that network is
sure of, and right about, is easy. An autoencoder then learns to turn any image of a class, easy or
hard, into some easy image of that class, and stands in front: every input is converted, then
answered by the light network. The rest of the trunk is dropped, weights too.

Cost law: the autoencoder's matrix products and the trunk up to the head, the same for every input;
so no backend has to branch, and latency does not depend on how many inputs are hard.

Deviations: the light network's head is trained on a trunk that stays (the authors train trunk and
exit jointly, as BranchyNet); easy is the surer half of each class instead of below a fixed entropy,
so that every class has easy images; sizes of the autoencoder are a knob (the authors choose them by
data set); the penalty on activities is on the code in the middle. Limits: image classifiers with
class labels whose classes look much alike within (digits, garments); on natural images the
authors' follow-up reports that reconstruction fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.runtime.exits import Converter, ExitingModel, uncertainty
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Needs,
    Range,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.adaptive.cuts import (
    Cut,
    channels_of,
    cuts,
    nearest,
    not_a_classifier,
    pool_of,
)
from paredown.techniques.adaptive.early_exit import ROLE
from paredown.techniques.adaptive.heads import Logits, OneHead, config, stage, trained_head
from paredown.techniques.quantize.common import paths, site
from paredown.techniques.recover import Plan, train
from paredown.workload import TrainingData, Workload

HOOK = ("stages", "classes", "dtype", "measure", "converter")
"""What of the decisions the hook ``exits`` is told."""
IMAGES = 4096
"""Training images that are judged easy or hard, at most."""


@dataclass(frozen=True)
class HardToEasy(Rewrite):
    """An autoencoder makes inputs easy for the front part alone (CBNet, Mahmud et al. 2024)."""

    name: ClassVar[str] = "hard-to-easy"
    paper: ClassVar[str | None] = "cbnet"
    family: ClassVar[str] = "adaptive"
    stage: ClassVar[Stage] = Stage.ARCHITECTURE
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.STRUCTURE})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SHAPES, Lowers.TIME})
    # The search takes whatever trains for a recovery after cuts: this is for recipes.
    maturity: ClassVar[Any] = "study"

    after: Annotated[float, Choice(0.15, 0.3, 0.5), "share of the work before the exit"] = 0.3
    hidden: Annotated[int, Choice(32, 64, 128), "widest hidden layer of the autoencoder"] = 64
    code: Annotated[int, Choice(8, 16, 32), "values of the code in its middle"] = 16
    easy: Annotated[float, "share of each class's images that count as easy"] = 0.5
    penalty: Annotated[float, "weight of the code's mean absolute value"] = 1e-3
    steps: Annotated[int, Choice(300, 1000, 3000), "training steps of head and autoencoder"] = 1000
    lr: Annotated[float, Range(1e-4, 1e-2, log=True), "peak learning rate"] = 3e-3
    seed: Annotated[int, "order of the data and of the pairs"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 < self.after < 1 or not 0 < self.easy <= 1:
            raise InputError("after and easy must lie in (0, 1), easy may be 1")
        if self.hidden < 1 or self.code < 1 or self.penalty < 0:
            raise InputError("hidden and code must be at least 1, penalty at least 0")
        self._plan()

    def _plan(self) -> Plan:
        return Plan(self.steps, self.lr, temperature=1.0, task=1.0, decay=0.0, seed=self.seed)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Modules that the run can end at, ``path:exit``, where that leaves less work."""
        lack = self.missing(workload) or not_a_classifier(workload, graph)
        shape = _image(graph)
        found = cuts(graph)
        if isinstance(workload.model, ExitingModel):
            lack = "it has exits already"
        elif lack is None and shape is None:
            lack = "its input is not one batch of images"
        elif lack is None and not found:
            lack = "no module of its run makes all that the rest goes on with"
        if lack is not None or shape is None:
            return Sites((), {f":{ROLE}": lack or "its input is not one batch of images"})
        batch, total = graph.tensors[graph.inputs[0]].shape[0], graph.macs
        classes = graph.tensors[graph.outputs[0]].shape[1]
        own = 2 * batch * self.hidden * (math.prod(shape) + self.code)
        ok: list[str] = []
        refused: dict[str, str] = {}
        for c in found:
            head = batch * classes * channels_of(c.shape) * pool_of(c.shape) ** 2
            name = site(c.path, workload, ROLE)
            if c.share * total + own + head < total:
                ok.append(name)
            else:
                refused[name] = "with the autoencoder in front it would be as much work as before"
        return Sites(tuple(ok), refused)

    def _cut(self, workload: Workload, graph: Graph, sites: Sites) -> Cut:
        acting = {p for _, p in paths(workload, sites.ok)}
        found = [c for c in cuts(graph) if c.path in acting]
        if not found:
            raise NotApplicable(f"{self.name}: none of its sites is a cut of this run any more")
        return nearest(found, [self.after])[0]

    def _decisions(self, graph: Graph, cut: Cut) -> dict[str, Any]:
        logits = Logits.of(graph)
        shape = list(_image(graph) or ())
        front = {"shape": shape, "hidden": [self.hidden, self.code]}
        return {
            **config([stage(cut, 0.0, 0.0, always=True)], logits, converter=front),
            "unused": _unused(graph, cut.last),
        }

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train the head, tell easy from hard, train the autoencoder."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        graph = capture(workload)
        cut = self._cut(workload, graph, sites)
        values = self._decisions(graph, cut)
        head = trained_head(workload, cut, Logits.of(graph), data, self._plan())
        front = Converter(tuple(values["converter"]["shape"]), (self.hidden, self.code))
        pairs = self._pairs(head, data)
        with torch.enable_grad():
            trainer = _Trainer(front)
            done = train(trainer, None, TrainingData(pairs, self._loss), self._plan())
        tensors = {f"side_heads.0.{k}": t for k, t in head.tensors().items()}
        tensors |= {f"converter.{k}": t.detach().clone() for k, t in front.named_parameters()}
        return Decisions(
            values | {"easy": pairs.easy, "images": pairs.total, **done.values()}, tensors
        )

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same structure, nothing trained."""
        return Decisions(self._decisions(graph, self._cut(workload, graph, sites)))

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Put the autoencoder in front, end at the head, drop the weights that never run."""
        editor = Editor(workload)
        v = decisions.values
        editor.attach("", "exits", {k: x for k, x in v.items() if k in HOOK})
        for name, value in decisions.tensors.items():
            path, _, own = name.rpartition(".")
            editor.tensor(path, own, value)
        for path in v["unused"]:
            editor.swap(path, nn.Identity())
        at = v["stages"][0]["path"]
        touched = [s for s, p in paths(workload, sites.ok) if p == at]
        notes = [f"every run ends after {at}, behind an autoencoder"]
        if "easy" in v:
            notes.append(f"{v['easy']} of {v['images']} training images were easy")
        return editor.change(self, touched or sites.ok, decisions, notes=notes)

    def _pairs(self, head: OneHead, data: TrainingData) -> Pairs:
        """Every training image with the easy ones of its class; labels must be class indices."""
        torch.manual_seed(self.seed)
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for _ in range(2):
            for inputs, target in data.batches():
                y = target
                if not isinstance(y, Tensor) or y.is_floating_point() or y.ndim != 1:
                    raise NotApplicable(f"{self.name} needs class indices as training targets")
                images.append(inputs[0])
                labels.append(y)
        x, y = torch.cat(images)[:IMAGES], torch.cat(labels)[:IMAGES]
        with torch.inference_mode():
            logits = torch.cat([head(part) for part in x.split(128)])
        unsure = uncertainty(logits, "entropy") + 2.0 * (logits.argmax(-1) != y)
        easy = torch.zeros(len(y), dtype=torch.bool)
        for label in y.unique():
            own = (y == label).nonzero()[:, 0]
            count = max(1, round(self.easy * len(own)))
            easy[own[unsure[own].argsort()[:count]]] = True
        return Pairs(x, y, easy, self.seed)

    def _loss(self, out: tuple[Tensor, Tensor], wanted: Tensor) -> Tensor:
        """Squared error and the code's mean absolute value."""
        return F.mse_loss(out[0], wanted) + self.penalty * out[1].abs().mean()


class Pairs:
    """Batches of images and, for each, an easy image of its class drawn at random."""

    def __init__(self, x: Tensor, y: Tensor, easy: Tensor, seed: int, batch: int = 64) -> None:
        self.x, self.y, self.batch, self.seed = x, y, batch, seed
        self.of = {int(c): (easy & (y == c)).nonzero()[:, 0] for c in y.unique()}
        self.easy, self.total = int(easy.sum()), len(y)

    def __call__(self) -> Iterator[tuple[tuple[Tensor], Tensor]]:
        """One epoch, drawn from torch's global generator."""
        order = torch.randperm(len(self.y))
        for at in order.split(self.batch):
            pick = [self.of[int(c)] for c in self.y[at]]
            to = torch.stack([own[torch.randint(len(own), ())] for own in pick])
            yield (self.x[at],), self.x[to]


class _Trainer(nn.Module):
    """The autoencoder with its code as a second output."""

    def __init__(self, converter: Converter) -> None:
        super().__init__()
        self.converter = converter

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images and codes."""
        return self.converter.both(x)


def _image(graph: Graph) -> tuple[int, ...] | None:
    """``(channels, height, width)`` of the one float input of a run."""
    if len(graph.inputs) != 1:
        return None
    t = graph.tensors[graph.inputs[0]]
    return t.shape[1:] if len(t.shape) == 4 and "float" in t.dtype else None


def _unused(graph: Graph, last: int) -> list[str]:
    """The outermost modules that run after node ``last`` alone."""

    def around(path: str) -> list[str]:
        parts = path.split(".")
        return [".".join(parts[: i + 1]) for i in range(len(parts))]

    before = {p for n in graph.nodes[: last + 1] for p in around(n.module)}
    after = dict.fromkeys(n.module for n in graph.nodes[last + 1 :] if n.module)
    outermost = (next((p for p in around(path) if p not in before), None) for path in after)
    return sorted({p for p in outermost if p is not None})
