"""Capture: run a workload under fake tensors and record every operator call (CONTRACTS, Capture).

Fake CPU tensors carry shapes but no data, so a network far larger than memory can be captured, and
attention, recurrent layers and fused encoders take the path that the CPU really takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from paredown.errors import CaptureError
from paredown.graph.graph import Graph
from paredown.graph.record import Recorder, user_frame
from paredown.graph.tensors import Faker, held, replace_tensors, walk
from paredown.workload import Workload


def fake_workload(workload: Workload) -> Workload:
    """The workload with fake CPU tensors for parameters, buffers and inputs: shapes without memory.

    Real, ``meta`` and already fake tensors are accepted; tied tensors stay tied. Data and judges
    are kept as they are.
    """
    mode = _mode_of(workload) or FakeTensorMode(allow_non_fake_inputs=True)
    faker = Faker(mode)
    model = replace_tensors(workload.model, faker, [t for _, _, t in held(workload.model)])
    call = (workload.inputs, workload.kwargs)
    inputs, kwargs = replace_tensors(call, faker, [t for _, t in walk(call)])
    return replace(workload, model=model, inputs=inputs, kwargs=kwargs,
                   aliases=dict(workload.aliases))


@contextlib.contextmanager
def fake(workload: Workload) -> Iterator[None]:
    """Enter the fake mode that a fake workload lives in: tensors made inside are fake too."""
    mode = _mode_of(workload)
    if mode is None:
        raise CaptureError(f"{workload.name} is not a fake workload: call fake_workload first")
    with mode:
        yield


def capture(workload: Workload, *, train: bool = False, already_fake: bool = False) -> Graph:
    """The operator graph of one run of the workload; ``Graph.source`` is the fake workload.

    ``train`` adds the backward pass and an optimizer step. ``already_fake`` says that the workload
    came from ``fake_workload`` (perhaps edited since): it is used as it is. Raises ``CaptureError``
    naming the user's line when the model raises or branches on data.
    """
    source = workload if already_fake and not _real_left(workload) else fake_workload(workload)
    mode = _mode_of(source) or FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        return _record(source)


def _record(source: Workload) -> Graph:
    recorder = Recorder(source.model)
    recorder.declare(source)
    training = {m: m.training for m in source.model.modules()}
    source.model.eval()
    try:
        with recorder, torch.no_grad():
            out = source.model(*source.inputs, **source.kwargs)
    except Exception as e:
        raise CaptureError(f"{source.name} raised in forward: {_one_line(e)}{user_frame(e)}") from e
    finally:
        for m, was in training.items():
            m.training = was
    graph = recorder.finish(out)
    graph.source = source
    return graph


def _one_line(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return f"{type(e).__name__}: {text[0] if text else ''}"


def _tensors(workload: Workload) -> Iterator[torch.Tensor]:
    yield from (t for _, _, t in held(workload.model))
    yield from (t for _, t in walk((workload.inputs, workload.kwargs)))


def _mode_of(workload: Workload) -> FakeTensorMode | None:
    return next((t.fake_mode for t in _tensors(workload) if isinstance(t, FakeTensor)), None)


def _real_left(workload: Workload) -> bool:
    return any(not isinstance(t, FakeTensor) for t in _tensors(workload))

