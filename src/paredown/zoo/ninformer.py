"""NiNformer: a linear map of the tokens, gated by a Mixer inside the block (arXiv:2403.02411).

Abdullah and Choi 2024, section 3; layout of the authors' code, whose block has one layer norm for
both of its places. Token mixing is linear in the tokens for a given hidden width, and there is no
map of tokens by tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from paredown.nn.embed import PatchEmbed, patches
from paredown.nn.features import need_size, quarters, token_maps
from paredown.nn.mlp import Mlp


class DroppedMlp(Mlp):
    """A two-layer perceptron with dropout behind both linear maps."""

    def __init__(self, channels: int, hidden: int, *, dropout: float) -> None:
        super().__init__(channels, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)`` to the same shape."""
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))


class MixerGate(nn.Module):
    """The gate: an MLP across tokens, then one across channels, each normed and on a residual."""

    def __init__(self, tokens: int, channels: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.token_mlp = DroppedMlp(tokens, hidden, dropout=dropout)
        self.channel_mlp = DroppedMlp(channels, hidden, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        x = x + self.token_mlp(self.norm1(x).mT).mT
        return x + self.channel_mlp(self.norm2(x))


class NiNBlock(nn.Module):
    """``x + proj(n(x)) * gate(n(x))``, then ``x + mlp(n(x))``; ``n`` is one norm (figure 1)."""

    def __init__(self, tokens: int, channels: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)
        self.gate = MixerGate(tokens, channels, hidden, dropout=dropout)
        self.mlp = DroppedMlp(channels, hidden, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        normed = self.norm(x)
        x = x + self.proj(normed) * self.gate(normed)
        return x + self.mlp(self.norm(x))


class NiNformer(nn.Module):
    """NiNformer for ``(batch, in_channels, size, size)`` images of one fixed size.

    Positions are in the token MLPs' weights alone. Returns logits ``(batch, num_classes)``, or with
    ``features_only`` the patches' maps after each quarter of the blocks (all of stride ``patch``).
    Raises ``InputError`` where the patch does not divide the image, and for images of another size.
    """

    def __init__(
        self,
        channels: int = 256,
        depth: int = 4,
        hidden: int = 512,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        image_size: int = 32,
        patch: int = 4,
        dropout: float = 0.5,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.side, self.image_size = patches(image_size, patch), image_size
        self.taps = quarters(depth, features_only=features_only)
        self.embed = PatchEmbed(in_channels, channels, patch)
        self.blocks = nn.Sequential(
            *(NiNBlock(self.side**2, channels, hidden, dropout=dropout) for _ in range(depth))
        )
        self.head = None if features_only else nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to maps on the way."""
        need_size(x, network="NiNformer", exactly=self.image_size)
        x = self.embed(x)
        if self.head is None:
            return token_maps(self.blocks, x, self.taps, self.side)
        return self.head(self.blocks(x).mean(1))


def block_macs(tokens: int, channels: int, hidden: int) -> int:
    """Multiply-accumulates of one block: linear in the tokens for a given hidden width."""
    return tokens * (4 * channels * hidden + channels**2) + 2 * tokens * channels * hidden
