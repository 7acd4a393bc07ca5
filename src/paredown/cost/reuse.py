"""Data reuse of layers on an array, and networks changed to have more of it.

DRACO (Jha et al. 2020, arXiv:2006.15103): depthwise layers leave a systolic array idle, since each
input channel meets one filter; group convolutions of more channels per group fill it, at more
multiply-accumulates. Energy per access: Eyeriss (Chen et al. 2016, ISCA, table IV), in units of one
multiply-accumulate: register file 1, neighbour 2, global buffer 6, memory 200.

Deviations: what an access of the array costs is taken per multiply-accumulate (operands and partial
sum from registers, one transfer to a neighbour), per number that passes between buffer and array
(`systolic.passed`) and per number between memory and buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paredown.cost.systolic import Cost, Layer, cost, mean_utilization, passed
from paredown.device.device import Device
from paredown.errors import InputError

REGISTER, NEIGHBOUR, BUFFER, MEMORY = 1.0, 2.0, 6.0, 200.0
WORD = 2
"""Bytes of a number in the array."""


@dataclass(frozen=True)
class Summary:
    """A network on an array: mean utilisation over layers, cycles, time, energy in MACs, work."""

    utilization: float
    cycles: int
    seconds: float
    energy: float
    macs: int
    weight_bytes: int


def reuse(layer: Layer) -> tuple[float, float]:
    """Multiply-accumulates per weight, and per value read or made."""
    weights = layer.groups * layer.inputs * layer.outputs * layer.kernel[0] * layer.kernel[1]
    values = (layer.input_bytes + layer.output_bytes) * weights / layer.weight_bytes
    return layer.macs / weights, layer.macs / values


def depthwise(layer: Layer) -> bool:
    """Whether each channel of a layer meets one filter."""
    return layer.groups > 1 and layer.inputs == layer.outputs == 1


def widened(layers: Sequence[Layer], channels: int) -> list[Layer]:
    """The same layers with depthwise ones made of groups of so many channels each.

    A layer whose channels ``channels`` does not divide takes the largest divisor below it; 1
    changes nothing.
    """
    if channels < 1:
        raise InputError(f"a group has at least one channel, got {channels}")
    return [_grouped(layer, channels) if depthwise(layer) else layer for layer in layers]


def summary(layers: Sequence[Layer], device: Device) -> Summary:
    """What layers take on a systolic device."""
    found = [cost(layer, device) for layer in layers]
    energy = sum(energy_of(c, device) for c in found)
    return Summary(
        mean_utilization(found),
        sum(c.cycles for c in found),
        sum(c.seconds for c in found),
        energy,
        sum(layer.macs for layer in layers),
        sum(layer.weight_bytes for layer in layers),
    )


def energy_of(found: Cost, device: Device) -> float:
    """Energy of a layer on a systolic device, in multiply-accumulates."""
    assert device.array is not None
    return (
        found.layer.macs * (1 + 4 * REGISTER + NEIGHBOUR)
        + passed(found.layer, device.array).total * BUFFER
        + found.traffic / WORD * (BUFFER + MEMORY)
    )


def sized(device: Device, side: int) -> Device:
    """A systolic device with an array of ``side`` x ``side`` and everything else as it is."""
    if device.array is None or side < 1:
        raise InputError(f"{device.name} has no array to resize to {side}")
    array = device.array.model_copy(update={"rows": side, "columns": side})
    grown = side * side / (device.array.rows * device.array.columns)
    peaks = {d: r * grown for d, r in device.peak_macs_s.items()}
    return device.model_copy(
        update={"name": f"{device.name}-{side}", "array": array, "peak_macs_s": peaks}
    )


def _grouped(layer: Layer, channels: int) -> Layer:
    each = next(c for c in range(min(channels, layer.groups), 0, -1) if layer.groups % c == 0)
    return replace(
        layer,
        groups=layer.groups // each,
        inputs=each,
        outputs=each,
        weight_bytes=layer.weight_bytes * each,
    )
