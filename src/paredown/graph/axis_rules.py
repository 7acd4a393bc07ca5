"""How each operator ties the axes of its tensors: the table behind the dependency groups.

A rule reads axes of the inputs from a `Tracker` and sets those of the outputs. An operator without
a rule freezes every atom it touches, with its name as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from paredown.graph.axes import Axis, Conflict, freeze
from paredown.graph.axes import unify as _unify
from paredown.graph.graph import Graph, Node, Ref

HEAD_DIM = "head dimension: attention scales by its size"

Rule = Callable[["Tracker", Node], None]
RULES: dict[str, Rule] = {}


class Tracker:
    """Axes of every tensor of a graph, made on first sight and refined by the rules."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.axes: dict[int, list[Axis]] = {}
        self.weightlike: set[int] = set()
        self.caches: set[int] = set()
        """Tensors that attention reads as keys or values: a cache of them is no fixed output."""
        self.normed: set[int] = set()
        """Ids of axes that a layer normalisation runs over."""

    def of(self, tensor: int) -> list[Axis]:
        """The axes of a tensor; a tensor from before the run gets fresh ones."""
        if tensor not in self.axes:
            t = self.graph.tensors[tensor]
            why = {"input": "model input", "constant": "made with a fixed size"}.get(t.kind)
            if t.kind == "intermediate":
                why = "made by an operator that was not recorded"
            self.axes[tensor] = [Axis(n, frozen=why if n > 1 else None) for n in t.shape]
            if t.kind in ("parameter", "buffer"):
                self.weightlike.add(tensor)
        return self.axes[tensor]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The recorded shape of a tensor."""
        return self.graph.tensors[tensor].shape

    def put(self, tensor: int, axes: list[Axis]) -> None:
        """Set a tensor's axes; raises ``Conflict`` when they do not have its shape."""
        if tuple(a.size for a in axes) != self.shape(tensor):
            raise Conflict(
                f"rule gave {[a.size for a in axes]}, the run {list(self.shape(tensor))}"
            )
        self.axes[tensor] = axes

    def fixed(self, size: int, why: str) -> Axis:
        """A fresh axis that may not be cut."""
        return Axis(size, frozen=why)


def walk(tracker: Tracker) -> None:
    """Run every rule in order; conflicts and unknown operators freeze what they touch."""
    for node in tracker.graph.nodes:
        name = node.op.rpartition("::")[2].rstrip("_")
        if name.startswith("_") and name not in RULES and name.lstrip("_") in RULES:
            name = name.lstrip("_")
        rule = RULES.get(name) if node.op.startswith("aten::") else RULES.get(node.op)
        where = f" at {node.line}" if node.line else ""
        if rule is None:
            _give_up(tracker, node, f"{node.op}{where} has no dependency rule")
            continue
        try:
            rule(tracker, node)
            if any(t not in tracker.axes for t in node.outputs):
                raise Conflict("an output was left without axes")
        except (Conflict, IndexError, TypeError, AttributeError) as e:
            _give_up(tracker, node, f"{node.op}{where}: {e}")
            continue
        if node.inputs and all(i in tracker.weightlike for i in node.inputs):
            tracker.weightlike.update(node.outputs)


def _give_up(tracker: Tracker, node: Node, reason: str) -> None:
    for t in node.inputs:
        for a in tracker.of(t):
            freeze(a, reason)
    for t in node.outputs:
        tracker.axes[t] = [tracker.fixed(n, reason) for n in tracker.shape(t)]


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operator names (``aten`` left out)."""

    def add(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, f))
        return f

    return add


def arg(node: Node, i: int, name: str, default: Any = None) -> Any:
    """A positional or keyword argument of a node."""
    if i < len(node.args):
        return node.args[i]
    return node.kwargs.get(name, default)


def tid(value: Any) -> int:
    """The tensor id of an argument that must be a tensor."""
    if not isinstance(value, Ref):
        raise Conflict("expected a tensor argument")
    return value.tensor


def unify(a: Axis, b: Axis) -> None:
    """Unify two axes; on a conflict both are frozen and the walk goes on."""
    try:
        _unify(a, b)
    except Conflict as e:
        freeze(a, str(e))
        freeze(b, str(e))


def dims_of(dim: Any, ndim: int) -> list[int]:
    """Dimension arguments as a list of positive indices; none given means all."""
    if dim is None or dim == []:
        return list(range(ndim))
    return [d % ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


_WORDS = re.compile(r"\w+")
POINTWISE = frozenset(
    _WORDS.findall(
        """
    abs acos acosh add addcdiv addcmul alias angle asin atan atan2 bernoulli bitwise_and
    bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clone contiguous copy
    cos cosh detach div dropout elu eq erf erfc erfinv exp exp2 expm1 feature_dropout fill floor
    floor_divide fmax fmin fmod frac ge gelu gt hardsigmoid hardswish hardtanh isfinite isinf
    isnan le leaky_relu lerp lift lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid
    logaddexp logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum mish
    mul nan_to_num ne neg ones_like pow rand_like randn_like real reciprocal relu relu6
    remainder round rrelu rsqrt rsub selu sigmoid sign silu sin sinh softplus softshrink
    softsign sqrt square sub subtract multiply divide tan tanh threshold to to_copy true_divide
    trunc type_as where xlogy zero zeros_like empty_like full_like prelu_kernel
    fake_quantize_per_tensor_affine native_dropout expand_as
        """
    )
)


@rule(*POINTWISE)
def pointwise(tr: Tracker, n: Node) -> None:
    """Broadcast all tensors; axes larger than 1 that meet are one."""
    for out in n.outputs:
        shape = tr.shape(out)
        axes: list[Axis] = [Axis(1) for _ in shape]
        for t in n.inputs:
            for k, a in enumerate(reversed(tr.of(t))):
                j = len(shape) - 1 - k
                if a.size == 1 or j < 0:
                    continue
                if axes[j].size == 1:
                    axes[j] = a
                else:
                    unify(axes[j], a)
        tr.put(out, [a if a.size == s else Axis(s) for a, s in zip(axes, shape, strict=True)])


@rule("fake_quantize_per_channel_affine")
def _per_channel(tr: Tracker, n: Node) -> None:
    x, axis = tid(n.args[0]), int(arg(n, 3, "axis"))
    for i in (1, 2):
        unify(tr.of(tid(n.args[i]))[0], tr.of(x)[axis])
    tr.put(n.outputs[0], list(tr.of(x)))


@rule("_prelu_kernel", "prelu")
def _prelu(tr: Tracker, n: Node) -> None:
    x, w = tid(n.args[0]), tid(n.args[1])
    wide = [a for a in tr.of(w) if a.size > 1]
    if wide:
        unify(wide[0], tr.of(x)[1])
    tr.put(n.outputs[0], list(tr.of(x)))
