"""Systolic arrays: cycles, utilisation and traffic of each layer by what stays in the array.

Weight and output stationary: the folds of SCALE-Sim (Samajdar et al. 2020, ISPASS, equations 1 and
4): a product of (pixels, window) by (window, filters) is cut into tiles of rows x columns, and a
tile takes ``2 rows + columns + T - 2`` cycles, T being the dimension that streams. Row stationary:
Eyeriss (Chen et al. 2016), utilisation as DRACO (arXiv:2006.15103) takes it from nn-dataflow: a set
of kernel_h x out_h elements computes one pair of channels, sets are repeated over the array, pairs
of one group fill them; this is what depthwise layers cannot.

Time is the larger of cycles and traffic over bandwidth. Traffic: every tensor once, and where
neither weights nor inputs fit the buffer, the cheaper of the two read again for each part of the
other. Elementwise work is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from paredown.device.device import Array, Device
from paredown.errors import NotApplicable
from paredown.graph.graph import Graph, Node

ROW_FILTERS, ROW_CHANNELS = 16, 4
"""Filters that share an input and channels summed in one element, row stationary (Eyeriss: 16,
4)."""
PRODUCTS = frozenset(
    f"aten::{op}" for op in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "addmv", "mv")
)


@dataclass(frozen=True)
class Layer:
    """A convolution; a matrix product is one of 1 x 1 kernels on an image of one row.

    Channels are of one group.
    """

    name: str
    batch: int
    groups: int
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    out: tuple[int, int]
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        pairs = self.groups * self.inputs * self.outputs
        return self.batch * pairs * prod(self.kernel) * prod(self.out)


@dataclass(frozen=True)
class Moved:
    """What passes between two memories, by operand: bytes, or numbers where that is said."""

    weights: float
    inputs: float
    outputs: float

    @property
    def total(self) -> float:
        """All three."""
        return self.weights + self.inputs + self.outputs


@dataclass(frozen=True)
class Cost:
    """A layer on an array: compute cycles, the share of units at work, bytes, seconds."""

    layer: Layer
    cycles: int
    utilization: float
    traffic: int
    seconds: float


def layers(graph: Graph) -> list[Layer]:
    """Convolutions of up to two dimensions and matrix products of a graph, in order."""
    return [found for node in graph.nodes if node.macs and (found := _layer(graph, node))]


def left_out(graph: Graph) -> list[str]:
    """Operators with multiply-accumulates that no layer stands for (fused attention, say)."""
    return sorted({n.op for n in graph.nodes if n.macs and _layer(graph, n) is None})


def cycles(layer: Layer, array: Array) -> int:
    """Compute cycles of a layer by the array's dataflow."""
    if array.dataflow == "row":
        return _row(layer, array)
    pixels, window = layer.batch * prod(layer.out), layer.inputs * prod(layer.kernel)
    over, stream = (window, pixels) if array.dataflow == "weight" else (pixels, window)
    folds = ceil(over / array.rows) * ceil(layer.outputs / array.columns)
    return layer.groups * folds * (2 * array.rows + array.columns + stream - 2)


def cost(layer: Layer, device: Device) -> Cost:
    """A layer on a systolic device. Raises ``NotApplicable`` for a device without an array."""
    array = device.array
    if array is None:
        raise NotApplicable(f"{device.name} states no array: it is not a systolic device")
    spent = cycles(layer, array)
    moved = traffic(layer, device.levels[0].capacity_bytes)
    seconds = max(spent / array.clock_hz / device.count, moved / device.memory.read_bytes_s)
    share = layer.macs / (spent * array.rows * array.columns)
    return Cost(layer, spent, share, moved, seconds)


def costs(graph: Graph, device: Device) -> list[Cost]:
    """Every layer of a graph on a systolic device."""
    return [cost(layer, device) for layer in layers(graph)]


def mean_utilization(found: Sequence[Cost]) -> float:
    """The mean over layers, each counted once: what DRACO reports."""
    return sum(c.utilization for c in found) / len(found)


def traffic(layer: Layer, buffer: int) -> int:
    """Bytes from and to memory with a buffer of so many bytes."""
    return int(moved(layer, buffer).total)


