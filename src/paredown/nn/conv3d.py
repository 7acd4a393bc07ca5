"""Convolutions over clips and volumes: conv-norm-activation in three dimensions.

Every block maps ``(batch, channels, frames or slices, height, width)`` to the same layout.
"""

from __future__ import annotations

from torch import Tensor, nn

from paredown.nn.act import Activation, relu

Sizes = int | tuple[int, int, int]


def triple(size: Sizes) -> tuple[int, int, int]:
    """One number for all three axes, or the three."""
    return (size, size, size) if isinstance(size, int) else size


class ConvNormAct3d(nn.Module):
    """3-D convolution without bias, batch norm, activation (``act=None``: linear).

    Odd kernels keep the size at stride 1. ``eps`` is the norm's.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sizes = 1,
        *,
        stride: Sizes = 1,
        groups: int = 1,
        act: Activation | None = relu,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        d, h, w = triple(kernel)
        self.conv = nn.Conv3d(
            inputs,
            outputs,
            (d, h, w),
            stride,
            (d // 2, h // 2, w // 2),
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm3d(outputs, eps=eps)
        self.act = act() if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, d, h, w)`` to ``outputs`` channels, each side over its stride."""
        return self.act(self.norm(self.conv(x)))
