"""An array of processing elements with arithmetic units in them: cycles and memory of 1-D layers.

PulseDL-II (Ai et al. 2022, arXiv:2209.00884): arithmetic units inside processing elements inside an
array. Each element computes one output channel, its units take as many products of a window at
once. Deviation: how the paper overlaps loading and computing could not be looked up; a layer is
loaded while the one before computes, and ``fill`` cycles pass before the first result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from paredown.errors import InputError


@dataclass(frozen=True)
class ElementArray:
    """Elements, units in each, memories in bytes, cycles per second, cycles to the first result."""

    elements: int
    units: int
    weight_bytes: int
    feature_bytes: int
    clock_hz: float
    fill: int = 4

    def __post_init__(self) -> None:
        if min(self.elements, self.units, self.weight_bytes, self.feature_bytes) < 1:
            raise InputError("an array has elements, units and memories")
        if self.clock_hz <= 0 or self.fill < 0:
            raise InputError("an array has a clock, and fills in 0 cycles or more")


@dataclass(frozen=True)
class Layer1d:
    """A convolution over time; a dense layer has one output place. Numbers have ``bits``."""

    inputs: int
    outputs: int
    taps: int
    length: int
    stride: int = 1
    bits: int = 8

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.inputs * self.outputs * self.taps * self.length

    @property
    def weight_bytes(self) -> int:
        """Weights, and a 32-bit bias per output channel."""
        return ceil(self.inputs * self.outputs * self.taps * self.bits / 8) + 4 * self.outputs

    @property
    def feature_bytes(self) -> int:
        """Input and output, which lie in memory together."""
        before = (self.length - 1) * self.stride + self.taps
        return ceil((self.inputs * before + self.outputs * self.length) * self.bits / 8)


def cycles(layer: Layer1d, array: ElementArray) -> int:
    """ceil(outputs / elements) * ceil(taps * inputs / units) * length + fill."""
    rounds = ceil(layer.outputs / array.elements)
    return rounds * ceil(layer.taps * layer.inputs / array.units) * layer.length + array.fill


def counted_cycles(layer: Layer1d, array: ElementArray) -> int:
    """The same by going through the work cycle by cycle; every product is done once."""
    done, spent = 0, array.fill
    for first in range(0, layer.outputs, array.elements):
        busy = min(array.elements, layer.outputs - first)
        for _ in range(layer.length):
            for product in range(0, layer.taps * layer.inputs, array.units):
                done += busy * min(array.units, layer.taps * layer.inputs - product)
                spent += 1
    assert done == layer.macs
    return spent


@dataclass(frozen=True)
class Found:
    """A network on an array: seconds, share of unit-cycles at work, bytes over each memory."""

    seconds: float
    utilization: float
    cycles: int
    weights_over: int
    features_over: int

    @property
    def fits(self) -> bool:
        """Whether both memories hold what they must."""
        return self.weights_over <= 0 and self.features_over <= 0


def cost(layers: Sequence[Layer1d], array: ElementArray) -> Found:
    """Layers one after the other; all weights stay, features of one layer at a time."""
    spent = sum(cycles(x, array) for x in layers)
    share = sum(x.macs for x in layers) / (spent * array.elements * array.units)
    return Found(
        spent / array.clock_hz,
        share,
        spent,
        sum(x.weight_bytes for x in layers) - array.weight_bytes,
        max(x.feature_bytes for x in layers) - array.feature_bytes,
    )


def smallest(
    layers: Sequence[Layer1d], seconds: float, *, clock_hz: float, most: int = 4096
) -> ElementArray | None:
    """The fewest units in all that keep to a time, memories as large as needed; None beyond
    ``most``.
    """
    weights = sum(x.weight_bytes for x in layers)
    features = max(x.feature_bytes for x in layers)
    options = sorted(
        (elements * units, elements, units)
        for elements in (1, 2, 4, 8, 16, 32, 64)
        for units in (1, 2, 4, 8, 16, 32, 64)
        if elements * units <= most
    )
    for _, elements, units in options:
        array = ElementArray(elements, units, weights, features, clock_hz)
        if cost(layers, array).seconds <= seconds:
            return array
    return None
