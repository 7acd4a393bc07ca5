"""The hook ``exits``: a classifier that answers early, from heads beside its trunk.

BranchyNet (Teerapittayanon et al. 2016, arXiv:1709.01686): after some modules a small head looks at
what they made; inputs that it is sure of leave there with its answer, the others go on, in a
smaller batch. A stage that is sure ``always`` ends every run; then nothing depends on the input,
and a ``converter`` may stand in front (CBNet, Mahmud et al. 2024, arXiv:2403.07036).

The model keeps its modules and their names. What a run has answered so far is held in `Exits`,
which the root and the modules with a head share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.varying import branching, expected, shapes_alone
from paredown.runtime.forms import hook

MEASURES = ("entropy", "probability", "gap")
VARIES = "inputs that an early head is sure of leave there"


class SideHead(nn.Module):
    """Pooled features to logits: ``(batch, channels, h, w)`` or ``(batch, tokens, channels)``."""

    def __init__(
        self, channels: int, pool: int, classes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.pool, self.dtype = pool, dtype
        self.fc = nn.Linear(channels * pool * pool, classes, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` in the network's own dtype."""
        x = x.float()
        x = x.mean(1) if x.ndim == 3 else F.adaptive_avg_pool2d(x, self.pool).flatten(1)
        return self.fc(x).to(self.dtype)


class Converter(nn.Module):
    """An autoencoder over whole images: linears and ReLUs down to the middle size and up again."""

    def __init__(
        self, shape: tuple[int, ...], hidden: tuple[int, ...], device: torch.device | None = None
    ) -> None:
        super().__init__()
        sizes = [math.prod(shape), *hidden]
        sizes += sizes[-2::-1]
        self.shape, self.middle = tuple(shape), len(hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b, device=device) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *shape)`` to the same shape and dtype."""
        return self.both(x.float())[0].to(x.dtype)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The converted images and the code in the middle."""
        y, code = x.flatten(1), x
        for i, layer in enumerate(self.layers, 1):
            y = layer(y)
            if i < len(self.layers):
                y = F.relu(y)
            if i == self.middle:
                code = y
        return y.reshape(-1, *self.shape), code


def uncertainty(logits: Tensor, measure: str) -> Tensor:
    """``(batch,)``: normalised entropy, 1 - largest probability, or 1 - gap to the second."""
    p = logits.float().softmax(-1)
    if measure == "entropy":
        return torch.special.entr(p).sum(-1) / math.log(p.shape[-1])
    if measure == "probability":
        return 1 - p.amax(-1)
    top = p.topk(2, -1).values
    return 1 - (top[:, 0] - top[:, 1])


class _Answered(Exception):
    """Every input has its answer: the rest of the network is not run."""


@dataclass
class Stage:
    """One head: sure below ``threshold``, or ``always``; the share ``continues`` goes on."""

    threshold: float
    continues: float
    always: bool = False


@dataclass
class Exits:
    """The heads' stages and one run's answers. Plain data beside the modules, copied with them."""

    root: Any
    measure: str
    stages: list[Stage]
    rows: Tensor | None = None
    """Which inputs are still without an answer; None: all."""
    answers: list[tuple[Tensor | None, Tensor]] = field(default_factory=list)
    choices: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """What heads would answer and to whom, where there is no data to choose by."""
    sides: list[Tensor] = field(default_factory=list)
    """Heads' logits of the last run in training mode."""
    counts: list[list[int]] = field(default_factory=list)
    """Inputs seen and inputs answered by each stage since `count`."""
    batch: int = 0

    def count(self) -> None:
        """Start counting anew."""
        self.counts = [[0, 0] for _ in self.stages]

    def clear(self) -> None:
        """Forget the run."""
        self.rows, self.batch = None, 0
        self.answers, self.choices, self.sides = [], [], []

    def at(self, index: int, y: Tensor) -> Tensor:
        """What goes on after stage ``index``, of the features ``(inputs left, ...)``."""
        stage, logits = self.stages[index], self.root.side_heads[index](y)
        if stage.always:
            self._answer(None, logits, len(y))
            raise _Answered
        if self.root.training:
            self.sides.append(logits)
            return y
        sure = uncertainty(logits, self.measure) < stage.threshold
        if shapes_alone(y):
            self.choices.append((sure, logits))
            expected(stage.continues)
            return y
        known = int(sure.sum())
        if self.counts:
            self.counts[index][0] += len(y)
            self.counts[index][1] += known
        if known == 0:
            return y
        if known == len(y):
            self._answer(None, logits, len(y))
            raise _Answered
        left = ~sure
        self._answer(sure, logits[sure], len(y))
        rows = torch.arange(len(y), device=y.device) if self.rows is None else self.rows
        self.rows = rows[left]
        return y[left]

    def _answer(self, sure: Tensor | None, logits: Tensor, count: int) -> None:
        if not self.batch:
            self.batch = count
        rows = self.rows
        if sure is not None:
            rows = sure.nonzero()[:, 0] if rows is None else rows[sure]
        self.answers.append((rows, logits))

    def end(self, out: Tensor | None) -> Tensor:
        """The run's result: every input's answer in its place."""
        for sure, logits in reversed(self.choices):
            assert out is not None, "early answers are chosen over those of the end"
            out = torch.where(sure[:, None], logits, out)
        if not self.answers:
            assert out is not None, "a run without answers came to its end"
            return out
        if self.answers[0][0] is None:
            return self.answers[0][1]
        if out is not None:
            self.answers.append((self.rows, out))
        first = self.answers[0][1]
        whole = first.new_empty((self.batch, first.shape[1]))
        for rows, logits in self.answers:
            whole[rows] = logits
        return whole


