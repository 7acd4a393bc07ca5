"""The mean error that quantizing a layer makes, by output channel, for its bias to take back.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
arXiv:1906.04721, section 4.2, with the means taken from calibration data (their appendix; NNCF's
fast bias correction).

Deviation: each layer's error is that on the float network's inputs, so that one pass over the data
does for all layers; the paper's own goes through the network layer by layer.
"""

# torch keeps no public table of what a hook is given.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.runtime.onnx_layers import OnnxLayer
from paredown.techniques.quantize.common import kind_of
from paredown.workload import Workload

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class _Mean:
    """A mean by channel that grows."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, error: Tensor, channel: int) -> None:
        rows = error.movedim(channel, -1).reshape(-1, error.shape[channel]).double()
        total = rows.sum(dim=0)
        self.total = total if self.total is None else self.total + total
        self.count += len(rows)


def mean_errors(
    workload: Workload, forms: Mapping[str, nn.Module], divided: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean over the calibration data of each layer's output less its form's, ``(channels,)``.

    ``forms`` are quantized layers by the path of the float one; ``divided`` are factors by which
    the columns of a form's input are smaller. Layers that no input reaches are left out.
    """
    copy = workload.copy()
    copy.model.eval()
    found = {path: _Mean() for path in forms}

    def watch(path: str, form: nn.Module) -> Any:
        def after(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
        ) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            seen = (x / divided[path]).to(x.dtype) if path in divided else x
            got = form(seen)
            wanted = _computed(module, x) if isinstance(module, OnnxLayer) else out
            channel = -1 if kind_of(module) == "linear" else 1 - form.get_parameter("weight").ndim
            found[path].add(wanted.double() - got.double(), channel)

        return after

    for path, form in forms.items():
        copy.model.get_submodule(path).register_forward_hook(watch(path, form), with_kwargs=True)
    with torch.inference_mode():
        for call in copy.calibration_inputs():
            copy.once(call)
    return {p: m.total / m.count for p, m in found.items() if m.total is not None}


def _computed(layer: Any, x: Tensor) -> Tensor:
    """What a layer of an ONNX file computes, which called it does not.

    In the input's dtype: the file runs in float32 while a recipe has its parameters in bfloat16.
    """
    weight = layer.weight.to(x.dtype)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    if kind_of(layer) == "linear":
        return F.linear(x, weight, bias)
    conv: Any = _CONV[weight.ndim - 2]
    return conv(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
