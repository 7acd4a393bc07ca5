"""Operators that paredown makes up to learn from: kind, sizes and layout, as networks have them.

Sizes are log-uniform over the ranges that the zoo's networks and Hugging Face architectures have.
A sample is a chain: equal layers one after the other (or in pairs, there and back, where a layer
changes the width), so that what a run costs beside its calls is divided among many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import nn

from paredown.measure import generate_layers as layers_of
from paredown.measure.generate_networks import draw_mixed
from paredown.measure.generate_parts import Beside, Chain, Drawn
from paredown.workload import Workload

SPACE = 2
"""Version of what is drawn and kept of it: samples of another one are not mixed with these."""
COUNTS = {
    "pointwise": 84,
    "norm": 40,
    "copy": 40,
    "reduction": 48,
    "conv": 160,
    "depthwise": 56,
    "linear": 80,
    "matmul": 30,
    "attention": 36,
    "pool": 36,
    "deconv": 10,
    "recurrent": 12,
    "head": 30,
    "mixed": 32,
}
"""Samples by kind; the first four are timed first, since the others' chains contain them.

``head`` are products as wide as a vocabulary, ``mixed`` small networks of unlike operators: what
these take beyond the sum of their operators is what a call costs when nothing is warm.
"""


@dataclass(frozen=True)
class Sample:
    """One chain: ``make`` gives its workload; ``kind`` is what is learned from it."""

    name: str
    kind: str
    make: Callable[[], Workload]


def samples(
    seed: int = 0, counts: dict[str, int] | None = None, *, fused: bool = False
) -> Iterator[Sample]:
    """Every sample in the order in which they are timed; the same for the same seed.

    ``fused`` is for backends that fuse: pointwise layers do not stand alone there, but behind
    convolutions and products.
    """
    for kind, count in (counts or COUNTS).items():
        for i in range(count):
            alone = kind == "pointwise" or (kind == "norm" and i % 4 > 1)
            if not (fused and alone):
                yield Sample(
                    f"{kind}/{i}", kind, _maker(kind, f"{SPACE}/{seed}/{kind}/{i}", i, fused)
                )


def _maker(kind: str, seed: str, i: int, fused: bool) -> Callable[[], Workload]:
    def make() -> Workload:
        torch.manual_seed(0)
        layers, x = _DRAW[kind](Random(seed), i)
        if fused:  # their layouts are their own: another one is a copy before the first layer
            x = x.contiguous()
        if fused and i % 3 and kind in ("conv", "depthwise", "linear"):
            layers = _with_tails(layers, i)
        model = layers if isinstance(layers, Beside) else Chain(layers)
        return Workload(model.eval().requires_grad_(False), (x,), name=f"{kind} chain")

    return make


def _with_tails(layers: list[nn.Module] | Beside, i: int) -> list[nn.Module] | Beside:
    """Each layer with what networks put behind it: a batch norm, an activation."""
    plain = list(layers.layers) if isinstance(layers, Beside) else layers
    act = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.ReLU6)[i % 5]
    made: list[nn.Module] = [
        nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), act())
        if isinstance(layer, nn.Conv2d)
        else nn.Sequential(layer, act())
        for layer in plain
    ]
    return Beside(made) if isinstance(layers, Beside) else made


_DRAW: dict[str, Callable[[Random, int], Drawn]] = {
    "pointwise": layers_of.draw_pointwise,
    "norm": layers_of.draw_norm,
    "copy": layers_of.draw_copy,
    "reduction": layers_of.draw_reduction,
    "conv": layers_of.draw_conv,
    "depthwise": layers_of.draw_depthwise,
    "linear": layers_of.draw_linear,
    "matmul": layers_of.draw_matmul,
    "attention": layers_of.draw_attention,
    "pool": layers_of.draw_pool,
    "deconv": layers_of.draw_deconv,
    "recurrent": layers_of.draw_recurrent,
    "head": layers_of.draw_head,
    "mixed": draw_mixed,
}
