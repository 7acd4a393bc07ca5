"""How a backend executes a captured graph: what it fuses, folds, and runs in integers.

Eager runs every node as it stands. Compiled backends fuse pointwise operators into the producer of
their first operand: such a node reads only its other operands, has no call overhead, and its result
is written by that producer instead of the producer's own. onnxruntime, OpenVINO and our native
runtime also run a product whose factors both come out of `paredown::dequantize` in integers, fold
dequantized weights into them, and read packed weights as packed. Eager and inductor do so in the
modules of `torch_packed`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from paredown.cost.tables import COMPILED, INTEGER
from paredown.cost.torch_packed import TORCH, packed_modules
from paredown.graph import rules
from paredown.graph.graph import Graph, Node, Tensor

PRODUCTS = frozenset({"conv", "depthwise", "linear", "matmul"})
_DEQUANTIZE = frozenset({"paredown::dequantize", "paredown::dequantize_groups"})
_FUSED_NORMS = ("native_batch_norm", "batch_norm", "_native_batch_norm_legit_no_training")
WEIGHTS = frozenset({"parameter", "buffer", "constant"})


@dataclass(frozen=True, slots=True)
class Run:
    """One node as executed: dtype of its arithmetic, bytes moved, whether it is a call of
    its own.
    """

    node: Node
    kind: str
    dtype: str
    weight_bytes: int
    read: int
    written: int
    called: bool = True
    folded: bool = False
    """Done once at compile time: no work and no bytes per run."""


def plan(graph: Graph, backend: str, unrealised: frozenset[str] = frozenset()) -> list[Run]:
    """Every work node as ``backend`` executes it, in order; views are left out.

    Nothing in or under the modules ``unrealised`` runs in integers or is folded into what does.
    """
    producers = graph.producers()
    uses = Counter(t for node in graph.nodes for t in set(node.inputs))
    packed = packed_modules(graph) if backend in TORCH else frozenset[str]()
    runs: list[Run] = []
    at: dict[int, int] = {}
    for node in graph.work_nodes():
        integers = backend in INTEGER or node.module in packed
        integers = integers and not _within(node.module, unrealised)
        run = _run(node, graph, producers, backend, integers)
        fused = None if run.called or run.folded else _through_views(node, producers)
        if fused is not None and fused[1].index in at:
            tensor, producer = fused
            host = at[producer.index]
            # The host writes this result instead of its own, or as well where that is still used.
            spared = _size(graph, tensor) if uses[tensor] == 1 else 0
            written = max(runs[host].written - spared, 0) + node.bytes_written
            runs[host] = replace(runs[host], written=written)
            at[node.index] = host
        else:
            at[node.index] = len(runs)
        runs.append(run)
    return runs


def _through_views(node: Node, producers: dict[int, Node]) -> tuple[int, Node] | None:
    """The tensor that a fused node continues and the operator behind it."""
    made = [t for t in node.inputs if t in producers]
    if not made:
        return None
    tensor, producer = made[0], producers[made[0]]
    while producer.view and producer.inputs and producer.inputs[0] in producers:
        tensor, producer = producer.inputs[0], producers[producer.inputs[0]]
    return tensor, producer


def _within(module: str, paths: frozenset[str]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in paths)


def _run(node: Node, graph: Graph, producers: dict[int, Node], backend: str, integers: bool) -> Run:
    kind = kind_of(node, graph)
    dtype = _dtype(node, graph)
    weights = sum(_size(graph, t) for t in set(node.inputs) if _is_weight(graph, t))
    weights = min(weights, node.bytes_read)
    plain = Run(node, kind, dtype, weights, node.bytes_read - weights, node.bytes_written)
    if integers and node.op in _DEQUANTIZE:
        # Weights are folded into the product; an activation's scale is applied inside it.
        return Run(node, kind, dtype, 0, 0, 0, called=False, folded=True)
    if integers and kind in PRODUCTS:
        return _integer(plain, graph, producers)
    if backend in COMPILED and _fuses(node, kind):
        made = [t for t in node.inputs if t in producers]
        if made:
            rest = sum(_size(graph, t) for t in made[1:])
            return Run(node, kind, dtype, weights, rest, 0, called=False)
    return plain


def _fuses(node: Node, kind: str) -> bool:
    return kind == "elementwise" or node.op.partition("::")[2] in _FUSED_NORMS


def _integer(run: Run, graph: Graph, producers: dict[int, Node]) -> Run:
    """A product with dequantized factors: integers on both sides, or packed weights alone."""
    factors = [graph.tensors[t] for t in run.node.inputs if len(graph.tensors[t].shape) > 1][-2:]
    sources = [dequantized_from(t.id, producers) for t in factors]
    weight_bytes, read = run.weight_bytes, run.read
    for factor, source in zip(factors, sources, strict=True):
        if source is None:
            continue
        packed = graph.tensors[source.inputs[0]]
        if _is_weight(graph, packed.id):
            scales = sum(graph.tensors[t].nbytes for t in source.inputs[1:])
            weight_bytes += packed.nbytes + scales
            read -= 0 if _is_weight(graph, factor.id) else factor.nbytes
        else:
            read -= factor.nbytes - packed.nbytes
    both = len(sources) == 2 and all(s is not None for s in sources)
    dtype = "int8" if both else run.dtype
    return Run(run.node, run.kind, dtype, weight_bytes, max(read, 0), run.written)


def dequantized_from(tensor: int, producers: dict[int, Node]) -> Node | None:
    """The dequantize node behind a tensor, looking through views; None when there is none."""
    node = producers.get(tensor)
    while node is not None and node.view and node.inputs:
        node = producers.get(node.inputs[0])
    return node if node is not None and node.op in _DEQUANTIZE else None


def kind_of(node: Node, graph: Graph) -> str:
    """The family of a node; a convolution with one input channel per group is ``depthwise``."""
    kind = rules.kind(node.op)
    if kind == "conv" and len(node.inputs) > 1:
        shapes = [graph.tensors[t].shape for t in node.inputs]
        weight = next(
            (s for s in reversed(shapes[: 4 if "backward" in node.op else 2]) if len(s) > 2), ()
        )
        if len(weight) > 2 and weight[1] == 1 and weight[0] > 1 and shapes[0][1:2] != (1,):
            return "depthwise"
    return kind


def _dtype(node: Node, graph: Graph) -> str:
    """The type its arithmetic runs in: that of the first floating (else integer) tensor."""
    tensors = [graph.tensors[t] for t in (*node.inputs, *node.outputs)]
    floats = [t.dtype for t in tensors if "float" in t.dtype or "complex" in t.dtype]
    quantized = [t.dtype for t in tensors if t.dtype in ("int8", "qint8", "quint8")]
    if quantized and rules.kind(node.op) in ("conv", "linear", "matmul", "recurrent"):
        both = node.op.startswith(("quantized::", "onednn::", "aten::_int_mm", "aten::quantized"))
        return "int8" if both else floats[0] if floats else "int8"
    # Popcounts of words multiply signs at about the rate of 8-bit integers.
    if node.op.endswith("_dynamic") or node.op.startswith("paredown::binary_"):
        return "int8"
    return floats[0] if floats else tensors[0].dtype if tensors else "float32"


def _size(graph: Graph, tensor: int) -> int:
    t: Tensor = graph.tensors[tensor]
    return min(t.nbytes, graph.storages[t.storage].nbytes)


def _is_weight(graph: Graph, tensor: int) -> bool:
    """Whether a tensor is a weight or a view of one: its storage was there before the run."""
    return graph.storages[graph.tensors[tensor].storage].kind in WEIGHTS
