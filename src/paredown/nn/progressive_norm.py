"""Progressive re-parameterised batch norm of SLAB (Guo et al. 2024, arXiv:2405.11582, 3.2).

Training goes from layer norm to a batch norm that folds into the linear layer behind it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.transformer import EncoderBlock


class RepBatchNorm(nn.Module):
    """``batch_norm(x) + eta * x`` over the last dimension (equation 7); eta is one scalar, from 1.

    In evaluation mode an affine map per channel, see ``affine``.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=eps)
        self.eta = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)`` to the same shape; statistics over all other dimensions."""
        return self.norm(x.flatten(0, -2)).reshape(x.shape) + self.eta * x

    @torch.no_grad()
    def affine(self) -> tuple[Tensor, Tensor]:
        """Gain and shift per channel in evaluation mode: ``y = gain * x + shift``."""
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        gain = self.norm.weight * torch.rsqrt(var + self.norm.eps)
        return gain + self.eta, self.norm.bias - gain * mean


class ProgressiveNorm(nn.Module):
    """``lam * layer_norm(x) + (1 - lam) * rep(x)``, lam from 1 to 0 over ``steps`` (equation 8).

    Every training forward is a step; ``step`` is a buffer, so a checkpoint goes on where it was.
    In evaluation mode, and after the last step, only the re-parameterised batch norm runs. The
    authors' ``steps`` are 300,000 (120,000 and 60,000 with linear attention).
    """

    step: Tensor

    def __init__(self, channels: int, steps: int = 300_000, *, eps: float = 1e-6) -> None:
        super().__init__()
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        self.layer, self.rep = nn.LayerNorm(channels, eps=eps), RepBatchNorm(channels)
        self.steps = steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def share(self) -> float:
        """The layer norm's weight at this step."""
        return max(0.0, 1 - int(self.step) / self.steps)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)`` to the same shape."""
        out = self.rep(x)
        if self.training:
            share = self.share()
            self.step += 1
            if share > 0:
                out = share * self.layer(x) + (1 - share) * out
        return out


@torch.no_grad()
def folded_linear(norm: RepBatchNorm, linear: nn.Linear) -> nn.Linear:
    """One linear layer equal to ``linear(norm(x))`` in evaluation mode."""
    gain, shift = norm.affine()
    weight = linear.weight * gain
    bias = linear.weight @ shift
    own: Any = linear.bias
    out = nn.Linear(
        linear.in_features, linear.out_features, device=weight.device, dtype=weight.dtype
    )
    out.weight.copy_(weight)
    out.bias.copy_(bias if own is None else bias + own)
    return out


def fold_progressive(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose encoder blocks have no norms left: folded into qkv and fc1.

    Progressive norms elsewhere are left alone; so are blocks whose norm is of another kind.
    """
    out = copy.deepcopy(model).eval()
    for block in list(out.modules()):
        if not isinstance(block, EncoderBlock):
            continue
        for name, inner, layer in (("norm1", block.attn, "qkv"), ("norm2", block.mlp, "fc1")):
            norm = getattr(block, name)
            if isinstance(norm, ProgressiveNorm):
                setattr(inner, layer, folded_linear(norm.rep, getattr(inner, layer)))
                setattr(block, name, nn.Identity())
    return out
