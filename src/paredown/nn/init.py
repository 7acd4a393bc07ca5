"""Initial weights of transformers and modern convnets."""

from __future__ import annotations

from torch import nn


def small_init(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for linears and convolutions, zero biases.

    For ``model.apply(small_init)``.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
