"""Kernels made by small networks of coordinates: multiplicative anisotropic Gabor networks.

Romero et al. 2022 (FlexConv, arXiv:2110.08059, section 3.3), as the slow networks of HyperZ.Z.W
(Zhang 2024, arXiv:2401.17948, section 3): the kernel is a function of the position in [-1, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMMA_SHAPE = 6.0
"""Shape of the Gamma distribution that frequencies are drawn from, over the layer's number."""
KEPT, RENORMED = 1.0, 0.1
"""Shares of a layer's output (without gradient) and of its unit-norm form in the local networks."""


class Magnet(nn.Module):
    """A kernel ``(outputs, size ** dims)`` from coordinates alone, the same for every input.

    Layer by layer a sine of the coordinates multiplies a linear map of what came before, plus a
    learned bias per point. ``omega`` scales the frequencies.
    """

    def __init__(
        self,
        dims: int,
        size: int,
        hidden: int,
        outputs: int,
        layers: int,
        *,
        omega: float = 10.0,
    ) -> None:
        super().__init__()
        axes = torch.meshgrid(*[torch.linspace(-1, 1, size)] * dims, indexing="ij")
        self.register_buffer("points", torch.stack([a.flatten() for a in axes], 1), False)
        self.sines = nn.ModuleList(nn.Linear(dims, hidden) for _ in range(layers + 1))
        self.mixes = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.bias = nn.Parameter(torch.zeros(size**dims, 1))
        self.out = nn.Linear(hidden, outputs)
        self._start(omega)

    points: Tensor

    def forward(self) -> Tensor:
        """The kernel; points are in row-major order."""
        x = torch.sin(self.sines[0](self.points))
        for i, mix in enumerate(self.mixes):
            x = torch.sin(self.sines[i + 1](self.points)) * mix(x) + self.bias
        return self.out(x).mT

    @torch.no_grad()
    def _start(self, omega: float) -> None:
        for i, sine in enumerate(self.sines):
            assert isinstance(sine, nn.Linear)
            shape = torch.full_like(sine.weight, GAMMA_SHAPE / (i + 1))
            gamma = shape if shape.is_meta else torch.distributions.Gamma(shape, 1.0).sample()
            sine.weight.mul_(2 * math.pi * omega * gamma)
            nn.init.zeros_(sine.bias)
        for mix in self.mixes:
            assert isinstance(mix, nn.Linear)
            nn.init.kaiming_uniform_(mix.weight, nonlinearity="linear")
            nn.init.ones_(mix.bias)
        nn.init.kaiming_uniform_(self.out.weight, nonlinearity="linear")
        # As many products are summed as the kernel has points (Chang et al. 2020).
        self.out.weight.div_(math.sqrt(self.points.shape[0]))
        nn.init.zeros_(self.out.bias)


class ContextMagnet(Magnet):
    """A depthwise kernel ``(channels, 1, size, size)`` that also depends on the batch it meets.

    The maps, pooled to the kernel's size and averaged over the batch, multiply every layer. One
    kernel serves the whole batch.
    """

    def __init__(
        self, size: int, hidden: int, channels: int, layers: int, *, omega: float = 10.0
    ) -> None:
        super().__init__(2, size, hidden, channels, layers, omega=omega)
        self.size = size
        self.reduce, self.lift = nn.Linear(channels, hidden), nn.Linear(hidden, hidden)
        self.contexts = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        for context in self.contexts:
            assert isinstance(context, nn.Linear)
            nn.init.kaiming_uniform_(context.weight, nonlinearity="linear")
            nn.init.ones_(context.bias)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps ``(batch, channels, h, w)`` to the kernel."""
        pooled = F.adaptive_avg_pool2d(x, self.size).flatten(2).mT
        context = F.gelu(self.lift(self.reduce(pooled).mean(0)))
        made = torch.sin(self.sines[0](self.points))
        for i, (mix, seen) in enumerate(zip(self.mixes, self.contexts, strict=True)):
            made = torch.sin(self.sines[i + 1](self.points)) * mix(made) + self.bias
            made = KEPT * made.detach() + RENORMED * F.normalize(made, dim=0)
            made = made * seen(context)
        return self.out(made).mT.unflatten(1, (1, self.size, self.size))
