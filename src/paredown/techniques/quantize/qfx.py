"""Trainable fixed point: the binary point of every tensor is learned with the weights (QFX).

Dai et al. 2024, "Trainable fixed-point quantization for deep learning acceleration on FPGAs",
arXiv:2401.17544. Widths are given, binary points are found by gradient descent through an emulation
of ``ap_fixed``: roundings and overflows as synthesis has them, batch norms and biases included.
``hot`` keeps a weight's nonzero digits few: a product then is that many shifts and one sum less.
`runtime.fixed_point.run_in_integers` runs the trained network in int64, bit for bit as emulated.

Deviations: a tensor is cast where the next layer reads it, so sums of branches and activations
between are exact; batch norms are frozen into a gain and an offset; few-digit weights are the
nearest of all with so few signed digits; inputs that calibration never saw negative carry no sign;
points start at the least squared error (``start=range``: so that nothing saturates) and move 30
times faster than weights; the loss is that of `techniques.recover`.
Cost law: weights take 2, 4 or 8 bits (16 values or fewer: 4). What the FPGA saves, wide multipliers
and float units, no backend here has: weights are unpacked in every run, so the saving is size
alone. Limits: linears, zero-padded convolutions, batch norms of images and volumes; an integer run
needs a network of these with sums, means of 2^n values, ReLU and max pooling between.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
from paredown.runtime.fixed_point import digits
from paredown.runtime.forms_fixed import FixedConv, FixedLinear, Numbers
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
from paredown.techniques.gradients import without_gradient
from paredown.techniques.quantize.common import FLOATS, Usage, gather, kind_of, matrix, paths
from paredown.techniques.quantize.fixed_training import Emulated, constants, is_norm, started
from paredown.techniques.quantize.observe import input_histograms
from paredown.techniques.recover import Plan, snapshot, train
from paredown.workload import Workload, share


@dataclass(frozen=True)
class QFX(Rewrite):
    """Fixed point with learned binary points, few-digit weights on request (Dai et al. 2024)."""

    name: ClassVar[str] = "qfx"
    paper: ClassVar[str | None] = "qfx"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING, Needs.CALIBRATION})
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE, Touches.WEIGHT_VALUES}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SIZE})
    # What it is for stands on an FPGA: here it is for recipes.
    maturity: ClassVar[Any] = "study"

    bits: Annotated[int, Choice(8, 6, 5, 4), "bits of an input and of a bias"] = 8
    weight_bits: Annotated[int, Choice(8, 4), "bits of a weight, and of a batch norm's gain"] = 8
    hot: Annotated[int, Choice(0, 1, 2), "nonzero digits of a weight at most (0: any)"] = 0
    learn: Annotated[bool, "binary points are learned, else they stay where they start"] = True
    start: Annotated[str, "where points start: error (least squares) or range (no overflow)"] = (
        "error"
    )
    rounding: Annotated[str, "round (halves up) or truncate (down)"] = "round"
    overflow: Annotated[str, "saturate or wrap"] = "saturate"
    steps: Annotated[int, Choice(100, 300, 1000), "training steps at most"] = 300
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak learning rate"] = 1e-3
    task: Annotated[float, Choice(0.0, 0.5, 1.0), "weight of the data's own loss"] = 0.5
    seed: Annotated[int, "order of data and dropout"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if self.start not in ("error", "range"):
            raise InputError(f"start {self.start!r}: one of error, range")
        _ = self._numbers().word
        self._plan()

    def _plan(self) -> Plan:
        # A decay would pull binary points towards whole numbers.
        return Plan(self.steps, self.lr, task=self.task, decay=0.0, seed=self.seed)

    def _numbers(self) -> Numbers:
        rounding: Any = self.rounding
        overflow: Any = self.overflow
        return Numbers(
            self.bits,
            weight_bits=self.weight_bits,
            hot=self.hot,
            rounding=rounding,
            overflow=overflow,
        )

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears, zero-padded convolutions and frozen batch norms, ``path:weight``."""
        usage = Usage(workload, graph)
        lack = self.missing(workload) or without_gradient(graph)

        def judge(path: str, module: Any) -> str | bool | None:
            if is_norm(module):
                why = _norm(module, usage)
            elif (kind := kind_of(module)) is None:
                return False
            elif kind not in ("linear", "conv"):
                why = "only linears, convolutions and batch norms have a fixed-point form"
            elif getattr(module, "padding_mode", "zeros") != "zeros":
                why = f"padding_mode {module.padding_mode!r} is not zero padding"
            else:
                why = usage.why_not(module)
            return why or (
                "the model is this layer alone: wrap it in a module" if not path else lack
            )

        return gather(workload, "weight", judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a copy; words, codes and whatever else was trained are the decision."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        at = paths(workload, sites.ok)
        seen = input_histograms(workload, [p for _, p in at])
        model = workload.own().model
        emulated: dict[str, Emulated] = {}
        for name, path in at:
            own, layer = self.at(sites, name), model.get_submodule(path)
            if seen[path].low > seen[path].high:
                raise InputError(f"{name}: no calibration input reaches it; leave the site out")
            numbers = started(layer, seen[path], own._numbers(), own.start)
            emulated[path] = Emulated(layer, numbers, own.learn)
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, emulated[path])
        values: dict[str, Any] = {"steps": 0, "ended": "no steps asked"}
        if self.steps:
            teacher = share(workload.model if workload.original is None else workload.original)
            done = train(model, teacher, data, self._plan(), evaluate=workload.evaluate)
            values = done.values()
        before = snapshot(workload.model)
        tensors = {
            f"state.{k}": v
            for k, v in snapshot(model).items()
            if k in before and not before[k].equal(v)
        }
        words: dict[str, Any] = {}
        for path, layer in emulated.items():
            numbers, codes, bias = layer.result()
            words[path] = asdict(numbers)
            tensors[f"{path}.codes"] = codes.short()
            if bias is not None:
                tensors[f"{path}.bias"] = bias
        return Decisions({**values, "words": words}, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Shapes follow from the widths."""
        words = {
            path: asdict(self.at(sites, name)._numbers())
            for name, path in paths(workload, sites.ok)
        }
        return Decisions({"steps": self.steps, "words": words})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Trained floats where they were, sites as fixed-point forms over their codes."""
        edit = Editor(workload)
        tensors = decisions.tensors
        for name, value in tensors.items():
            if name.startswith("state."):
                path, _, own = name.removeprefix("state.").rpartition(".")
                edit.tensor(path, own, value, tied=True)
        nonzero, count = 0, 0
        for _, path in paths(workload, sites.ok):
            new = fixed(edit.model.get_submodule(path), decisions.values["words"][path])
            codes = tensors.get(f"{path}.codes")
            if codes is not None:
                new.fill(codes)
                nonzero += int(digits(codes, new.numbers.weight_bits).abs().sum())
                count += codes.numel()
            if f"{path}.bias" in tensors:
                new.bias = nn.Parameter(tensors[f"{path}.bias"], requires_grad=False)
            edit.swap(path, new)
        v = decisions.values
        notes = [f"{nonzero / count:.2f} nonzero digits in a weight"] if count else []
        if "best_score" in v:
            notes.append(
                f"{v['steps']} steps, score {v['first_score']:.4g} -> {v['best_score']:.4g} "
                f"at step {v['best_step']}: {v['ended']}"
            )
        return edit.change(self, sites.ok, decisions, notes=notes)


def fixed(old: Any, words: dict[str, Any]) -> FixedLinear | FixedConv:
    """The form of a float layer, its codes and bias still to be filled in."""
    numbers = Numbers(**words)
    if is_norm(old):
        kernel, _ = constants(old)
        taps = kernel.ndim - 2
        geometry = ((1,) * taps, (0,) * taps, (1,) * taps, kernel.shape[0])
        return FixedConv(tuple(kernel.shape), *geometry, numbers, True, kernel.device)
    weight, biased = matrix(old), old.bias is not None
    if weight.ndim == 2:
        return FixedLinear(tuple(weight.shape), numbers, biased, weight.device)
    geometry = (old.stride, old.padding, old.dilation, old.groups)
    return FixedConv(tuple(weight.shape), *geometry, numbers, biased, weight.device)


def _norm(module: Any, usage: Usage) -> str | None:
    """Why a batch norm cannot be a gain and an offset, None when it can."""
    if module.running_mean is None or module.training:
        return "it normalises by its batch: no gain and offset of its own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it carries hooks, which a swap would lose"
    if module.running_mean.dtype not in FLOATS:
        return "its statistics are no floats"
    here = usage.paths[id(module)]
    if not any(usage.nodes[p] for p in here):
        return "it never ran on the example inputs"
    names = [n for p in module.parameters() for n in usage.tied(p)]
    other = next((n for n in names if n.rpartition(".")[0] not in here), None)
    return None if other is None else f"its parameters are shared with {other}"
