"""The one door from a torch module to a compiled graph: `torch.export` over flat tensors.

Every backend that compiles ahead of time comes through here, so nested inputs, Hugging Face outputs
and caches are taken apart once. What was asked of the numbers (int8 weights here, bf16 there) is
read from the exported graph, module by module: `executed()` is later held against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from paredown.errors import CaptureError, InputError, NotApplicable
from paredown.runtime import tree
from paredown.runtime._quiet import quiet
from paredown.runtime.backend import Asked
from paredown.runtime.call import Call, describe
from paredown.workload import Workload

MATMULS = frozenset(
    {
        "aten.addmm.default",
        "aten.baddbmm.default",
        "aten.bmm.default",
        "aten.conv1d.default",
        "aten.conv2d.default",
        "aten.conv2d.padding",
        "aten.conv3d.default",
        "aten.conv_transpose2d.input",
        "aten.convolution.default",
        "aten.einsum.default",
        "aten.gru.input",
        "aten.linear.default",
        "aten.lstm.input",
        "aten.matmul.default",
        "aten.mm.default",
        "aten.scaled_dot_product_attention.default",
    }
)
"""Operators whose dtype is the precision a model computes in."""


class Flat(nn.Module):
    """A model as a function of a flat list of tensors to a flat tuple of tensors."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model; the nesting of its output is left in the call."""
        args, kwargs = self._call.arguments_of(leaves)
        out: list[torch.Tensor] = []
        self._call.output = tree.flatten(self.model(*args, **kwargs), out, self._call.classes)
        return tuple(out)


@dataclass
class Exported:
    """An exported workload: the program, its call, example tensors, and what each module asks."""

    program: torch.export.ExportedProgram
    call: Call
    examples: list[torch.Tensor]
    asked: dict[str, Asked] = field(default_factory=dict)
    results: list[torch.dtype] = field(default_factory=list)

    @property
    def dtypes(self) -> set[str]:
        """Dtypes that matrix products compute in, quantized ones by what they dequantize to."""
        return {a.dtype for a in self.asked.values() if a.product}


def export(workload: Workload) -> Exported:
    """Export a workload's forward on its example inputs (eval mode, no autograd).

    Raises ``InputError`` for inputs that are no tensors at heart and ``CaptureError`` with torch's
    own first line where the model cannot be exported (it branches on data).
    """
    if workload.run != "forward":
        raise NotApplicable(f"only `forward` runs can be exported, not {workload.run!r}")
    model = workload.copy().model.eval()
    call, leaves = describe(model, workload.inputs, workload.kwargs)
    if not leaves:
        raise InputError(f"{workload.name} has no tensor among its example inputs")
    examples = [t.detach() for t in leaves]
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(Flat(model, call).eval(), tuple(examples), strict=False)
    except InputError:
        raise
    except Exception as e:
        raise CaptureError(f"{workload.name} cannot be exported: {first_line(e)}") from e
    _drop_empty_parts(program)
    graph = program.graph_module.graph
    (given,) = next(n for n in graph.nodes if n.op == "output").args
    results = [n.meta["val"].dtype for n in given]  # type: ignore[union-attr]
    return Exported(program, call, examples, read_asked(graph), results)


def _drop_empty_parts(program: torch.export.ExportedProgram) -> None:
    """Take one-dimensional empty tensors out of concatenations.

    torch lets them pass beside any rank (an empty cache starts so), other runtimes do not.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if str(node.target) != "aten.cat.default":
            continue
        parts = list(node.args[0])  # type: ignore[arg-type]
        kept = [p for p in parts if p.meta["val"].shape != (0,)]
        if kept and len(kept) < len(parts):
            node.args = (kept, *node.args[1:])
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def read_asked(graph: torch.fx.Graph) -> dict[str, Asked]:
    """What each module asks, from what feeds its matrix products, else from its parameters."""
    asked: dict[str, Asked] = {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_function" and target in MATMULS:
            asked[module_of(node)] = _merge(asked.get(module_of(node)), _asked_by(node))
        elif target == "paredown.embedding_groups.default":
            held = "int4" if node.args[4] == 4 else "int8"
            asked[module_of(node)] = Asked(held, None, _dtype(node))
    for node in graph.nodes:
        if node.op == "call_function" and module_of(node) not in asked:
            held = [_dtype(a) for a in node.all_input_nodes if a.name.startswith("p_")]
            if held:
                asked[module_of(node)] = Asked(dtype=held[0], product=False)
    return asked


def module_of(node: torch.fx.Node) -> str:
    """Path of the innermost module a node came from, in the user's model ("" at its root)."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for where, _cls in stack.values():
        path = str(where)
    # `Flat` holds the user's model under `model`; repeated calls carry a `@1` mark.
    path = path.removeprefix("L['self'].").partition("@")[0]
    return path.removeprefix("model").removeprefix(".")


def first_line(e: BaseException) -> str:
    """The first line with content of an error, for one-line messages."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0] if lines else type(e).__name__


def _asked_by(node: torch.fx.Node) -> Asked:
    weight: str | None = None
    activation: str | None = None
    for arg in node.all_input_nodes:
        source = _through_views(arg)
        target = str(source.target)
        if target == "paredown.dequantize_groups.default":
            weight = "int4" if source.args[3] == 4 else "int8"
        elif target == "paredown.dequantize.default":
            made = _through_views(source.args[0])  # type: ignore[arg-type]
            if str(made.target) == "paredown.quantize.default":
                activation = "static"
            elif "dynamic_quantize" in str(made.target) or _from_dynamic(made):
                activation = "dynamic"
            else:
                weight = "int8"
    return Asked(weight, activation, _dtype(node))


def _from_dynamic(node: torch.fx.Node) -> bool:
    return any("dynamic_quantize" in str(n.target) for n in node.all_input_nodes)


def _through_views(node: torch.fx.Node) -> torch.fx.Node:
    """The node behind views, transposes and casts: what really made the values."""
    while (
        node.op == "call_function"
        and str(node.target).split(".")[1:2]
        and (
            str(node.target).split(".")[1]
            in {
                "t",
                "permute",
                "transpose",
                "view",
                "reshape",
                "_to_copy",
                "to",
                "contiguous",
                "unsqueeze",
                "squeeze",
                "expand",
                "clone",
            }
        )
    ):
        node = node.all_input_nodes[0]
    return node


def _dtype(node: torch.fx.Node) -> str:
    value: Any = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) else value
    return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else "float32"


def _merge(old: Asked | None, new: Asked) -> Asked:
    if old is None:
        return new
    return Asked(
        old.weight or new.weight,
        old.activation or new.activation,
        old.dtype if old.dtype != "float32" else new.dtype,
    )
