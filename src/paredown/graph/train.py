"""One training step for capture: forward, backward, and an AdamW update with its
states in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from paredown.errors import CaptureError
from paredown.graph.record import Recorder
from paredown.graph.tensors import Faker, replace_tensors, walk
from paredown.workload import Workload

_MOMENTS = ("exp_avg", "exp_avg_sq")


def training_step(workload: Workload, recorder: Recorder) -> tuple[Any, str]:
    """Record one step; returns the outputs and a note on loss and optimizer.

    The loss is the workload's own where it has training data, else the sum of the means of all
    floating-point outputs. Optimizer states exist before the step, as they do from the second one
    on.
    """
    trained = [p for p in workload.model.parameters() if p.requires_grad]
    if not trained:
        raise CaptureError(f"{workload.name} has no parameter that requires a gradient")
    optimizer = torch.optim.AdamW(trained, fused=True)
    _make_states(optimizer, trained)
    for i, p in enumerate(trained):
        for name, value in optimizer.state[p].items():
            recorder.state(f"optimizer.{i}.{name}", value)
    (inputs, kwargs), target = _batch(workload)
    with recorder, torch.enable_grad():
        out = workload.model(*inputs, **kwargs)
        loss = _loss(workload, out, target)
        recorder.phase = "backward"
        loss.backward()
        recorder.phase = "optimizer"
        optimizer.step()
    own = workload.training is not None and workload.training.loss is not None
    loss_name = "the workload's loss" if own else "the mean of its outputs as loss"
    return out, f"training step with {loss_name} and AdamW (fused)"


def _make_states(optimizer: torch.optim.Optimizer, trained: list[Any]) -> None:
    for p in trained:
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32),
            **{m: torch.zeros_like(p, memory_format=torch.preserve_format) for m in _MOMENTS},
        }


def _batch(workload: Workload) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], Any]:
    """Inputs and target of one step: the first training batch where there is one with a loss."""
    data = workload.training
    if data is None or data.loss is None:
        return (workload.inputs, workload.kwargs), None
    inputs, target = next(iter(data.batches()))
    held_by = (p.fake_mode for p in workload.model.parameters() if isinstance(p, FakeTensor))
    mode = next(held_by, None)
    if mode is not None:
        both = (inputs, target)
        inputs, target = replace_tensors(both, Faker(mode), [t for _, t in walk(both)])
    return (inputs, {}), target


def _loss(workload: Workload, out: Any, target: Any) -> torch.Tensor:
    if target is not None and workload.training is not None and workload.training.loss is not None:
        return workload.training.loss(out, target)
    parts = [t.float().mean() for _, t in walk(out) if t.is_floating_point() and t.requires_grad]
    if not parts:
        raise CaptureError(f"{workload.name} returns no floating-point output to train on")
    return torch.stack(parts).sum()
