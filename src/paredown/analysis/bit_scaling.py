"""Quality against total bits: which model at which precision (Ding et al. 2025, arXiv:2501.06218).

Total bits are what the saved tensors take: codes, tables and scales, and whatever stays in floats.
Beside them the diagnostics that set language-style generators (tokens chosen from a distribution)
against diffusion-style ones (continuous latents): how many choices a quantized network changes, how
far its latents drift along the trajectory, how the variance of activations moves from step to step,
and what noise on the weights does.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.runtime.torch_lowering import held_bytes

FLOAT = 32
"""Bits of an entry of a table."""


def coded_bits(values: int, bits: int, bucket: int) -> int:
    """Payload of ``values`` codes: whole bytes of codes, a table of ``2**bits`` points, and span
    and least value of each bucket (the form of `runtime.forms_codebook`).
    """
    codes = 8 * -(-values * bits // 8)
    return codes + FLOAT * (2**bits + 2 * -(-values // bucket))


def total_bits(model: nn.Module, coded: Collection[str], bits: int, bucket: int) -> int:
    """Bits of a model whose modules at the paths ``coded`` will hold their weights as codes.

    From shapes alone; equal to `payload_bits` of the model once it is quantized. Raises
    ``InputError`` for a path without a weight, and for a weight that others share.
    """
    total = payload_bits(model)
    for path in coded:
        weight = getattr(model.get_submodule(path), "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise InputError(f"{path}: no weight to code")
        owners = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
        if len(owners) > 1:
            raise InputError(f"{path}: its weight is shared by {', '.join(owners)}")
        total += coded_bits(weight.numel(), bits, bucket) - 8 * weight.nbytes
    return total


def payload_bits(model: nn.Module) -> int:
    """Bits of the tensors that are saved, each shared storage once."""
    return 8 * held_bytes(model)


@dataclass(frozen=True)
class Point:
    """One model at one precision; ``quality`` is higher for better."""

    model: str
    weight_bits: int
    activation_bits: int
    total_bits: int
    quality: float


def sweep(
    models: Mapping[str, nn.Module],
    quantize: Callable[[nn.Module, int], nn.Module],
    quality: Callable[[nn.Module], float],
    *,
    weight_bits: Sequence[int] = (8, 4, 3, 2),
    activation_bits: Sequence[int] = (16, 8),
) -> list[Point]:
    """Every model at every precision. ``quantize(model, bits)`` returns another model.

    Activation widths of 16 and above stand for floats.
    """
    points: list[Point] = []
    for name, model in models.items():
        for bits in weight_bits:
            made = quantize(model, bits)
            for width in activation_bits:
                with coded_inputs(made, width):
                    found = quality(made)
                points.append(Point(name, bits, width, payload_bits(made), found))
    return points


def pareto(points: Iterable[Point]) -> list[Point]:
    """Points that no other reaches with as few bits, by rising bits and quality."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.total_bits, -p.quality)):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return front


def best_at(points: Iterable[Point], budgets: Iterable[int]) -> dict[int, Point | None]:
    """The best point within each budget of bits; None where none fits."""
    front = pareto(points)
    within = {b: [p for p in front if p.total_bits <= b] for b in budgets}
    return {budget: (fits[-1] if fits else None) for budget, fits in within.items()}


@contextlib.contextmanager
def coded_inputs(model: nn.Module, bits: int) -> Generator[None]:
    """Inputs of linears and convolutions rounded to ``bits``, a scale per row (linears) or image.

    Symmetric, from each row's largest magnitude at run time. 16 bits and more change nothing.
    """
    if bits < 2:
        raise InputError(f"activations take at least 2 bits, got {bits}")
    top = 2 ** (bits - 1) - 1

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        over = (-1,) if hasattr(module, "in_features") else tuple(range(1, x.ndim))
        scale = x.abs().amax(over, keepdim=True).clamp(min=1e-12) / top
        return ((x / scale).round() * scale, *rest)

    layers = [] if bits >= 16 else products(model)
    hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def products(model: nn.Module) -> list[nn.Module]:
    """Linears and convolutions, coded ones too."""
    return [
        m
        for m in model.modules()
        if hasattr(m, "weight") and (hasattr(m, "in_features") or hasattr(m, "in_channels"))
    ]


def changed(reference: Tensor, other: Tensor, noise: Tensor | None = None) -> Tensor:
    """Share of choices ``(positions,)`` that differ between logits ``(batch, positions, tokens)``.

    With Gumbel ``noise`` of the same shape the choices are samples, both from the same draws;
    without it they are the most probable tokens.
    """
    if noise is not None:
        reference, other = reference + noise, other + noise
    return (reference.argmax(-1) != other.argmax(-1)).double().mean(0)


def drift(reference: Sequence[Tensor], other: Sequence[Tensor]) -> list[float]:
    """Distance of two trajectories of latents at each step, relative to the first's norm."""
    return [
        float((a - b).double().norm() / a.double().norm())
        for a, b in zip(reference, other, strict=True)
    ]


def activation_variances(
    model: nn.Module, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]
) -> Tensor:
    """Variance ``(calls, layers)`` of the inputs of linears and convolutions, call by call.

    Calls are the steps of a sampler, or the scales of a generator. Raises ``InputError`` for none.
    """
    layers, rows = products(model), list[list[float]]()

    def watch(i: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            rows[-1][i] = float(args[0].double().var())

        return hook

    hooks = [m.register_forward_pre_hook(watch(i)) for i, m in enumerate(layers)]
    try:
        with torch.no_grad():
            for args, kwargs in calls:
                rows.append([float("nan")] * len(layers))
                model(*args, **kwargs)
    finally:
        for one in hooks:
            one.remove()
    if not rows:
        raise InputError("no calls to take the variance of activations from")
    return torch.tensor(rows, dtype=torch.float64)


def noisy(model: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy with Gaussian noise on the weights of linears and convolutions, of ``share`` times
    each weight's deviation.
    """
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in products(made):
            weight = layer.weight
            if isinstance(weight, nn.Parameter) and weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                weight += share * weight.std() * noise
    return made