def moved(layer: Layer, buffer: int) -> Moved:
    """Bytes from and to memory by operand: `traffic` in its parts."""
    weights, inputs = layer.weight_bytes, layer.input_bytes
    if min(weights, inputs) > buffer:
        weights_again = (ceil(inputs / buffer) - 1) * weights
        inputs_again = (ceil(weights / buffer) - 1) * inputs
        if weights_again <= inputs_again:
            weights += weights_again
        else:
            inputs += inputs_again
    return Moved(weights, inputs, layer.output_bytes)


def passed(layer: Layer, array: Array) -> Moved:
    """Numbers that pass between the buffer and the array, partial sums among the outputs.

    What streams is read again for each fold of the other side, and sums that a fold of the window
    leaves unfinished go out and come back. Row stationary: the reuse of Eyeriss's elements (filters
    that share an input, channels summed in one), along diagonals and rows of a kernel.
    """
    taps, (height, width) = prod(layer.kernel), layer.out
    pairs = layer.batch * layer.groups
    outputs = pairs * layer.outputs * height * width
    macs = layer.macs
    if array.dataflow == "row":
        along = min(height, array.columns * max(1, array.rows // layer.kernel[0]))
        inputs = macs / (taps * min(layer.outputs, ROW_FILTERS))
        sums = 2 * macs / (taps * min(layer.inputs, ROW_CHANNELS)) - outputs
        return Moved(macs / (width * along), inputs, max(sums, outputs))
    pixels, window = layer.batch * height * width, layer.inputs * taps
    streamed = layer.groups * pixels * window * ceil(layer.outputs / array.columns)
    weights = layer.groups * window * layer.outputs
    if array.dataflow == "output":
        return Moved(weights * ceil(pixels / array.rows), streamed, outputs)
    return Moved(weights, streamed, outputs * (2 * ceil(window / array.rows) - 1))


def _row(layer: Layer, array: Array) -> int:
    """Row stationary: folds of tall images lie beside each other where the array has the rows."""
    kernel, out = layer.kernel[0], layer.out[0]
    tall = ceil(kernel / array.rows)
    folds = ceil(out / array.columns)
    up, along = max(1, array.rows // kernel), max(1, array.columns // out)
    beside = min(up, folds)
    folds, up = ceil(folds / beside), up // beside
    passes = ceil(layer.inputs * layer.outputs / (up * along))
    each = layer.out[1] * layer.kernel[1]
    return layer.batch * layer.groups * passes * folds * tall * each


def _layer(graph: Graph, node: Node) -> Layer | None:
    if len(node.inputs) < 2 or not node.outputs:
        return None
    ins = [graph.tensors[t] for t in node.inputs]
    out = graph.tensors[node.outputs[0]]
    made = out.nbytes
    if "conv" in node.op:
        x, w = ins[0], ins[1]
        if len(w.shape) not in (3, 4) or len(out.shape) != len(w.shape) or "transpose" in node.op:
            return None
        groups = x.shape[1] // w.shape[1]
        kernel, shape = w.shape[2:], out.shape[2:]
        square = ((1, *kernel), (1, *shape)) if len(kernel) == 1 else (kernel, shape)
        return Layer(node.module or node.op, x.shape[0], groups, w.shape[1], w.shape[0] // groups,
                     (square[0][0], square[0][1]), (square[1][0], square[1][1]),
                     w.nbytes, x.nbytes, made)  # fmt: skip
    # A bias stands before the two matrices (addmm).
    x, w = ins[:2] if node.op not in ("aten::addmm", "aten::baddbmm") else ins[-2:]
    if node.op not in PRODUCTS or not out.shape or not node.macs:
        return None
    columns = out.shape[-1]
    rows = prod(out.shape) // columns
    window = node.macs // (rows * columns)
    # Products of a batch of matrices are groups: each has weights of its own.
    batch = prod(w.shape[:-2]) if len(w.shape) > 2 else 1
    if rows % batch or window * rows * columns != node.macs:
        return None
    return Layer(node.module or node.op, 1, batch, window, columns, (1, 1), (1, rows // batch),
                 w.nbytes, x.nbytes, made)  # fmt: skip
