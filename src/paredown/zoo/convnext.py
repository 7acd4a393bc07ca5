"""ConvNeXt: a ConvNet for the 2020s (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paredown.nn.convnext import ConvNeXtBlock, LayerNorm2d


class ConvNeXt(nn.Module):
    """ConvNeXt for ``(batch, in_channels, h, w)`` images; defaults are ConvNeXt-T.

    ``patch`` is the stem's kernel and stride; ``scale`` the initial layer scale.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        patch: int = 4,
        scale: float = 1e-6,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], patch, patch), LayerNorm2d(widths[0], eps=1e-6)
        )
        body: list[nn.Module] = []
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if i:
                body += [
                    LayerNorm2d(widths[i - 1], eps=1e-6),
                    nn.Conv2d(widths[i - 1], width, 2, 2),
                ]
            body += [ConvNeXtBlock(width, scale=scale) for _ in range(depth)]
        self.body = nn.Sequential(*body)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], num_classes)
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.norm(self.body(self.stem(x)).mean((2, 3))))


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
