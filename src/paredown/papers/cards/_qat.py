"""Quantization-aware training for the whitepaper's card (arXiv:1806.08342, section 3.2).

Fake quantization in the forward pass, straight-through gradients inside the range and none outside,
from a trained float network whose norms are folded: batch norm is frozen from the start (the paper
freezes it after some hundred thousand steps).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paredown.graph.capture import capture
from paredown.papers.cards import _task
from paredown.runtime.quantized import QuantConv, QuantLinear
from paredown.techniques.quantize.static_int8 import StaticInt8
from paredown.workload import Workload
from paredown.workloads import clutter
from paredown.workloads.fit import Phase, fit


class FakeWeight(nn.Module):
    """Symmetric fake quantization, a scale per output channel from the weight's present range."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.limit = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        """The weight rounded to ``2 * limit + 1`` levels per output channel (axis 0)."""
        peaks = weight.detach().abs().flatten(1).amax(1)
        scale = (peaks / self.limit).clamp(min=1e-12)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zero, 0, -self.limit, self.limit
        )


def prepare(floats: Workload, bits: int) -> nn.Module:
    """A copy whose convolutions and linears see fake-quantized weights and uint8 inputs.

    Input ranges are those of post-training calibration; they stay fixed.
    """
    technique = StaticInt8(smooth=False, correct=False)
    change = technique.apply(floats, technique.sites(floats, capture(floats)))
    model = floats.own().model
    for path, form in change.workload.model.named_modules():
        if isinstance(form, (QuantConv, QuantLinear)):
            layer = model.get_submodule(path)
            parametrize.register_parametrization(layer, "weight", FakeWeight(bits))
            layer.register_forward_pre_hook(_fake_input(float(form.in_scale), int(form.in_zero)))
    return model


def _fake_input(scale: float, zero: int) -> Any:
    def quantize(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        return (torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255), *rest)

    return quantize


def trained(floats: Workload, bits: int | None, seed: int, budget: _task.Budget) -> nn.Module:
    """The fake-quantized network (``bits`` None: the float one) after a short fine-tuning.

    It takes a quarter of the epochs that the float training took.
    """
    model = floats.own().model if bits is None else prepare(floats, bits)
    batches = clutter.Scenes(
        budget.size, batch=budget.batch, noise=_task.NOISE, pieces=_task.PIECES
    )
    epochs = max(1, budget.epochs // 4)
    fit(model, [Phase(batches, epochs)], rate=budget.rate / 6, seed=seed + 100, decay=0.0)
    return model