class ExitingModel(nn.Module):
    """Mixed in before a classifier's own class."""

    exits: Exits

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Logits ``(batch, classes)``, each from the first head that is sure."""
        exits = self.exits
        exits.clear()
        converter = getattr(self, "converter", None)
        if converter is not None:
            args = (converter(args[0]), *args[1:])
        stack = _export_stack()
        depth = len(stack)
        with branching():
            try:
                out = super().forward(*args, **kwargs)
            except _Answered:
                out = None
                while len(stack) > depth:
                    stack.popitem()
        result = exits.end(out)
        sides = exits.sides
        exits.clear()
        exits.sides = sides
        return result


def _export_stack() -> Any:
    """The modules that torch's export believes to be in: it does not expect one to be left by an
    exception. Empty where nothing is exported.
    """
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode: Any = get_proxy_mode() if torch.compiler.is_exporting() else None
    return {} if mode is None else getattr(mode.tracer, "module_stack", {})


class _ExitingSequence(ExitingModel):
    """The same of an `nn.Sequential`, whose children are its steps: the heads are none."""

    def __iter__(self) -> Any:
        return (m for name, m in self._modules.items() if name not in ("side_heads", "converter"))


class HeadedModule(nn.Module):
    """Mixed in before a module's own class: a head looks at its result."""

    headed: tuple[Exits, int]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's result, of the inputs that go on."""
        exits, index = self.headed
        return exits.at(index, super().forward(*args, **kwargs))


@cache
def _mixed(mixin: type[nn.Module], cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"{mixin.__name__.removeprefix('_')}{cls.__name__}", (mixin, cls), {})


@hook
def exits(module: nn.Module, config: dict[str, Any]) -> None:
    """Put heads on a classifier.

    ``config``: ``measure``; ``classes`` and ``dtype`` of its logits; ``stages`` in the order they
    run, each with the ``path`` of its module, ``channels`` and ``pool`` of its head, ``threshold``,
    ``continues``, ``always``; ``converter``: None, or the ``shape`` and ``hidden`` sizes of the
    autoencoder in front.
    """
    if isinstance(module, ExitingModel):
        raise InputError("the network has exits already")
    stages = config["stages"]
    root: Any = module
    shared = Exits(
        root,
        config["measure"],
        [Stage(s["threshold"], s["continues"], s["always"]) for s in stages],
    )
    for index, stage in enumerate(stages):
        at: Any = module.get_submodule(stage["path"])
        at.__class__ = _mixed(HeadedModule, type(at))
        at.headed = (shared, index)
    classes = int(config["classes"])
    dtype: torch.dtype = getattr(torch, config["dtype"])
    device = next(module.parameters()).device
    root.side_heads = nn.ModuleList(
        SideHead(s["channels"], s["pool"], classes, dtype, device) for s in stages
    )
    if config["converter"] is not None:
        shape, hidden = config["converter"]["shape"], config["converter"]["hidden"]
        root.converter = Converter(tuple(shape), tuple(hidden), device)
    root.exits = shared
    for new in (root.side_heads, getattr(root, "converter", None)):
        if new is not None:
            new.train(module.training)
    mixin = _ExitingSequence if isinstance(module, nn.Sequential) else ExitingModel
    root.__class__ = _mixed(mixin, type(root))
    if not all(s["always"] for s in stages):
        root.varies = VARIES
