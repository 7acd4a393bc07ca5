"""SVT: scattering in early stages, attention in late ones (Patro & Agneeswaran 2023, 2311.01310).

Early blocks mix tokens in a wavelet domain: the low map of a dual tree is scaled element by
element, its oriented bands pass a small complex network over blocks of channels ("Einstein
blending"). The hierarchical form SVT-H with the channel mixing that the authors release.

Deviation: two scattering stages, as the published FLOPs have; the released file sets one
(``scattering=1``). While training, too, one tensor of logits answers; :meth:`SVT.tokens` gives the
class's and every token's for token labelling, whose mixing of images is left to the trainer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.conv import ConvNormAct
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import need_size
from paredown.nn.init import small_init
from paredown.nn.mlp import Mlp
from paredown.nn.transformer import CrossAttention
from paredown.nn.wavelet import DualTree


class Plan(NamedTuple):
    """One size: width of the stem, widths, depths and heads of the stages."""

    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]


VARIANTS: dict[str, Plan] = {
    "s": Plan(32, (64, 128, 320, 448), (3, 4, 6, 3), (2, 4, 10, 14)),
    "b": Plan(64, (64, 128, 320, 512), (3, 4, 12, 3), (2, 4, 10, 16)),
    "l": Plan(64, (96, 192, 384, 512), (3, 6, 18, 3), (3, 6, 12, 16)),
}


class ComplexBlocks(nn.Module):
    """A complex linear map of each block of channels: ``(..., blocks, width)``, real and imaginary.

    Weights are ``(2, blocks, width, width)``: real parts, then imaginary ones.
    """

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, blocks, width, width) * 0.02)
        self.bias = nn.Parameter(torch.randn(2, blocks, width) * 0.02)

    def forward(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts to both parts, of the same shape."""
        (wr, wi), (br, bi) = self.weight.unbind(0), self.bias.unbind(0)
        return (
            by_block(real, wr) - by_block(imaginary, wi) + br,
            by_block(real, wi) + by_block(imaginary, wr) + bi,
        )


def by_block(x: Tensor, weight: Tensor) -> Tensor:
    """``(..., blocks, width)`` times ``(blocks, width, outputs)``, block by block."""
    return torch.einsum("...nd,ndk->...nk", x, weight)


