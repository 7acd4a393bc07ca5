"""ConViT: attention that begins as a convolution (d'Ascoli et al. 2021, arXiv:2103.10697)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.embed import PatchEmbed, patches
from paredown.nn.features import need_size, quarters
from paredown.nn.init import small_init
from paredown.nn.mlp import Mlp
from paredown.nn.transformer import SelfAttention

# Attention heads, channels per head (table 1).
VARIANTS: dict[str, tuple[int, int]] = {
    "ti": (4, 48),
    "s": (9, 48),
    "b": (16, 48),
    "ti+": (4, 64),
    "s+": (9, 64),
    "b+": (16, 64),
}


class GatedPositionalAttention(nn.Module):
    """GPSA: content attention and position attention, mixed by a gate per head (equation 7).

    Reads ``(batch, side * side, channels)``. :meth:`local_init` makes every head look at its own
    offset, which is a convolution once ``strength`` is large (equations 5 and 6). Raises
    ``InputError`` where the heads do not divide the channels or, for the initialisation, are no
    square.
    """

    def __init__(self, channels: int, num_heads: int, side: int, *, strength: float = 1.0) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.qk = nn.Linear(channels, 2 * channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.position = nn.Linear(3, num_heads)
        self.gate = nn.Parameter(torch.ones(num_heads))
        self.register_buffer("offsets", relative_offsets(side), persistent=False)
        self.local_init(strength)

    offsets: Tensor

    @torch.no_grad()
    def local_init(self, strength: float = 1.0) -> None:
        """Values pass unchanged; head ``h`` looks at offset D_h with this sharpness."""
        side = round(self.num_heads**0.5)
        if side * side != self.num_heads:
            raise InputError(f"heads on a square grid are needed to begin local, got {side}")
        nn.init.eye_(self.v.weight)
        for weight in (self.qk.weight, self.proj.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.position.bias)
        at = torch.arange(side) - (side - 1) / 2
        right, down = at.repeat_interleave(side), at.repeat(side)
        weight = torch.stack((2 * right, 2 * down, torch.full_like(right, -1)), 1)
        self.position.weight.copy_(strength * weight)

    def attention(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to weights ``(batch, heads, tokens, tokens)``."""
        batch, tokens, _ = x.shape
        qk = self.qk(x).reshape(batch, tokens, 2, self.num_heads, self.head_dim)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        content = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        position = self.position(self.offsets).permute(2, 0, 1).softmax(-1)
        gate = torch.sigmoid(self.gate).reshape(-1, 1, 1)
        mixed = (1 - gate) * content + gate * position
        return mixed / mixed.sum(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        batch, tokens, _ = x.shape
        v = self.v(x).reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        return self.proj((self.attention(x) @ v).transpose(1, 2).reshape(x.shape))

    def locality(self, x: Tensor) -> Tensor:
        """Mean distance in patches that each head looks over, ``(heads,)`` (section 4)."""
        distance = self.offsets[..., 2].sqrt()
        return (self.attention(x) * distance).sum(-1).mean((0, 2))


def relative_offsets(side: int) -> Tensor:
    """Columns, rows and squared distance from query to key: ``(side**2, side**2, 3)``."""
    at = torch.arange(side * side)
    row, column = at // side, at % side
    right = (column - column[:, None]).float()
    down = (row - row[:, None]).float()
    return torch.stack((right, down, right**2 + down**2), -1)


class PlainAttention(SelfAttention):
    """Self-attention whose query, key and value have no bias, as in the authors' code."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__(channels, num_heads)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)


class ConViTBlock(nn.Module):
    """Pre-norm block of an attention and an MLP, each on a residual."""

    def __init__(
        self, channels: int, attention: nn.Module, *, ratio: float = 4.0, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(channels, eps=1e-6), attention
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, round(ratio * channels))
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class ConViT(nn.Module):
    """ConViT for ``(batch, in_channels, image_size, image_size)`` images of one size.

    The first ``local`` of ``depth`` blocks have gated positional attention over patches alone; the
    class token joins behind them. ``local`` 0 is a plain ViT. ``strength`` is the locality
    strength of the initialisation. Logits ``(batch, num_classes)``, or with ``features_only`` the
    patches' maps after each quarter of the blocks (all of stride ``patch``).
    """

    def __init__(
        self,
        num_heads: int = 4,
        head_dim: int = 48,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        depth: int = 12,
        local: int = 10,
        image_size: int = 224,
        patch: int = 16,
        strength: float = 1.0,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= local <= depth:
            raise InputError(f"local blocks number 0 to depth {depth}, got {local}")
        self.image_size, self.local = image_size, local
        self.taps = quarters(depth, features_only=features_only)
        channels, self.side = num_heads * head_dim, patches(image_size, patch)
        side = self.side
        self.embed = PatchEmbed(in_channels, channels, patch)
        self.position = nn.Parameter(torch.empty(1, side * side, channels))
        self.cls = nn.Parameter(torch.empty(1, 1, channels))
        rates = rising_rates(drop, depth)
        self.blocks = nn.ModuleList(
            ConViTBlock(
                channels,
                GatedPositionalAttention(channels, num_heads, side, strength=strength)
                if i < local
                else PlainAttention(channels, num_heads),
                drop=rates[i],
            )
            for i in range(depth)
        )
        self.head = None
        if not features_only:
            self.norm = nn.LayerNorm(channels, eps=1e-6)
            self.head = nn.Linear(channels, num_classes)
        self.apply(_init)
        for block in self.blocks[:local]:
            attention = block.get_submodule("attention")
            assert isinstance(attention, GatedPositionalAttention)
            attention.local_init(strength)
        for table in (self.position, self.cls):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to maps on the way."""
        need_size(x, network="this ConViT", exactly=self.image_size)
        x, maps = self.embed(x) + self.position, list[Tensor]()
        for i, block in enumerate(self.blocks):
            if i == self.local:
                x = self._joined(x)
            x = block(x)
            if self.head is None and i in self.taps:
                maps.append(x[:, -(self.side**2) :].mT.unflatten(2, (self.side, self.side)))
        if self.head is None:
            return maps
        if self.local == len(self.blocks):
            x = self._joined(x)
        return self.head(self.norm(x)[:, 0])

    def _joined(self, x: Tensor) -> Tensor:
        """The class token before the patches."""
        return torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):  # the patches' convolution keeps torch's own weights
        small_init(module)


def convit(
    variant: str = "ti",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    image_size: int = 224,
    patch: int = 16,
    drop: float = 0.0,
    features_only: bool = False,
) -> ConViT:
    """A published size (``VARIANTS``). Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("ConViT", variant, list(VARIANTS))
    heads, head_dim = VARIANTS[variant]
    return ConViT(
        heads,
        head_dim,
        num_classes,
        in_channels,
        image_size=image_size,
        patch=patch,
        drop=drop,
        features_only=features_only,
    )
