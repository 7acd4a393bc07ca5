"""Layers whose products are N:M sparse in training, forward and backward (BDWP, Fang et al. 2023,
arXiv:2309.13015).

Forward, weights keep the N largest of every M along the inputs, what the product sums over: y =
x W_f^T. Backward, the same dense weights keep N of M along the outputs, what that product sums
over: dx = dy W_b. The weights' gradient is dense, dW = dy^T x, and reaches all of them (straight
through); SR-STE (Zhou et al. 2021, arXiv:2102.04010) adds ``decay (1 - mask) W``. Both pruned
copies are made once per update of the weights. On a CPU they are held dense: the sparsity is exact,
time is not saved (`cost.sparse_training` prices an accelerator that saves it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Direction = Literal["both", "forward", "backward"]


def kept(weight: Tensor, n: int, m: int, axis: int) -> Tensor:
    """Mask of the n largest of every m neighbours along an axis; of equal ones the first stay."""
    rows = weight.detach().abs().movedim(axis, -1)
    groups = rows.reshape(*rows.shape[:-1], -1, m)
    order = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True)
    return mask.reshape(rows.shape).movedim(-1, axis)


class _Product(torch.autograd.Function):
    """A linear or a convolution by one weight whose input gradient is by another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Sparse) -> Tensor:
        """``x`` times the forward weights."""
        ahead, back, mask = layer.pruned()
        ctx.save_for_backward(x, weight, back, mask)
        ctx.layer, ctx.bias = layer, bias is not None
        return layer.product(x, ahead, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients by input (sparse), weight (dense) and bias."""
        x, weight, back, mask = ctx.saved_tensors
        dx, dw, db = ctx.layer.gradients(grads[0], x, weight, back, ctx.needs_input_grad)
        if ctx.layer.decay:
            dw = dw + ctx.layer.decay * torch.where(mask, 0.0, weight)
        return dx, dw, db if ctx.bias else None, None


class Sparse(nn.Module, ABC):
    """What the two kinds of layer share. ``weight`` and ``bias`` are the very ones of ``old``."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, old: Any, n: int, m: int, direction: Direction = "both", decay: float = 0.0
    ) -> None:
        super().__init__()
        self.weight, self.bias = old.weight, old.bias
        self.n, self.m, self.direction, self.decay = n, m, direction, decay
        self._made: tuple[int, tuple[Tensor, Tensor, Tensor]] | None = None

    def pruned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Forward and backward weights and the forward mask, of the weights as they are now."""
        version = self.weight._version
        if self._made is None or self._made[0] != version:
            # A run in inference mode may be the first after an update; training reads these too.
            with torch.inference_mode(False), torch.no_grad():
                self._made = version, self._prune(self.weight.detach())
        return self._made[1]

    def _prune(self, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ahead, back = (kept(whole, self.n, self.m, axis) for axis in (1, 0))
        every = torch.ones_like(ahead)
        ahead = every if self.direction == "backward" else ahead
        back = every if self.direction == "forward" else back
        zero = whole.new_zeros(())
        return torch.where(ahead, whole, zero), torch.where(back, whole, zero), ahead

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, sparse where its direction says."""
        made: Any = _Product.apply(x, self.weight, self.bias, self)
        return made

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The forward product."""

    @abstractmethod
    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, back: Tensor, needed: Any
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """By input through ``back``, by weight, by bias."""


class SparseLinear(Sparse):
    """A linear ``(out, in)``."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b``."""
        return F.linear(x, weight, bias)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, back: Tensor, needed: Any
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """``dy W_b``, ``dy^T x``, the sum of ``dy``."""
        rows, flat = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = (rows @ back).reshape(x.shape) if needed[0] else None
        return dx, rows.t() @ flat, rows.sum(0)


class SparseConv(Sparse):
    """A 2-D convolution ``(out, in, height, width)`` of one group; M runs along channels."""

    def __init__(self, old: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(old, *args, **kwargs)
        self.geometry = (list(old.stride), list(_numbers(old.padding)), list(old.dilation))

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        stride, padding, dilation = self.geometry
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, back: Tensor, needed: Any
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """By torch's own backward of a convolution, once by each weight."""
        stride, padding, dilation = self.geometry
        rest = ([weight.shape[0]], stride, padding, dilation, False, [0, 0], 1)
        by = torch.ops.aten.convolution_backward
        dx = by(dy, x, back, *rest, [True, False, False])[0] if needed[0] else None
        _, dw, db = by(dy, x, weight, *rest, [False, True, True])
        return dx, dw, db


def _numbers(padding: Any) -> tuple[int, int]:
    if isinstance(padding, str):
        raise TypeError("padding in words has no N:M form")
    return padding


def why_not(module: nn.Module, m: int) -> str | None:
    """Why a layer cannot be trained N:M sparse, or None."""
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return "grouped convolutions have few weights, each of its own inputs"
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return "only convolutions with zero padding in numbers are trained sparse"
    elif not isinstance(module, nn.Linear):
        return "only linear layers and 2-D convolutions are trained sparse"
    rows, columns = module.weight.shape[:2]
    if rows % m or columns % m:
        return f"{m} does not divide its {rows} outputs and {columns} inputs"
    return None


def convert(
    model: nn.Module,
    layers: Iterable[str],
    n: int,
    m: int,
    direction: Direction = "both",
    decay: float = 0.0,
) -> None:
    """Put sparse products in place of the named layers; parameters keep their names and values."""
    for path in layers:
        old = model.get_submodule(path)
        kind = SparseConv if isinstance(old, nn.Conv2d) else SparseLinear
        new = kind(old, n, m, direction, decay)
        new.train(old.training)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
