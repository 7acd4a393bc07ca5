"""Second moments of what layers read on calibration inputs: ``X^T X / n`` per layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.graph.dependency import CONV
from paredown.workload import Workload

BATCHES = 16
"""Calibration batches read at most."""


def covariances(workload: Workload, layers: list[str]) -> dict[str, Tensor]:
    """Per layer path the second moment of its input columns, ``(columns, columns)``.

    Columns of a 2-D convolution are its unfolded patches; layers of other dimensions are left out.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = _columns(module, args[0].detach().float())
            if x is not None:
                sums[path] = sums.get(path, torch.zeros(())) + x.T @ x
                counts[path] = counts.get(path, 0) + len(x)

        return hook

    model = workload.model
    hooks = [model.get_submodule(p).register_forward_pre_hook(watch(p)) for p in layers]
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            for k, (args, kwargs) in enumerate(workload.calibration_inputs()):
                if k >= BATCHES:
                    break
                workload.once((args, kwargs))
    finally:
        for h in hooks:
            h.remove()
        for m, was in modes.items():
            m.training = was
    return {p: s / counts[p] for p, s in sums.items()}


def _columns(module: nn.Module, x: Tensor) -> Tensor | None:
    """Inputs as rows of the columns that the weight multiplies."""
    if not isinstance(module, CONV):
        return x.reshape(-1, x.shape[-1])
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        return None
    pad: Any = module.padding
    x = x if x.dim() == 4 else x[None]  # an image without a batch
    patches = F.unfold(x, module.kernel_size, module.dilation, pad, module.stride)
    return patches.transpose(1, 2).flatten(0, 1)
