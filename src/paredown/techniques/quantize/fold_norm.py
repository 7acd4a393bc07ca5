"""Fold batch normalisation into the layer before it (Krishnamoorthi 2018, arXiv:1806.08342).

In eval mode a batch norm is an affine map per channel, so ``norm(conv(x))`` is one convolution with
weight ``W g / sigma`` and bias ``(b - mu) g / sigma + beta``. Which norm follows which convolution
is read from the captured run, never from names or registration order: the norm's input is made by
the convolution, nothing else reads it, and both run once.

Cost law: one read and one write of the activation less per norm; nothing where a backend folds too.
Deviation: none in eval; training-time folding with batch statistics (section 3.2.2) is
in the claim card's own training, `papers/cards/_qat.py`.
"""

# torch keeps its modules' tables and base classes private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from paredown.editing import Editor
from paredown.graph.graph import Graph, Node
from paredown.technique import Change, Decisions, Lowers, Rewrite, Sites, Stage, Touches
from paredown.techniques.quantize.common import FLOATS, Usage, gather, kind_of, paths
from paredown.workload import Workload


@dataclass(frozen=True)
class FoldNorm(Rewrite):
    """Batch norm folded into the (transposed) convolution or linear that feeds it; exact."""

    name: ClassVar[str] = "fold-norm"
    paper: ClassVar[str | None] = "quant-whitepaper"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.FOLD
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_VALUES, Touches.STRUCTURE})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.TIME})
    maturity: ClassVar[Any] = "stable"

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """One site per batch norm, ``bn.path:norm``."""
        flow = _Flow(workload, graph)

        def judge(path: str, module: nn.Module) -> str | bool | None:
            if not isinstance(module, _BatchNorm):
                return False
            found = flow.feeder(path, module)
            return found if isinstance(found, _Refusal) else None

        return gather(workload, "norm", judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Which convolution each norm goes into, from a fresh capture."""
        from paredown.graph.capture import capture

        return self.assume(workload, capture(workload), sites)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same, from a graph at hand: folding needs no values to be planned."""
        flow = _Flow(workload, graph)
        into: dict[str, str] = {}
        for _, path in paths(workload, sites.ok):
            found = flow.feeder(path, workload.model.get_submodule(path))
            if not isinstance(found, _Refusal):
                into[path] = found
        return Decisions({"into": into})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """New weight and bias in the convolution; the norm becomes the identity."""
        edit = Editor(workload)
        for norm_path, path in decisions.values["into"].items():
            module: Any = edit.model.get_submodule(path)
            weight, bias = folded(module, edit.model.get_submodule(norm_path))
            edit.tensor(path, "weight", weight)
            edit.tensor(path, "bias", bias)
            edit.swap(norm_path, nn.Identity())
        return edit.change(self, sites.ok, decisions)


def folded(module: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution or linear that equals ``norm(module(x))`` in eval mode.

    Computed in float64 and rounded once to the module's dtype.
    """
    w = module.weight.detach()
    mean, var = norm.running_mean.double(), norm.running_var.double()
    gain = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    bias = -mean if module.bias is None else module.bias.detach().double() - mean
    bias = bias * gain
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    wide = w.double()
    if isinstance(module, _ConvTransposeNd):
        # A transposed weight is (in, out / groups, ...): output channels repeat within each group.
        split = wide.reshape(module.groups, -1, *w.shape[1:])
        per = gain.reshape(module.groups, 1, -1, *([1] * (w.ndim - 2)))
        scaled = (split * per).reshape(w.shape)
    else:
        scaled = wide * gain.reshape([-1] + [1] * (w.ndim - 1))
    return scaled.to(w.dtype), bias.to(w.dtype)


class _Refusal(str):
    """A reason, told apart from a path."""


class _Flow:
    """The dataflow around batch norms in a captured run."""

    def __init__(self, workload: Workload, graph: Graph) -> None:
        self.model, self.graph = workload.model, graph
        self.usage = Usage(workload, graph)
        self.made = graph.producers()
        self.read: dict[int, list[Node]] = {}
        for node in graph.nodes:
            for t in dict.fromkeys(node.inputs):
                self.read.setdefault(t, []).append(node)

    def feeder(self, path: str, norm: nn.Module) -> str | _Refusal:
        """Path of the only module that feeds a norm and nothing else, or why there is none."""
        why = _unfoldable(norm)
        if why:
            return _Refusal(why)
        calls = [n for n in self.usage.nodes[path] if not n.view and "batch_norm" in n.op]
        if len(calls) != 1:
            seen = "never ran" if not calls else f"ran {len(calls)} times"
            return _Refusal(f"it {seen} in one run of the example inputs")
        value = calls[0].inputs[0]
        source = self.made.get(value)
        if source is None:
            return _Refusal("its input is an input of the model")
        module = self.model.get_submodule(source.module)
        kind = kind_of(module)
        if kind == "linear" and len(self.graph.tensors[value].shape) != 2:
            return _Refusal(f"it normalises another axis than {source.module}'s features")
        if kind not in ("conv", "linear", "conv_transpose") or source.view:
            return _Refusal(f"its input comes from {source.op} in {source.module or 'the model'}")
        if len([n for n in self.usage.nodes[source.module] if not n.view and not _cheap(n)]) != 1:
            return _Refusal(f"{source.module} runs more than once")
        if len(self.read[value]) != 1 or value in self.graph.outputs:
            return _Refusal(f"the output of {source.module} is also used elsewhere")
        why = self.usage.why_not(module)
        return _Refusal(f"{source.module}: {why}") if why else source.module


def _cheap(node: Node) -> bool:
    """Bookkeeping inside a convolution or linear call that is not its own product."""
    return not any(w in node.op for w in ("conv", "mm", "linear", "matmul"))


def _unfoldable(norm: nn.Module) -> str | None:
    if norm._buffers.get("running_mean") is None:
        return "it keeps no running statistics"
    if type(norm).forward is not _BatchNorm.forward:
        return f"{type(norm).__name__} has its own forward"
    if norm._forward_hooks or norm._forward_pre_hooks:
        return "it carries hooks, which folding would lose"
    mean: Any = norm.running_mean
    if mean.dtype not in FLOATS:
        return f"its statistics are {mean.dtype}"
    return None
