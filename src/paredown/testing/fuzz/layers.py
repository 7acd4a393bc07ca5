"""Calls of `torch.nn.functional` that stand for a layer: the module with its own weights.

Techniques act on modules, so a convolution of a generated network is an `nn.Conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from paredown.testing.fuzz.call import Spec

Built = nn.Module | None
_F = "torch.nn.functional."

WEIGHTS: dict[str, tuple[str, ...]] = {
    **{f"{_F}conv{n}d": ("input", "weight", "bias") for n in (1, 2, 3)},
    **{f"{_F}conv_transpose{n}d": ("input", "weight", "bias") for n in (1, 2, 3)},
    f"{_F}linear": ("input", "weight", "bias"),
    f"{_F}batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    f"{_F}layer_norm": ("input", "normalized_shape", "weight", "bias"),
    f"{_F}rms_norm": ("input", "normalized_shape", "weight"),
    f"{_F}group_norm": ("input", "num_groups", "weight", "bias"),
    f"{_F}embedding": ("input", "weight"),
    f"{_F}prelu": ("input", "weight"),
}
"""Functions whose tensors after the first are weights, and the names of their first arguments."""

_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_MORE: dict[str, tuple[str, ...]] = {
    **{f"{_F}conv{n}d": _CONV for n in (1, 2, 3)},
    **{f"{_F}conv_transpose{n}d": _TRANSPOSED for n in (1, 2, 3)},
    f"{_F}batch_norm": ("training", "momentum", "eps"),
    f"{_F}layer_norm": ("eps",),
    f"{_F}rms_norm": ("eps",),
    f"{_F}group_norm": ("eps",),
    f"{_F}embedding": ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
}


def weighted(op: str) -> bool:
    """Whether a function's tensors after the first are weights."""
    return op in WEIGHTS


def layer(op: str, args: list[Any], kwargs: dict[str, Any]) -> Built:
    """The layer for a call in which tensors are given as `Spec`; None where no layer does that."""
    if op not in WEIGHTS:
        return None
    names = WEIGHTS[op] + _MORE.get(op, ())
    if len(args) > len(names):
        return None
    said = {**dict(zip(names, args, strict=False)), **kwargs}
    said = {k: v for k, v in said.items() if v is not None}
    kind = op.removeprefix(_F).removesuffix("1d").removesuffix("2d").removesuffix("3d")
    return _BUILD[kind](op, said)


def _conv(op: str, said: dict[str, Any]) -> Built:
    w, rest = _weight(said), {k: v for k, v in said.items() if k in (*_CONV, "output_padding")}
    if w is None:
        return None
    groups = rest.get("groups", 1)
    transposed = "transpose" in op
    cls = getattr(nn, f"{'ConvTranspose' if transposed else 'Conv'}{op[-2]}d")
    ins, outs = (w[0], w[1] * groups) if transposed else (w[1] * groups, w[0])
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()}
    sizes = {k: v[0] if isinstance(v, tuple) and len(v) == 1 else v for k, v in sizes.items()}
    return cls(ins, outs, tuple(w[2:]), bias="bias" in said, **sizes)


def _linear(op: str, said: dict[str, Any]) -> Built:
    w = _weight(said)
    if w is None or len(w) != 2:
        return None
    return nn.Linear(w[1], w[0], bias="bias" in said)


def _batch_norm(op: str, said: dict[str, Any]) -> Built:
    shape = said["input"].shape
    if said.get("training") or "running_mean" not in said or ("weight" in said) != ("bias" in said):
        return None
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if len(shape) not in cls:
        return None
    return cls[len(shape)](shape[1], eps=said.get("eps", 1e-5), affine="weight" in said)


def _layer_norm(op: str, said: dict[str, Any]) -> Built:
    if "weight" not in said:
        return None
    return nn.LayerNorm(said["normalized_shape"], said.get("eps", 1e-5), bias="bias" in said)


def _rms_norm(op: str, said: dict[str, Any]) -> Built:
    return nn.RMSNorm(said["normalized_shape"], said.get("eps")) if "weight" in said else None


def _group_norm(op: str, said: dict[str, Any]) -> Built:
    if "weight" not in said or "bias" not in said:
        return None
    return nn.GroupNorm(said["num_groups"], said["input"].shape[1], said.get("eps", 1e-5))


def _embedding(op: str, said: dict[str, Any]) -> Built:
    w = _weight(said)
    if w is None or set(said) - {"input", "weight"}:
        return None
    rows, width = w
    return nn.Embedding(rows, width)


def _prelu(op: str, said: dict[str, Any]) -> Built:
    w = _weight(said)
    return nn.PReLU(w[0]) if w is not None and len(w) == 1 else None


def _weight(said: dict[str, Any]) -> tuple[int, ...] | None:
    w = said.get("weight")
    return w.shape if isinstance(w, Spec) else None


_BUILD: dict[str, Callable[[str, dict[str, Any]], Built]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "prelu": _prelu,
}
