"""Networks that compute as if their numbers had another format: inference, training, faulty bits.

After Pychop (Carson and Chen 2025, arXiv:2504.07835), whose layers round weights and activations
with straight-through gradients and whose optimizers round what they update. Here any module can be
emulated, since rounding hangs on its leaves. Deviation: sums inside an operator stay in the
module's own dtype, as an accumulator does; only what passes between modules is rounded.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paredown.analysis.codes import decode, encode
from paredown.analysis.floats import Float
from paredown.analysis.formats import Format
from paredown.analysis.rounding import Rounding
from paredown.errors import InputError


class _StraightThrough(torch.autograd.Function):
    """Rounding forwards; backwards the gradient, where the value was in range."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, form: Format, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        reach = getattr(form, "largest", None)
        ctx.save_for_backward(None if reach is None else x.abs() <= reach)
        return form.round(x, rounding, generator).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return (grads[0] if inside is None else grads[0] * inside), None, None, None


def straight_through(
    x: Tensor,
    form: Format,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """``x`` rounded to a format, in its own dtype; its gradient passes where ``x`` is in range.

    (Bengio et al. 2013, arXiv:1308.3432, the straight-through estimator.)
    """
    return _StraightThrough.apply(x, form, rounding, generator)  # pyright: ignore


def emulated(
    model: nn.Module,
    form: Format,
    rounding: Rounding = "nearest-even",
    *,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A deep copy whose tensors, and whose leaves' inputs and outputs, are rounded to a format.

    The copy can be trained: gradients pass straight through the activations' rounding.
    """
    copied = copy.deepcopy(model)
    _round_in_place([*copied.parameters(), *copied.buffers()], form, rounding, generator)

    def seen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return straight_through(value, form, rounding, generator)
        return value

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map(seen, args), pytree.tree_map(seen, kwargs)

    def after(_: nn.Module, __: Any, out: Any) -> Any:
        return pytree.tree_map(seen, out)

    for module in copied.modules():
        if next(module.children(), None) is None:
            module.register_forward_pre_hook(before, with_kwargs=True)
            module.register_forward_hook(after)
    return copied


def round_after_step(
    optimizer: torch.optim.Optimizer,
    form: Format,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Any:
    """Keep an optimizer's parameters in a format: round them now and after every step.

    Returns the hook's handle (``remove()`` ends it). With ``stochastic`` rounding an update smaller
    than the distance of two numbers still moves the mean (Gupta et al. 2015, arXiv:1502.02551).
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    _round_in_place(held, form, rounding, generator)

    def after(*_: Any) -> None:
        _round_in_place(held, form, rounding, generator)

    return optimizer.register_step_post_hook(after)


@torch.no_grad()
def _round_in_place(
    tensors: list[Tensor], form: Format, rounding: Rounding, generator: torch.Generator | None
) -> None:
    for t in tensors:
        if t.is_floating_point():
            t.copy_(form.round(t, rounding, generator))


def flip_bits(x: Tensor, form: Float, probability: float, generator: torch.Generator) -> Tensor:
    """``x`` rounded to a format, then each bit of its codes flipped with a probability.

    float64; a flip can make infinities and NaN where the format has them. Raises ``InputError`` for
    a probability outside 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"a probability lies between 0 and 1, got {probability}")
    code = encode(form, form.round(x))
    draw = torch.rand((form.bits, *code.shape), generator=generator) < probability
    places = (1 << torch.arange(form.bits)).reshape(-1, *[1] * code.ndim)
    return decode(form, code ^ (draw * places).sum(0))
