"""A training step with N:M sparse products on a systolic array that skips zeros (SAT, Fang et al.
2023, arXiv:2309.13015).

A layer has three products a step: forward (sums over inputs), gradient of the activations (over
outputs) and of the weights (over pixels). Trained both ways sparse (BDWP), the first two have only
n of every m weights: a unit takes m activations and n weights with their places, so the sum is n/m
as long. The third is dense. Per product the faster of weight and output stationary is taken ahead
of time; cycles and traffic are those of `systolic`; then weights are updated and pruned by a vector
unit, which reads and writes the master copy, its momentum and both packed copies.

Deviations: interleaving that hides the latency of accumulation is taken as perfect; masks cost 4
bits per packed weight; what is neither a product nor the update (norms, activations) is left out,
in both modes alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from paredown.cost.systolic import Layer, cost
from paredown.device.device import Device
from paredown.errors import InputError, NotApplicable

PLACE_BYTES = 0.5
"""Bytes that tell where a packed weight stands."""
UPDATE = 4
"""Operations per weight of a step of gradient descent with momentum and the choice of n of m."""


@dataclass(frozen=True)
class Step:
    """A training step: multiply-accumulates done, seconds of products and of the update."""

    macs: float
    products_s: float
    update_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.products_s + self.update_s


def share_of_macs(n: int, m: int) -> float:
    """Of a layer's dense step: two of three products shrink to n/m."""
    return (2 * n / m + 1) / 3


def step(
    layers: Sequence[Layer],
    device: Device,
    sparse: Collection[str] = (),
    pattern: tuple[int, int] = (2, 8),
) -> Step:
    """One step over all layers, of which those named train sparse both ways.

    The first layer has no gradient by its input. Raises ``InputError`` for layers that are not
    there, ``NotApplicable`` for a device without an array or without the pattern.
    """
    array = device.array
    if array is None:
        raise NotApplicable(f"{device.name} states no array: it is not a systolic device")
    n, m = pattern
    if sparse and f"{n}:{m}" not in array.patterns:
        raise NotApplicable(f"{device.name} skips no zeros of {n}:{m}: {array.patterns or 'none'}")
    missing = set(sparse) - {x.name for x in layers}
    if missing:
        raise InputError(f"no layer {sorted(missing)[0]!r} to train sparse")
    macs = seconds = 0.0
    weights = moved = 0.0
    for i, layer in enumerate(layers):
        short = layer.name in sparse
        part = (n, m) if short else (1, 1)
        forward, by_input, by_weight = products(layer, part)
        for product in (forward, *([by_input] if i else []), by_weight):
            macs += product.macs
            seconds += _fastest(product, device)
        count = layer.groups * layer.inputs * layer.outputs * prod(layer.kernel)
        weights += count
        # Master weights and momentum in float32, read and written; then the packed copies.
        width = layer.weight_bytes / count
        packed = 2 * count * n / m * (width + PLACE_BYTES) if short else layer.weight_bytes
        moved += 16 * count + packed
    update = max(weights * UPDATE / device.elementwise_s, moved / device.memory.read_bytes_s)
    return Step(macs, seconds, update)


def products(layer: Layer, part: tuple[int, int] = (1, 1)) -> tuple[Layer, Layer, Layer]:
    """Forward, by input and by weight as matrix products; the first two sum over n of m.

    A gradient by the input is a convolution of the output's gradient by turned filters.
    """
    n, m = part
    width = layer.weight_bytes / (layer.groups * layer.inputs * layer.outputs * prod(layer.kernel))
    held = round(layer.weight_bytes * n / m * (1 + (PLACE_BYTES / width if n < m else 0)))
    pixels = layer.batch * prod(layer.out)
    taps = prod(layer.kernel)
    forward = replace(
        layer,
        batch=1,
        inputs=ceil(layer.inputs * taps * n / m),
        kernel=(1, 1),
        out=(1, pixels),
        weight_bytes=held,
    )
    by_input = replace(
        forward,
        inputs=ceil(layer.outputs * n / m),
        outputs=layer.inputs * taps,
        input_bytes=layer.output_bytes,
        output_bytes=layer.input_bytes,
    )
    by_weight = replace(
        layer,
        batch=1,
        inputs=pixels,
        outputs=layer.outputs,
        kernel=(1, 1),
        out=(1, layer.inputs * taps),
        weight_bytes=layer.output_bytes,
        output_bytes=layer.weight_bytes,
    )
    return forward, by_input, by_weight


def _fastest(product: Layer, device: Device) -> float:
    """Seconds under the better dataflow, chosen ahead of time."""
    assert device.array is not None
    times: list[float] = []
    for dataflow in ("weight", "output"):
        array = device.array.model_copy(update={"dataflow": dataflow})
        times.append(cost(product, device.model_copy(update={"array": array})).seconds)
    return min(times)
