"""PATNet: attention on the channels a partial convolution leaves (Huang et al. 2025, 2503.03148).

FasterNet's skeleton; of each map a quarter of the channels is convolved 3x3. The others are gated
by their own statistics (PAT_ch, stages 1 to 3) or attend to each other over space (PAT_sf, stage
4); PAT_sp gates half of the MLP's outputs over space. Details, which the paper leaves open, are
those of the authors' code of the same blocks (PartialNet, arXiv:2502.01303): the sizes too.

Deviations: deviations over space are computed with 1e-12 under the root, so that flat maps have
gradients. The convolved share is fixed at a quarter (PartialNet also learns it).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.act import Activation, gelu, relu
from paredown.nn.conv import ConvNormAct
from paredown.nn.drop import drop_path
from paredown.nn.norm import LayerNorm2d
from paredown.zoo.fasternet import Pyramid


class Plan(NamedTuple):
    """One size: first width, depths, activation, whether PAT_sp stands in the MLPs, heads."""

    width: int
    depths: tuple[int, int, int, int]
    act: Activation
    spatial: bool
    heads: int


VARIANTS: dict[str, Plan] = {
    "t0": Plan(32, (1, 2, 8, 2), gelu, True, 4),
    "t1": Plan(48, (1, 2, 8, 2), gelu, True, 6),
    "t2": Plan(64, (2, 2, 6, 4), relu, True, 6),
    "s": Plan(96, (2, 2, 9, 4), relu, True, 6),
    "m": Plan(128, (2, 3, 16, 4), relu, True, 6),
    "l": Plan(160, (2, 3, 20, 4), relu, True, 6),
}
# Distances up to NEAR have a bias each; beyond, steps grow to the last bucket, FAR, at REACH.
NEAR, FAR, REACH = 20, 40, 160


class StatisticsGate(nn.Module):
    """Channels gated by all channels' means and deviations over space (PAT_ch, section 3.2).

    The two statistics are one ``(1, 2)`` image, mixed by a convolution over it, normalised.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, (1, 2), bias=False)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        var, mean = torch.var_mean(x, (2, 3), keepdim=True)
        both = torch.cat((mean, (var + 1e-12).sqrt()), 3)
        return x * self.act(self.norm(self.mix(both)))


class DistanceAttention(nn.Module):
    """Multi-head self-attention over a map with a learned bias per head and distance (PAT_sf).

    The bias is iRPE's "euclidean" one (arXiv:2107.14222): pixels apart by the same rounded
    distance share it, so any size of map is taken. The table has the authors' ``2 * FAR + 1``
    entries, of which distances reach the first ``FAR + 1``.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.table = nn.Parameter(torch.zeros(num_heads, 2 * FAR + 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        batch, channels, h, w = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2))
        qkv = qkv.reshape(batch, h * w, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        index = distance_buckets(h, w, x.device)
        bias = self.table[:, index.reshape(-1)].reshape(1, -1, h * w, h * w)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = self.proj(out.transpose(1, 2).reshape(batch, h * w, channels))
        return out.transpose(1, 2).reshape(batch, channels, h, w)


def distance_buckets(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """The bucket of the distance of every two pixels of a map: ``(h * w, h * w)`` of 0 to FAR."""
    rows, columns = torch.arange(h, device=device), torch.arange(w, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    row, column = row.reshape(-1), column.reshape(-1)
    square = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    distance = square.float().sqrt().round()
    beyond = (distance.clamp(min=1) / NEAR).log() / math.log(REACH / NEAR) * (FAR - NEAR)
    far = (NEAR + beyond).round().clamp(max=FAR)
    return torch.where(distance <= NEAR, distance, far).long()


class PartialAttentionConv(nn.Module):
    """A 3x3 convolution of the first quarter of the channels, attention on the rest.

    ``num_heads`` 0: PAT_ch, gate then batch norm; else PAT_sf, layer norm then attention. With
    ``attend`` replaced by the identity it is FasterNet's partial convolution.
    """

    def __init__(self, channels: int, *, num_heads: int = 0, share: float = 0.25) -> None:
        super().__init__()
        convolved = int(channels * share)
        if not 1 <= convolved < channels:
            raise InputError(
                f"share {share} of {channels} channels leaves no channel for each part"
            )
        self.parts = (convolved, channels - convolved)
        self.conv = nn.Conv2d(convolved, convolved, 3, padding=1, bias=False)
        rest = self.parts[1]
        self.attend = (
            nn.Sequential(LayerNorm2d(rest, eps=1e-6), DistanceAttention(rest, num_heads))
            if num_heads
            else nn.Sequential(StatisticsGate(rest), nn.BatchNorm2d(rest))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        head, rest = x.split(self.parts, 1)
        return torch.cat((self.conv(head), self.attend(rest)), 1)


class SpatialGate(nn.Module):
    """Half the channels gated over space by a map of their own, half convolved 1x1 (PAT_sp)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convolved = channels // 2
        self.parts = (channels - convolved, convolved)
        self.map = nn.Conv2d(self.parts[0], 1, 1, bias=False)
        self.act, self.norm = nn.Hardsigmoid(), nn.BatchNorm2d(self.parts[0])
        self.conv_norm = nn.BatchNorm2d(convolved)
        self.conv = nn.Conv2d(convolved, convolved, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        gated, convolved = x.split(self.parts, 1)
        gated = self.norm(gated * self.act(self.map(gated)))
        return torch.cat((gated, self.conv(self.conv_norm(convolved))), 1)


class PATBlock(nn.Module):
    """Partial attention convolution, then an MLP of 1x1 convolutions, on one residual.

    With self-attention (``num_heads``) each of the two has a residual of its own.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 0,
        ratio: float = 2,
        spatial: bool = True,
        act: Activation = relu,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.mixer = PartialAttentionConv(channels, num_heads=num_heads)
        self.mlp = nn.Sequential(
            ConvNormAct(channels, hidden, act=act), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        if spatial:
            self.mlp.append(SpatialGate(channels))
        self.own_residual, self.drop = num_heads > 0, drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        if self.own_residual:
            x = x + self.mixer(x)
            return x + self.drop(self.mlp(x))
        return x + self.drop(self.mlp(self.mixer(x)))


class PATNet(Pyramid):
    """PATNet for ``(batch, in_channels, h, w)`` images of sides 32 or more; defaults are T0.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the four
    stages (strides 4 to 32).
    """

    def __init__(
        self,
        plan: Plan = VARIANTS["t0"],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        ratio: float = 2,
        features: int = 1280,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        last = len(plan.depths) - 1

        def block(stage: int, channels: int, rate: float) -> nn.Module:
            return PATBlock(
                channels,
                num_heads=plan.heads if stage == last else 0,
                ratio=ratio,
                spatial=plan.spatial,
                act=plan.act,
                drop=rate,
            )

        super().__init__(
            plan.width,
            plan.depths,
            num_classes,
            in_channels,
            block=block,
            features=features,
            act=plan.act,
            drop=drop,
            features_only=features_only,
        )


def patnet(
    variant: str = "t0", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> PATNet:
    """A published variant: t0, t1, t2, s, m or l. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("PATNet", variant, list(VARIANTS))
    return PATNet(VARIANTS[variant], num_classes, in_channels, **settings)
