"""Capture: run a workload under fake tensors and record every operator call (CONTRACTS, Capture).

Fake CPU tensors carry shapes but no data, so a network far larger than memory can be captured, and
attention, recurrent layers and fused encoders take the path that the CPU really takes.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from paredown.errors import CaptureError
from paredown.graph import rules
from paredown.graph.graph import Graph
from paredown.graph.lines import last_user_line
from paredown.graph.mend import as_on_the_device
from paredown.graph.record import Recorder
from paredown.graph.tensors import Faker, held, materialise, replace_tensors, walk
from paredown.graph.train import training_step
from paredown.workload import Workload

_BRANCHES = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
)


def fake_workload(workload: Workload) -> Workload:
    """Copy a workload with fake CPU tensors for parameters, buffers and inputs: no memory.

    Real, ``meta`` and already fake tensors are accepted; tied tensors stay tied. Data and judges
    are kept as they are.
    """
    mode = _mode_of(workload) or FakeTensorMode(allow_non_fake_inputs=True)
    with torch.inference_mode(False):
        return _with_tensors(workload, Faker(mode))


@contextlib.contextmanager
def fake(workload: Workload) -> Generator[None]:
    """Enter the fake mode that a fake workload lives in: tensors made inside are fake too."""
    mode = _mode_of(workload)
    if mode is None:
        raise CaptureError(f"{workload.name} is not a fake workload: call fake_workload first")
    with mode:
        yield


def capture(workload: Workload, *, train: bool = False, already_fake: bool = False) -> Graph:
    """Record the operator graph of one run; ``Graph.source`` is the fake workload it ran.

    A loop (``generate``, ``stream``, ``sample``) is recorded whole, call after call. ``train`` (or
    a ``train_step`` workload) adds the backward pass and an optimizer step.
    ``already_fake`` says that the workload came from ``fake_workload`` (perhaps edited since): it
    is used as it is. A model that branches on data is run again with real weights when they fit in
    free memory. Raises ``CaptureError`` naming the user's line when the model raises, or branches
    on data and does not fit.
    """
    loop = workload.loop
    if loop is not None:
        if train:
            raise CaptureError(f"{workload.name}: a run of {workload.run!r} is not trained")
        why = loop.why_not(workload.model, workload.inputs, workload.kwargs)
        if why is not None:
            raise CaptureError(f"{workload.name}: {why}")
    train = train or workload.run == "train_step"
    own = getattr(workload.model, "own_graph", None)
    if own is not None:
        # An ONNX file has operators of its own and no torch module to record.
        if train:
            raise CaptureError(f"{workload.name} is an ONNX file: it cannot be trained")
        source = workload if already_fake else fake_workload(workload)
        graph = own(source.inputs, source.kwargs)
        graph.source = source
        return graph
    source = workload if already_fake and not _real_left(workload) else fake_workload(workload)
    mode = _mode_of(source) or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.inference_mode(False), mode, as_on_the_device():
            graph = _record(source, train)
    except Exception as e:
        graph = _again_with_real_weights(workload, source, train, e)
    graph.source = source
    return rules.annotate(graph)


def capture_run(
    workload: Workload, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Graph:
    """Record one real run on these inputs, with the branches that they take (`graph.varying`).

    Runs the model as it is, with its weights; ``Graph.source`` is the workload with these inputs.
    Raises ``CaptureError`` naming the user's line when the model raises.
    """
    source = replace(workload, inputs=args, kwargs=dict(kwargs or {}))
    try:
        with torch.inference_mode(False):
            graph = _record(source, train=False)
    except Exception as e:
        where = last_user_line(e, __file__)
        raise CaptureError(f"{workload.name} raised in forward{where}: {_line_of(e)}") from e
    graph.source = source
    return rules.annotate(graph)


def _record(source: Workload, train: bool) -> Graph:
    recorder = Recorder(source.model)
    recorder.declare(source)
    with _training_flags(source, train):
        if train:
            out, note = training_step(source, recorder)
        else:
            out, note = _run(source, recorder)
    graph = recorder.finish(out)
    if note:
        graph.notes.append(note)
    return graph


def _run(source: Workload, recorder: Recorder) -> tuple[Any, str | None]:
    """One whole run, every call of a loop recorded: counts and lifetimes are exact as they stand.

    A cache that grows makes each step another amount of work, and how it grows is the model's own
    affair (windows, compressed states): no step stands for the others.
    """
    loop = source.loop
    if loop is None:
        with recorder, torch.no_grad():
            return source.once(), None
    first, later = loop.phases

    def after(_: int) -> None:
        recorder.phase = later  # type: ignore[assignment]

    recorder.phase = first  # type: ignore[assignment]
    with recorder, torch.no_grad():
        out = source.once(after=after)
    return out, f"one run is {loop.words(source.inputs, source.kwargs)}, captured whole"


@contextlib.contextmanager
def _training_flags(source: Workload, train: bool) -> Generator[None]:
    """All modules in training or evaluation mode, put back afterwards."""
    flags = {m: m.training for m in source.model.modules()}
    source.model.train(train)
    try:
        yield
    finally:
        for m, was in flags.items():
            m.training = was


def _again_with_real_weights(
    workload: Workload, source: Workload, train: bool, why: Exception
) -> Graph:
    """Run on real tensors what fake ones could not; a second failure is the user's to see."""
    where = last_user_line(why, __file__)
    reason = f"{type(why).__name__}{where}"
    need, free = 2 * _bytes(workload), free_memory()
    if need > free:
        branches = isinstance(why, _BRANCHES)
        what = "branches on data" if branches else f"cannot run on fake tensors: {_line_of(why)}"
        raise CaptureError(
            f"{workload.name} {what}{where}; running it with real weights needs "
            f"{need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        ) from why
    random = any(isinstance(t, FakeTensor) or t.device.type == "meta" for t in _tensors(workload))
    try:
        with torch.inference_mode(False), as_on_the_device():
            graph = _record(_with_tensors(workload, materialise), train)
    except Exception as e:
        where = last_user_line(e, __file__)
        raise CaptureError(f"{workload.name} raised in forward{where}: {_line_of(e)}") from e
    kind = "random" if random else "real"
    graph.notes.append(f"captured with {kind} weights, since fake tensors stopped with {reason}")
    return graph


def _with_tensors(workload: Workload, new: Any) -> Workload:
    """Copy a workload whose tensors are each replaced by ``new(tensor)``."""
    call = (workload.inputs, workload.kwargs)
    try:
        model = replace_tensors(workload.model, new, [t for _, _, t in held(workload.model)])
        inputs, kwargs = replace_tensors(call, new, [t for _, t in walk(call)])
    except (TypeError, RuntimeError, copy.Error) as e:
        raise CaptureError(f"{workload.name} cannot be copied: {_line_of(e)}") from e
    aliases = dict(workload.aliases)
    return replace(workload, model=model, inputs=inputs, kwargs=kwargs, aliases=aliases)


def _line_of(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return f"{type(e).__name__}: {text[0]}" if text else type(e).__name__


def _tensors(workload: Workload) -> Iterator[torch.Tensor]:
    yield from (t for _, _, t in held(workload.model))
    yield from (t for _, t in walk((workload.inputs, workload.kwargs)))


def _mode_of(workload: Workload) -> FakeTensorMode | None:
    return next((t.fake_mode for t in _tensors(workload) if isinstance(t, FakeTensor)), None)


def _real_left(workload: Workload) -> bool:
    return any(not isinstance(t, FakeTensor) for t in _tensors(workload))


def _bytes(workload: Workload) -> int:
    unique = {id(t): t for t in _tensors(workload)}.values()
    return sum(t.numel() * t.element_size() for t in unique)


def free_memory() -> int:
    """Return the bytes available to new allocations, as the kernel estimates them."""
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 0
