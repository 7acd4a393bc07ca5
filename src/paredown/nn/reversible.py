"""Reversible blocks: inputs are recomputed from outputs, so a stage stores one activation.

Gomez et al. 2017 (RevNet, arXiv:1707.04585), equations 6 to 8 and algorithm 1; used in 3-D by
Pendse et al. 2021 (arXiv:2104.09648).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.drop import DropPath

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, DropPath)


class ReversibleBlock(nn.Module):
    """``y1 = x1 + f(x2)``, ``y2 = x2 + g(y1)`` on the two halves of the channels (dimension 1).

    ``f`` and ``g`` keep the shape of a half. They are run again in the backward pass, so they must
    compute the same twice: ``InputError`` for dropout or a batch norm inside (its running
    statistics would be counted twice).
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        for name, inner in (("f", f), ("g", g)):
            for m in inner.modules():
                if isinstance(m, (*NORMS, *DROPS)):
                    raise InputError(
                        f"{name} of a reversible block holds {type(m).__name__}, which does not "
                        "compute the same twice: use a group norm, and no dropout"
                    )
        self.f, self.g = f, g

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, ...)`` to the same shape; channels must be even."""
        x1, x2 = x.chunk(2, 1)
        y1 = x1 + self.f(x2)
        return torch.cat((y1, x2 + self.g(y1)), 1)

    def inverse(self, y: Tensor) -> Tensor:
        """The input of which this is the output, up to rounding (RevNet, equation 8)."""
        y1, y2 = y.chunk(2, 1)
        x2 = y2 - self.g(y1)
        return torch.cat((y1 - self.f(x2), x2), 1)

    def backward_from(
        self, y: Tensor, grad: Tensor, need_weights: bool = True
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """The input, its gradient and those of the parameters, from the output and its gradient.

        Algorithm 1: each of ``f`` and ``g`` runs once with its graph, which is freed at once.
        """
        y1, y2 = (t.detach() for t in y.chunk(2, 1))
        dy1, dy2 = grad.chunk(2, 1)
        out, dy1_more, dg = _through(self.g, y1, dy2, need_weights)
        x2 = y2 - out
        dx1 = dy1 + dy1_more
        out, dx2_more, df = _through(self.f, x2, dx1, need_weights)
        x = torch.cat((y1 - out, x2), 1)
        return x, torch.cat((dx1, dy2 + dx2_more), 1), [*df, *dg]


class ReversibleSequence(nn.Module):
    """Reversible blocks in turn; training stores the last output only, whatever their number.

    With ``store`` every activation is kept instead, as in an ordinary network: the same numbers,
    more memory, and no second run of ``f`` and ``g`` in the backward pass. An export, or a run
    without gradients, is the plain chain of blocks. Gradients of gradients need ``store``.
    """

    def __init__(self, blocks: Iterable[ReversibleBlock], *, store: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.store = store

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, ...)`` to the same shape; ``InputError`` for an odd channel count."""
        if x.shape[1] % 2:
            raise InputError(f"reversible blocks split channels in two halves, got {x.shape[1]}")
        weights = [p for b in self._blocks() for p in _parameters(b)]
        trains = torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in weights)
        )
        if self.store or not trains or not self.blocks or torch.compiler.is_compiling():
            return _chain(self._blocks(), x)
        run: Callable[..., Tensor] = _Recomputed.apply  # pyright: ignore[reportAssignmentType]
        return run(x, self._blocks(), *weights)

    def inverse(self, y: Tensor) -> Tensor:
        """The input of which this is the output, up to rounding."""
        for block in reversed(self._blocks()):
            y = block.inverse(y)
        return y

    def _blocks(self) -> list[ReversibleBlock]:
        return [b for b in self.blocks if isinstance(b, ReversibleBlock)]


class _Recomputed(torch.autograd.Function):
    """A chain of reversible blocks that saves its output and no more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: list[ReversibleBlock], *weights: Tensor) -> Tensor:
        ctx.blocks = blocks
        # The second run must round as the first did.
        ctx.rounding = _rounding(x.device.type)
        with torch.no_grad():
            y = _chain(blocks, x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        grads: list[Tensor | None] = []
        need_weights = any(ctx.needs_input_grad[2:])
        with ctx.rounding:
            for block in reversed(ctx.blocks):
                y, grad, of_weights = block.backward_from(y, grad, need_weights)
                grads[:0] = of_weights
        return grad, None, *grads


def _rounding(device: str) -> AbstractContextManager[Any]:
    """The automatic mixed precision that is in force, to be entered again."""
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device))


def _chain(blocks: Iterable[ReversibleBlock], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _parameters(block: ReversibleBlock) -> list[nn.Parameter]:
    """In the order of `backward_from`; one that ``f`` and ``g`` share stands twice."""
    return [*block.f.parameters(), *block.g.parameters()]


def _through(
    module: nn.Module, x: Tensor, grad: Tensor, need_weights: bool
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Output, gradient of the input, gradients of the parameters (None where frozen)."""
    weights = list(module.parameters())
    wanted = [p for p in weights if p.requires_grad and need_weights]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = module(x)
    found = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(out, [x, *wanted], grad.to(out.dtype), allow_unused=True),
    )
    of_x, of_wanted = found[0], iter(found[1:])
    of_weights = [next(of_wanted) if p.requires_grad and need_weights else None for p in weights]
    return out.detach(), torch.zeros_like(x) if of_x is None else of_x, of_weights