class Scattering(nn.Module):
    """The token mixer of the early stages (section 3): gate the low map, blend the bands.

    ``C * h * w + C * C + 4 * C`` parameters for C channels in four blocks, so it is built for maps
    of one ``side``. With a gate of ones and blending left out (``blended=False``) it is the
    identity. Raises ``InputError`` where the blocks do not divide the channels.
    """

    def __init__(self, channels: int, side: int, blocks: int = 4) -> None:
        super().__init__()
        if channels % blocks:
            raise InputError(f"{channels} channels do not divide into {blocks} blocks")
        self.tree, self.blocks = DualTree(), blocks
        self.gate = nn.Parameter(torch.randn(channels, side, side) * 0.02)
        self.blend1 = ComplexBlocks(blocks, channels // blocks)
        self.blend2 = ComplexBlocks(blocks, channels // blocks)

    def forward(self, x: Tensor, *, blended: bool = True) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        low, bands = self.tree(x.permute(0, 3, 1, 2))
        low = low * self.gate
        if blended:
            bands = self.blend(bands)
        return self.tree.inverse(low, bands).permute(0, 2, 3, 1)

    def blend(self, bands: Tensor) -> Tensor:
        """Bands ``(2, batch, channels, 6, h, w)`` through two complex maps, ReLU between."""
        last = bands.permute(0, 1, 3, 4, 5, 2)
        real, imaginary = last.unflatten(-1, (self.blocks, -1)).unbind(0)
        real, imaginary = self.blend1(real, imaginary)
        real, imaginary = self.blend2(F.relu(real), F.relu(imaginary))
        return torch.stack((real, imaginary)).flatten(-2).permute(0, 1, 5, 2, 3, 4)


class GlobalAttention(CrossAttention):
    """All pixels of a map over all pixels."""

    def forward(self, asking: Tensor, asked: Tensor | None = None) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        tokens = asking.flatten(1, 2)
        return super().forward(tokens, tokens if asked is None else asked).reshape(asking.shape)


class ConvolutionalMlp(nn.Module):
    """Linear, 3x3 depthwise convolution, GELU, linear (PVT v2, arXiv:2106.13797)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2))
        return self.fc2(self.act(x.permute(0, 2, 3, 1)))


class Block(nn.Module):
    """Norm and token mixer, norm and convolutional MLP, each on a residual."""

    def __init__(self, channels: int, mixer: nn.Module, ratio: int, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(channels, eps=1e-6), mixer
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = ConvolutionalMlp(channels, ratio * channels)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        x = x + self.drop(self.mixer(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):
    """The mean token asks all tokens, then an MLP of its own; the others pass (CaiT)."""

    def __init__(self, channels: int, num_heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.attn = (
            nn.LayerNorm(channels, eps=1e-6),
            CrossAttention(channels, num_heads),
        )
        self.norm2, self.mlp = nn.LayerNorm(channels, eps=1e-6), Mlp(channels, ratio * channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1 + tokens, channels)`` to the same shape."""
        normed = self.norm1(x)
        asking = x[:, :1] + self.attn(normed[:, :1], normed)
        return torch.cat((asking + self.mlp(self.norm2(asking)), x[:, 1:]), 1)


class Entry(nn.Module):
    """The way into a stage: (the stem's convolutions,) a strided 3x3 convolution and layer norm."""

    def __init__(self, inputs: int, outputs: int, stem: int = 0) -> None:
        super().__init__()
        self.stem = nn.Identity()
        if stem:
            self.stem = nn.Sequential(
                ConvNormAct(inputs, stem, 7, stride=2),
                ConvNormAct(stem, stem, 3),
                ConvNormAct(stem, stem, 3),
            )
        self.proj = nn.Conv2d(stem or inputs, outputs, 3, 2, 1)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to half the sides (the stem: a quarter), channels last."""
        return self.norm(self.proj(self.stem(x)).permute(0, 2, 3, 1))


class SVT(nn.Module):
    """SVT-H for ``(batch, in_channels, image_size, image_size)`` images; defaults are SVT-H-S.

    Returns logits ``(batch, num_classes)``, the class's plus half the best token's (``token_label``
    False: no token head), or with ``features_only`` the normalised outputs of the stages (strides 4
    to 32). ``scattering`` stages mix in the wavelet domain. Raises ``InputError`` for an
    ``image_size`` that is no multiple of ``2 ** (scattering + 2)``, as bands need even sides.
    """

    def __init__(
        self,
        plan: Plan = VARIANTS["s"],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 224,
        scattering: int = 2,
        ratios: tuple[int, ...] = (8, 8, 4, 4),
        token_label: bool = True,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        step = 2 ** (scattering + 2)
        if image_size % step:
            raise InputError(f"SVT's image_size is a multiple of {step}, got {image_size}")
        self.image_size = image_size
        rates = iter(rising_rates(drop, sum(plan.depths)))
        self.entries, self.stages = nn.ModuleList(), nn.ModuleList()
        side, channels = image_size // 2, in_channels
        for i, (width, depth, heads) in enumerate(
            zip(plan.widths, plan.depths, plan.heads, strict=True)
        ):
            side = -(-side // 2)
            self.entries.append(Entry(channels, width, 0 if i else plan.stem))
            self.stages.append(
                nn.Sequential(
                    *(
                        Block(
                            width,
                            Scattering(width, side)
                            if i < scattering
                            else GlobalAttention(width, heads),
                            ratios[i],
                            next(rates),
                        )
                        for _ in range(depth)
                    )
                )
            )
            channels = width
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in plan.widths)
        self.head = self.token_head = None
        if not features_only:
            self.last = ClassBlock(channels, plan.heads[-1], ratios[-1])
            self.head = nn.Linear(channels, num_classes)
            if token_label:
                self.token_head = nn.Linear(channels, num_classes)
        self.apply(small_init)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to features."""
        if self.head is None:
            maps = self._maps(x)
            normed = [*maps[:-1], self.norms[-1](maps[-1])]
            return [m.permute(0, 3, 1, 2) for m in normed]
        tokens = self._tokens(x)
        logits = self.head(tokens[:, 0])
        if self.token_head is None:
            return logits
        return logits + 0.5 * self.token_head(tokens[:, 1:]).amax(1)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The class's logits and each token's ``(batch, tokens, num_classes)``, for training."""
        if self.head is None or self.token_head is None:
            raise InputError("this SVT was built without a head for tokens")
        tokens = self._tokens(x)
        return self.head(tokens[:, 0]), self.token_head(tokens[:, 1:])

    def _tokens(self, x: Tensor) -> Tensor:
        """The mean token and the last stage's, through the class block and the last norm."""
        tokens = self._maps(x)[-1].flatten(1, 2)
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), 1)
        return self.norms[-1](self.last(tokens))

    def _maps(self, x: Tensor) -> list[Tensor]:
        """The stages' outputs, normalised but for the last."""
        need_size(x, network="SVT", exactly=self.image_size)
        maps: list[Tensor] = []
        last = len(self.stages) - 1
        for i, (entry, stage) in enumerate(zip(self.entries, self.stages, strict=True)):
            x = stage(entry(x))
            if i < last:
                x = self.norms[i](x)
            maps.append(x)
            x = x.permute(0, 3, 1, 2)
        return maps


def svt(variant: str = "s", num_classes: int = 1000, in_channels: int = 3, **settings: Any) -> SVT:
    """A published size of SVT-H: s, b or l. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("SVT", variant, list(VARIANTS))
    return SVT(VARIANTS[variant], num_classes, in_channels, **settings)
