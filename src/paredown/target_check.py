"""Whether a target runs: its example inputs, its calibration data, its judges."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from paredown.blame import blame
from paredown.errors import CaptureError, InputError, ParedownError, TargetError
from paredown.quality import judge, tensors
from paredown.workload import Workload, as_call


def validate(workload: Workload, *, judges: bool = False) -> Workload:
    """Prove that a workload runs before compute is spent on it; returns it.

    One forward on the example inputs (a fake one when the weights are not in memory), its output
    free of NaN; calibration data not empty, finite and accepted by the model; with ``judges``,
    ``evaluate`` and ``verify`` once on the model. Raises ``TargetError`` or ``InputError``.
    """
    if not isinstance(cast(object, workload.model), nn.Module):
        raise TargetError(f"{workload.name}: the model is a {type(workload.model).__name__}, "
                          "not an nn.Module")  # fmt: skip
    given = [t for _, t in tensors((workload.inputs, workload.kwargs))]
    if not given and workload.run != "train_step":
        raise TargetError(f"{workload.name} has no example inputs")
    if workload.loop is not None:
        why = workload.loop.why_not(workload.model, workload.inputs, workload.kwargs)
        if why is not None:
            raise TargetError(f"{workload.name}, run={workload.run!r}: {why}")
    for t in given:
        if not t.is_meta and t.is_floating_point() and bool(t.isnan().any()):
            raise TargetError(f"{workload.name}: an example input contains NaN")
    if _weightless(workload):
        from paredown.graph.capture import capture

        try:
            capture(workload)
        except CaptureError as e:
            raise TargetError(str(e)) from e
        return workload
    _forward(workload, workload.inputs, workload.kwargs, "")
    _calibration(workload)
    if judges:
        for who in ("evaluate", "verify"):
            f = getattr(workload, who)
            if f is not None:
                judge(f, workload.model, who=who)
    return workload


def _weightless(workload: Workload) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    own = [*workload.model.parameters(), *workload.model.buffers()]
    return any(t.is_meta or isinstance(t, FakeTensor) for t in own)


def _forward(workload: Workload, args: tuple[Any, ...], kwargs: dict[str, Any], on: str) -> None:
    training = workload.model.training
    workload.model.eval()
    try:
        with torch.inference_mode():
            out = workload.judged((args, kwargs))
    except ParedownError:
        raise
    except Exception as e:
        shapes = ", ".join(str(tuple(t.shape)) for _, t in tensors((args, kwargs)))
        raise TargetError(f"{workload.name} raised in forward{on} with inputs of shape {shapes}: "
                          f"{blame(e)}") from e  # fmt: skip
    finally:
        workload.model.train(training)
    for name, t in tensors(out):
        if t.is_floating_point() and bool(t.isnan().any()):
            bad, label = int(t.isnan().sum()), f"output {name!r}" if name else "the output"
            raise TargetError(
                f"{workload.name}: {label} contains NaN{on} ({bad} of {t.numel()} values)"
            )


def _calibration(workload: Workload) -> None:
    data = workload.calibration
    if data is None:
        return
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(f"{workload.name}: calibration must be a sequence (a list of items), "
                         f"got {type(data).__name__}")  # fmt: skip
    if len(data) == 0:
        raise InputError(f"{workload.name}: the calibration data is empty")
    for i, item in enumerate(data):
        for _, t in tensors(as_call(item)):
            if t.is_floating_point() and not bool(t.isfinite().all()):
                raise InputError(f"{workload.name}: calibration item {i} contains NaN or infinity")
    args, kwargs = as_call(data[0])
    _forward(workload, args, kwargs, " on calibration item 0")
