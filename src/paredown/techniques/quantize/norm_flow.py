"""Which layer norms feed linears alone, read from a captured run.

Such a norm's affine map may be scaled and shifted by channel when the linears undo it: the scale
reparameterisation of RepQ-ViT (Li et al. 2023, arXiv:2212.08254, section 3.2). Between norm and
linear may stand what neither mixes channels nor adds: views, choices of rows, their means.
"""

# torch keeps a module's tables private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from paredown.graph.graph import Graph, Node
from paredown.techniques.quantize.common import FLOATS, Usage, kind_of
from paredown.workload import Workload

_KEEP = frozenset(
    f"aten::{name}"
    for name in (
        *("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "contiguous"),
        *("clone", "detach", "alias", "roll", "_to_copy", "index_select"),
    )
)
"""Operators that leave channels where they are as long as the last dimension keeps its size."""
_ALONG = {f"aten::{name}": 1 for name in ("select", "slice", "mean", "split", "unbind")}
"""Operators that do where their dimensions (this argument) are others than the last."""
_PRODUCTS = frozenset(f"aten::{name}" for name in ("addmm", "mm", "linear", "matmul", "bmm"))


@dataclass(frozen=True)
class Fed:
    """A norm's linears, in the order they run; ``shift`` says whether it has a bias to move."""

    linears: tuple[str, ...]
    shift: bool


def norms(workload: Workload, graph: Graph, linears: Collection[str]) -> dict[str, Fed | str]:
    """Path of each layer norm -> the linears that it alone feeds, or why it cannot be folded.

    Only ``linears`` count: a norm that another layer reads too is not folded.
    """
    usage = Usage(workload, graph)
    readers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for t in dict.fromkeys(node.inputs):
            readers.setdefault(t, []).append(node)
    out: dict[str, Fed | str] = {}
    for path, module in workload.model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            out[path] = _fed(path, module, usage, readers, linears)
    return out


def _fed(
    path: str,
    norm: nn.LayerNorm | nn.RMSNorm,
    usage: Usage,
    readers: dict[int, list[Node]],
    linears: Collection[str],
) -> Fed | str:
    why = _fixed(norm, usage)
    nodes = [n for n in usage.nodes[path] if not n.view]
    heads = [n for n in nodes if n.op in ("aten::native_layer_norm", "aten::rsqrt")]
    if why is not None or len(heads) != 1:
        return why or f"it runs {len(heads)} times"
    graph, model = usage.graph, usage.model
    last = nodes[-1]
    columns = norm.normalized_shape[-1]
    found: dict[str, None] = {}
    todo = [last.outputs[0]]
    while todo:
        t = todo.pop()
        if t in graph.outputs:
            return "its result is an output of the model"
        for node in readers.get(t, ()):
            module = model.get_submodule(node.module)
            if kind_of(module) == "linear" and node.op in _PRODUCTS:
                if node.module not in linears:
                    return f"{node.module} reads it too and stays as it is"
                found[node.module] = None
            elif _keeps(node, graph, columns):
                todo += node.outputs
            else:
                where = node.module or "the model's own code"
                return f"{node.op.partition('::')[2]} in {where} reads it too"
    if not found:
        return "no linear layer reads it"
    return Fed(tuple(found), getattr(norm, "bias", None) is not None)


def _fixed(norm: nn.Module, usage: Usage) -> str | None:
    """Why the norm's own parameters cannot be replaced, or None."""
    if type(norm).forward not in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        return f"{type(norm).__name__} has its own forward"
    weight = norm._parameters.get("weight")
    if weight is None or weight.dtype not in FLOATS or weight.ndim != 1:
        return "it has no weight for each channel"
    if norm._forward_hooks or norm._forward_pre_hooks:
        return "it carries hooks, which may read what it makes"
    for parameter in norm.parameters(recurse=False):
        if len(usage.tied(parameter)) > 1:
            return "it shares its parameters"
    return None


def _keeps(node: Node, graph: Graph, columns: int) -> bool:
    """Whether an operator leaves channels in the last dimension, unmixed."""
    if not all(graph.tensors[t].shape[-1:] == (columns,) for t in node.outputs):
        return False
    if node.op in _KEEP:
        return True
    rank = len(graph.tensors[node.inputs[0]].shape)
    if node.op == "aten::permute":
        return node.args[1][-1] % rank == rank - 1
    if node.op == "aten::transpose":
        return rank - 1 not in (node.args[1] % rank, node.args[2] % rank)
    if node.op in _ALONG:
        at = 2 if node.op == "aten::split" else _ALONG[node.op]
        dims = node.args[at] if len(node.args) > at else 0
        each = dims if isinstance(dims, (list, tuple)) else [dims]
        return all(d is not None and d % rank != rank - 1 for d in each)
    return False
