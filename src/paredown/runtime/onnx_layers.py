"""An ONNX file taken apart: a skeleton of operators, and a module for each layer with weights.

The modules hold weights as torch parameters at paths made from the nodes' names, so that numeric
techniques find, decide and rewrite them as they do a torch model's layers: swapped for the same
forms, recorded and replayed by the same edits. `onnx_render` puts the file together again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

OPSET = 13
"""The first operator set whose DequantizeLinear takes one scale per channel."""


class OnnxLayer(nn.Module):
    """A node of the file with weights of its own. Called, it gives its input back.

    Only the ONNX runtime computes with it; a call stands for a look at its input, which hooks take.
    ``refusal`` says why no technique may act on it; it then holds no weights.
    """

    kind: ClassVar[Literal["conv", "linear"]]
    refusal: str | None = None
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor | None, bias: Tensor | None, refusal: str | None) -> None:
        super().__init__()
        self.weight = None if weight is None else _frozen(weight)
        self.bias = None if bias is None else _frozen(bias)
        self.refusal = refusal

    def forward(self, input: Tensor) -> Tensor:
        """The input, unchanged."""
        return input


class OnnxConv(OnnxLayer):
    """A ``Conv``: ``weight`` is ``(out, in / groups, *kernel)``; geometry as the node has it."""

    kind: ClassVar[Literal["conv", "linear"]] = "conv"

    def __init__(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        refusal: str | None,
        geometry: dict[str, Any],
    ) -> None:
        super().__init__(weight, bias, refusal)
        spatial = 2 if weight is None else weight.ndim - 2
        self.stride = tuple(geometry.get("strides", [1] * spatial))
        self.dilation = tuple(geometry.get("dilations", [1] * spatial))
        self.groups = int(geometry.get("group", 1))
        # What a form records; the node keeps its own pads, which may differ at either end.
        self.padding = tuple(geometry.get("pads", [0] * spatial)[:spatial])


class OnnxLinear(OnnxLayer):
    """A ``MatMul`` or ``Gemm`` by a constant matrix: ``weight`` is ``(out, in)`` as in torch."""

    kind: ClassVar[Literal["conv", "linear"]] = "linear"


@dataclass
class Apart:
    """The skeleton (a ``ModelProto`` without the layers' weights) and the layers by path.

    Every node of the skeleton is named by its path; ``names`` are the file's own, as far as it
    names a node at all.
    """

    skeleton: Any
    layers: dict[str, OnnxLayer]
    names: dict[str, str]


def take_apart(model: Any) -> Apart:
    """Split a checked model; ``model`` itself is left as it is, its tensors shared where it can be.

    A layer whose weight is not its own (shared, overridable from outside, used in a subgraph), not
    float32, or in an operator set without per-channel scales, is there with its ``refusal``.
    """
    import onnx

    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(_newer(model))
    graph = skeleton.graph
    _constants_as_initializers(graph)
    names = name_nodes(graph)
    weights = _Weights(graph, _opset(skeleton))
    layers: dict[str, OnnxLayer] = {}
    for node in graph.node:
        layer = weights.layer(node)
        if layer is not None:
            layers[node.name] = layer
    kept = [i for i in graph.initializer if i.name not in weights.taken]
    # Old files list initializers among the inputs as well; the list must not name what is gone.
    given = [v for v in graph.input if v.name not in weights.taken]
    nodes = [n for n in graph.node if n.name not in weights.dropped]
    for part, left in ((graph.initializer, kept), (graph.input, given), (graph.node, nodes)):
        copies = [_copied(x) for x in left]
        del part[:]
        part.extend(copies)
    return Apart(skeleton, layers, names)


def install(root: nn.Module, layers: dict[str, OnnxLayer]) -> None:
    """Put layers at their dotted paths below a module, with plain containers in between."""
    for path, layer in layers.items():
        *parents, leaf = path.split(".")
        at = root
        for name in parents:
            if name not in dict(at.named_children()):
                at.add_module(name, nn.Module())
            at = at.get_submodule(name)
        at.add_module(leaf, layer)


def name_nodes(graph: Any) -> dict[str, str]:
    """Name every node by a dotted path that can be a module's: unique, no method's name in it.

    Returns the path of each name there was.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    inner: set[str] = set()
    for i, node in enumerate(graph.node):
        parts = [p for p in re.split(r"[/.]+", node.name) if p] or [f"{node.op_type}_{i}"]
        parts = [_segment(p) for p in parts]
        path = ".".join(parts)
        # No path may be the parent of another: a layer has no layers inside.
        while path in taken or path in inner or any(p in taken for p in _parents(path)):
            path = f"{path.replace('.', '_')}_{i}" if "." in path else f"{path}_{i}"
        taken.add(path)
        inner.update(_parents(path))
        if node.name:
            names[node.name] = path
        node.name = path
    return names


_ROOT = nn.Module()


def _segment(text: str) -> str:
    text = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return f"{text}_" if hasattr(_ROOT, text) or text in RESERVED else text


RESERVED = frozenset(
    {"path", "skeleton", "precision", "takes", "gives", "input_names", "made_up", "own_backend"}
)
"""Attributes of the module that holds the layers."""


def _parents(path: str) -> Iterator[str]:
    parts = path.split(".")
    for n in range(1, len(parts)):
        yield ".".join(parts[:n])


def _constants_as_initializers(graph: Any) -> None:
    """Constant nodes that hold a tensor become initializers of the same name."""
    rest: list[Any] = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or value is None:
            rest.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    nodes = [_copied(n) for n in rest]
    del graph.node[:]
    graph.node.extend(nodes)


def _newer(model: Any) -> Any:
    """The model in an operator set with scales per channel, as it is where it cannot be converted.

    Only what techniques rewrite is converted: the original runs from its file.
    """
    from onnx import version_converter

    if _opset(model) >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    # The converter raises bare RuntimeErrors for operators it has no rule for, ValueErrors above
    # 2 GB; its layers then say that the operator set is too old.
    except (RuntimeError, ValueError):
        return model


def _copied(proto: Any) -> Any:
    new = type(proto)()
    new.CopyFrom(proto)
    return new


class _Weights:
    """Which initializers belong to one layer alone."""

    def __init__(self, graph: Any, opset: int) -> None:
        self.opset = opset
        self.taken: set[str] = set()
        self.dropped: set[str] = set()
        """Nodes that turned a weight, which its layer now holds turned."""
        self.tensors = {i.name: i for i in graph.initializer}
        self.made = {o: n for n in graph.node for o in n.output}
        self.uses = Counter(name for n in graph.node for name in n.input)
        self.outside = {o.name for o in graph.output} | {v.name for v in graph.input}
        for node in graph.node:
            for attribute in node.attribute:
                for sub in (attribute.g, *attribute.graphs):
                    self.outside |= _names_in(sub)

    def layer(self, node: Any) -> OnnxLayer | None:
        """The layer of a node, None for one without a constant weight."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in _READERS:
            return None
        return _READERS[node.op_type](self, node)

    def conv(self, node: Any) -> OnnxLayer | None:
        tensor = self.tensors.get(node.input[1])
        if tensor is None:
            return None
        why = self._why_not(tensor) or self._no_bias(node)
        geometry = _attributes(node)
        if why:
            return OnnxConv(None, None, why, geometry)
        return OnnxConv(self._take(node, 1), self._take(node, 2), None, geometry)

    def product(self, node: Any) -> OnnxLayer | None:
        """``MatMul`` by a matrix, as it stands or behind a transpose of its own."""
        name, turned = node.input[1], False
        behind = self.made.get(name)
        if behind is not None and self._turns(behind):
            name, turned = behind.input[0], True
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.dims) != 2:
            return None
        why = self._why_not(tensor)
        if why:
            return OnnxLinear(None, None, why)
        if behind is not None:
            node.input[1] = name
            self.dropped.add(behind.name)
        weight = self._take(node, 1)
        assert weight is not None
        return OnnxLinear(weight if turned else weight.t(), None, None)

    def gemm(self, node: Any) -> OnnxLayer | None:
        tensor = self.tensors.get(node.input[1])
        if tensor is None or len(tensor.dims) != 2:
            return None
        settings = _attributes(node)
        why = self._why_not(tensor)
        if (
            settings.get("transA", 0)
            or settings.get("alpha", 1.0) != 1
            or settings.get("beta", 1.0) != 1
        ):
            why = why or "a Gemm with alpha, beta or a transposed input is no plain linear layer"
        if why:
            return OnnxLinear(None, None, why)
        weight, rows = self._take(node, 1), tensor.dims[0 if settings.get("transB", 0) else 1]
        assert weight is not None
        bias = self.tensors.get(node.input[2]) if len(node.input) > 2 else None
        own = bias is not None and list(bias.dims) == [rows] and not self._why_not(bias)
        return OnnxLinear(
            weight if settings.get("transB", 0) else weight.t(),
            self._take(node, 2) if own else None,
            None,
        )

    def _turns(self, node: Any) -> bool:
        """Whether a node does nothing but transpose a matrix for one product."""
        perm = _attributes(node).get("perm", [1, 0])
        own = self.uses[node.output[0]] == 1 and node.output[0] not in self.outside
        return node.op_type == "Transpose" and list(perm) == [1, 0] and own

    def _no_bias(self, node: Any) -> str | None:
        if len(node.input) < 3 or not node.input[2]:
            return None
        bias = self.tensors.get(node.input[2])
        return "its bias is computed by the model" if bias is None else self._why_not(bias)

    def _why_not(self, tensor: Any) -> str | None:
        from onnx import TensorProto

        if tensor.data_type != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            return f"its weight is {kind}, not float32"
        if tensor.name in self.outside:
            return "its weight is used outside of it: by a subgraph, or as an input or output"
        if self.uses[tensor.name] != 1:
            return f"its weight is shared by {self.uses[tensor.name]} nodes"
        if self.opset < OPSET:
            return (
                f"the file's operator set {self.opset} has no scales per channel: export it with "
                f"opset {OPSET} or newer"
            )
        return None

    def _take(self, node: Any, index: int) -> Tensor | None:
        """The tensor of an input that only this layer reads, which it then holds itself."""
        from onnx import numpy_helper

        if len(node.input) <= index or not node.input[index]:
            return None
        tensor = self.tensors[node.input[index]]
        self.taken.add(tensor.name)
        node.input[index] = f"{node.name}.{'weight' if index == 1 else 'bias'}"
        return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


_READERS = {"Conv": _Weights.conv, "MatMul": _Weights.product, "Gemm": _Weights.gemm}


def _names_in(graph: Any) -> set[str]:
    """Every name that a subgraph reads, those of its own values included."""
    found: set[str] = {o.name for o in graph.output}
    for node in graph.node:
        found.update(node.input)
        for attribute in node.attribute:
            for sub in (attribute.g, *attribute.graphs):
                found |= _names_in(sub)
    return found


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _opset(model: Any) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
