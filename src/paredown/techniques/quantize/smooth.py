"""Channels after a norm made even, their spread moved into the weights that read them.

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438, section 4): ``x W = (x / f) (f W)`` with
``f_j = max|x_j|^a / max|W_j|^(1 - a)``, ``1 / f`` folded into the norm before. Activations whose
channels spread widely then fit one range, and weights, which have a range for each output channel,
bear the spread.

Deviations: the strength ``a`` is chosen for each norm, of the paper's range and of none at all, by
the squared error expected of its linears; factors are what the norm's parameters hold after
rounding, so that a bfloat16 network computes the same too (a bias's remainder goes into the next).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.graph.capture import capture
from paredown.techniques.quantize.common import is_conv1d, matrix
from paredown.techniques.quantize.norm_flow import Fed, norms
from paredown.workload import Workload

STRENGTHS = (0.35, 0.5, 0.65, 0.8, 0.95)


Sides = tuple[Tensor, Tensor]
"""Of the columns that linears read: largest absolute value and mean square, ``(columns,)``."""


def sides_of(norm: Any) -> Sides:
    """What a norm's own parameters let expect of its outputs, without data.

    A normalised channel has a mean of 0 and a variance of 1; few values lie beyond `FAR` of these.
    """
    weight = norm.weight.detach().double().abs()
    bias = getattr(norm, "bias", None)
    off = torch.zeros_like(weight) if bias is None else bias.detach().double().abs()
    return FAR * weight + off, weight.square() + off.square()


FAR = 4.0
"""Deviations."""


def plan(
    workload: Workload,
    linears: Collection[str],
    sides: Callable[[dict[str, str]], dict[str, Sides]],
    steps: int = 127,
) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Norms to smooth with the linears that each feeds, and the norms' new parameters by name.

    Only norms that feed some of ``linears`` and nothing else. ``sides`` gives each norm's, from
    the first linear that it feeds.
    """
    model = workload.model
    if not any(isinstance(m, (nn.LayerNorm, nn.RMSNorm)) for m in model.modules()):
        return {}, {}
    fed = norms(workload, capture(workload), linears)
    found = {n: list(f.linears) for n, f in fed.items() if isinstance(f, Fed)}
    seen = sides({n: ls[0] for n, ls in found.items()}) if found else {}
    smoothed: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for norm, into in found.items():
        f = factors(seen[norm], [matrix(model.get_submodule(p)) for p in into], steps)
        if f is not None:
            smoothed[norm] = into
            for name, value in folded(model.get_submodule(norm), f).items():
                tensors[f"{norm}.{name}"] = value
    return smoothed, tensors


def factors(sides: Sides, weights: Sequence[Tensor], steps: int = 127) -> Tensor | None:
    """``(columns,)`` float64: what each column is divided by, None where that does not pay.

    ``weights`` are ``(out, columns)``, all reading the same columns; ``steps`` is the largest code
    of a weight. Columns that are always zero, or that no weight reads, keep 1.
    """
    peaks, squares = (t.double() for t in sides)
    both = torch.cat([w.double() for w in weights])
    widest = both.abs().amax(dim=0)
    live = (peaks > 0) & (widest > 0)
    best, least = None, expected_error(peaks, squares, both, steps)
    for strength in STRENGTHS:
        f = torch.ones_like(peaks)
        f[live] = peaks[live] ** strength / widest[live] ** (1 - strength)
        # One factor for all columns changes nothing: around 1 the norm's own size stays.
        f[live] /= f[live].log().mean().exp()
        error = expected_error(peaks / f, squares / f.square(), both * f, steps)
        if error < least:
            best, least = f, error
    return best


def expected_error(peaks: Tensor, squares: Tensor, weight: Tensor, steps: int) -> float:
    """Squared error of ``x W^T`` for 8-bit ``x`` in one range and ``W`` in a range a row.

    Rounding errors are taken as uniform and independent: a step squared over 12 each. ``peaks`` and
    ``squares`` are of the columns: largest absolute value and mean square.
    """
    step = peaks.max() / 127
    steps_of_rows = weight.abs().amax(dim=1) / steps
    of_inputs = step.square() * weight.square().sum()
    of_weights = steps_of_rows.square().sum() * squares.sum()
    return float((of_inputs + of_weights) / 12)


def folded(norm: Any, f: Tensor) -> dict[str, Tensor]:
    """The norm's new ``weight`` and ``bias`` (where it has one), divided by ``f``, in its dtype.

    A channel whose weight is zero, or would round to it, stays as it is.
    """
    old = norm.weight.detach()
    now = (old.double() / f).to(old.dtype)
    out = {"weight": torch.where(now == 0, old, now)}
    if getattr(norm, "bias", None) is not None:
        out["bias"] = (norm.bias.detach().double() / ratio(norm, out)).to(norm.bias.dtype)
    return out


def new_of(norm: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A smoothed norm's new parameters, by their own names."""
    both = {n: tensors.get(f"{norm}.{n}") for n in ("weight", "bias")}
    return {n: t for n, t in both.items() if t is not None}


def ratio(norm: Any, new: Mapping[str, Tensor]) -> Tensor:
    """What a norm's new weight divides by in truth, float64; 1 where it is zero."""
    old, now = norm.weight.detach().double(), new["weight"].double()
    return torch.where(now == 0, 1.0, old / torch.where(now == 0, 1.0, now))


def taken_up(layer: nn.Module, norm: Any, new: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A linear's ``(weight (out, in), offset (out,))`` in float64 behind a norm's new parameters.

    The offset belongs to its bias: what the norm's rounded bias leaves over.
    """
    f = ratio(norm, new)
    wide = matrix(layer).double() * f
    if "bias" not in new:
        return wide, torch.zeros(len(wide), dtype=wide.dtype)
    left = norm.bias.detach().double() / f - new["bias"].double()
    return wide, wide @ left


def layer_behind(
    model: nn.Module,
    path: str,
    smoothed: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor | None]:
    """A layer's ``(weight, bias)``, output channels first, with what its norm gave up taken up.

    The bias, where there is one, keeps its dtype; ``model`` still has the norms as they were.
    """
    old: Any = model.get_submodule(path)
    norm = next((n for n, linears in smoothed.items() if path in linears), None)
    if norm is None:
        return matrix(old), old.bias
    weight, offset = taken_up(old, model.get_submodule(norm), new_of(norm, tensors))
    bias = old.bias
    return weight, None if bias is None else (bias.detach().double() + offset).to(bias.dtype)


def fold(
    edit: Editor,
    smoothed: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Tensor],
    made: Collection[str],
    *,
    shifted: Collection[str] = (),
) -> None:
    """Give norms their new parameters. A linear not in ``made``, which stays in float, takes the
    factors in its own dtype; behind a norm in ``shifted`` it gets a bias where it has none.
    """
    for norm, linears in smoothed.items():
        new = new_of(norm, tensors)
        for path in (p for p in linears if new and p not in made):
            layer: Any = edit.model.get_submodule(path)
            weight, offset = taken_up(layer, edit.model.get_submodule(norm), new)
            turned = weight.t().contiguous() if is_conv1d(layer) else weight
            edit.tensor(path, "weight", turned.to(layer.weight.dtype))
            if layer.bias is not None:
                bias = (layer.bias.detach().double() + offset).to(layer.bias.dtype)
                edit.tensor(path, "bias", bias)
            elif norm in shifted:
                edit.tensor(path, "bias", offset.to(layer.weight.dtype))
        for name, value in new.items():
            edit.tensor(norm, name, value)
