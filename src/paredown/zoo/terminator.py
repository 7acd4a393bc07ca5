"""Terminator: HyperZ.Z.W instead of attention and residuals (Zhang 2024, arXiv:2401.17948).

Layout of the authors' code for CIFAR-10 (five blocks; its history, the head holds a README only).
A slow network of coordinates makes kernels W as large as the image; ``x * W`` are weights that know
the input, and multiply it again. Ten branches are concatenated and squeezed; nothing is added back.

Deviations: the scale of the slow networks' frequencies is ours (10), as the public configuration
has none; scalars that the code keeps outside its parameters (and so never trains) are left out.
Batch statistics are used at inference too, as there: outputs depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.features import need_size
from paredown.nn.hyper_kernel import ContextMagnet, Magnet

LOCAL_SIZES = (3, 9, 5, 7)
GROUPS = 12
BRANCHES = 10


def standardised(x: Tensor, over: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over those dimensions; nothing is learned or remembered."""
    mean = x.mean(over, keepdim=True)
    centred = x - mean
    return centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps)


def instance_standardised(x: Tensor) -> Tensor:
    """Every map of every image apart."""
    return standardised(x, (2, 3))


def group_standardised(x: Tensor, groups: int = GROUPS) -> Tensor:
    """G-IBS: groups of channels in turn over batch and space, and over space alone."""
    parts = x.chunk(groups, 1)
    return torch.cat(
        [standardised(p, (2, 3) if i % 2 else (0, 2, 3)) for i, p in enumerate(parts)], 1
    )


def zzw(kernel: Tensor, x: Tensor) -> Tensor:
    """HyperZ.Z.W by elements: ``(x * kernel) * x``."""
    return x * kernel * x


class RecursiveGate(nn.Module):
    """RGU: ``W_y(GELU(std(k * W_q v)) + b)`` with k and v linear in the input, b per pixel."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.k, self.v, self.q, self.y = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.bias = nn.Parameter(torch.zeros(1, 1, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, size, size)`` to the same shape."""
        gated = F.gelu(instance_standardised(self.k(x) * self.q(self.v(x))))
        return self.y(gated + self.bias)


class HyperChannel(nn.Module):
    """A score per channel: HyperZ.Z.W of the pooled maps with a kernel over the channels."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.slow = Magnet(1, channels, hidden, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps to scores ``(batch, channels, 1, 1)``."""
        return zzw(self.slow(), x.mean((2, 3)))[:, :, None, None]


class HyperInteract(nn.Module):
    """Scores per channel and per pixel, multiplied, sigmoid: the gate of another map."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channel, self.slow = HyperChannel(channels, 16), Magnet(2, size, 64, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps to gates of the same shape."""
        mean = x.mean(1, keepdim=True)
        return torch.sigmoid(zzw(self.slow().view(mean.shape[1:]), mean) * self.channel(x))


class LocalBranch(nn.Module):
    """A depthwise convolution with a kernel made from one map, run over another (HyperZZW_L)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.slow = ContextMagnet(size, 32, channels, 2)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.padding = size // 2

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        kernel = self.slow(context)
        x = self.mix(F.conv2d(x, kernel, padding=self.padding, groups=kernel.shape[0]))
        return F.gelu(standardised(x, (0, 2, 3))) + self.bias


class SFNEBlock(nn.Module):
    """Slow-fast neural encoding (figure 3): ten branches and ``earlier`` blocks' outputs, squeezed.

    ``(batch, channels, size, size)`` to ``factor * channels`` maps.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        layers: int,
        factor: int,
        *,
        earlier: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels * factor % GROUPS:
            raise InputError(f"{channels * factor} channels do not divide into {GROUPS} groups")
        self.slow = Magnet(2, size, 64, channels, layers)
        self.local = nn.ModuleList(LocalBranch(channels, k) for k in LOCAL_SIZES)
        self.gate_slow, self.gate_fast = (RecursiveGate(channels, size) for _ in range(2))
        self.mlp = nn.Conv2d(channels, channels, 1)
        self.channel, self.interact = HyperChannel(channels, 32), HyperInteract(channels, size)
        self.squeeze = nn.Conv2d((BRANCHES + earlier) * channels, factor * channels, 1)
        self.dropout, self.bias = nn.Dropout2d(dropout), nn.Parameter(torch.zeros(1))

    def kernel(self) -> Tensor:
        """The global kernel ``(channels, size, size)``: of coordinates alone."""
        flat = self.slow()
        side = math.isqrt(flat.shape[1])
        return flat.unflatten(1, (side, side))

    def forward(self, x: Tensor, *earlier: Tensor) -> Tensor:
        """Maps, and those of earlier blocks, to the block's output."""
        weights = x * self.kernel()
        fast = instance_standardised(self.gate_slow(weights) + self.gate_fast(x))
        mixed = instance_standardised(self.mlp(x))
        rated = instance_standardised(x * torch.sigmoid(self.channel(x)))
        whole = weights @ fast
        # What makes each local kernel, and what it runs over.
        pairs = ((x, rated), (rated, x), (mixed, x), (x, mixed))
        local = [b(c, z) for b, (c, z) in zip(self.local, pairs, strict=True)]
        again = [e.repeat(1, x.shape[1] // e.shape[1], 1, 1) for e in earlier]
        branches = [
            *(whole, local[1], *again[:1], fast, weights @ mixed, local[0]),
            *(torch.sigmoid(whole) * whole, local[2], weights @ rated, local[3], *again[1:]),
            x * self.interact(whole),
        ]
        out = F.gelu(group_standardised(self.squeeze(torch.cat(branches, 1))))
        return self.dropout(out + self.bias)


class Terminator(nn.Module):
    """For ``(batch, in_channels, size, size)`` images of one fixed size; logits.

    ``factors`` are how much wider each block's output is than its input; 12 divides them all from
    the first on. The third block reads the first's output again, the fourth the second's, the
    fifth the third's and the second's. :meth:`slow_loss` is added to the loss. With
    ``features_only`` the outputs of the blocks (all of stride 1). ``InputError`` for other sizes.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        image_size: int = 32,
        factors: Sequence[int] = (4, 3, 2, 2, 2),
        slow_layers: Sequence[int] = (3, 2, 2, 2, 2),
        dropout: Sequence[float] = (0.0, 0.05, 0.05, 0.05, 0.05),
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.factors = image_size, tuple(factors)
        blocks, channels = list[nn.Module](), in_channels
        for factor, layers, drop, earlier in zip(
            factors, slow_layers, dropout, EARLIER, strict=True
        ):
            blocks.append(
                SFNEBlock(channels, image_size, layers, factor, earlier=len(earlier), dropout=drop)
            )
            channels *= factor
        self.blocks = nn.ModuleList(blocks)
        self.head = None if features_only else nn.Linear(channels, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight)
                assert m.bias is not None
                nn.init.zeros_(m.bias)
        if self.head is not None:
            nn.init.kaiming_normal_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the blocks' outputs."""
        need_size(x, network="Terminator", exactly=self.image_size)
        maps: list[Tensor] = []
        for block, earlier in zip(self.blocks, EARLIER, strict=True):
            maps.append(block(maps[-1] if maps else x, *(maps[i] for i in earlier)))
        return maps if self.head is None else self.head(maps[-1].mean((2, 3)))

    def slow_loss(self) -> Tensor:
        """The slow networks' local error: how far every global kernel is from each before it.

        The shallower one is repeated along the channels; mean squares are summed over the pairs.
        """
        kernels = [b.kernel() for b in self.blocks if isinstance(b, SFNEBlock)]
        total = kernels[0].new_zeros(())
        for i, deep in enumerate(kernels):
            for shallow in kernels[:i]:
                tiled = shallow.repeat(deep.shape[0] // shallow.shape[0], 1, 1)
                total = total + (tiled - deep).square().mean()
        return total


EARLIER: tuple[tuple[int, ...], ...] = ((), (), (0,), (1,), (2, 1))
"""Blocks whose outputs each of the five reads again."""
