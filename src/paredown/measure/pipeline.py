"""`pare profile TARGET --pipeline`: what surrounds a vision network, measured and modelled.

After Beyond Inference (arXiv:2403.12981). Pictures of three sizes are decoded, resized, normalised
and copied in front of the network; one at a time gives each stage's share, many at a time the
throughput, which is predicted from the first by `cost.serving.pipeline`. Every worker is one
thread; the machine's allowed cores are shared. Deviations: CPU alone, brokers of our own
(`measure.brokers`), no image crop; the paper serves on a GPU with Triton, DALI, Redis and Kafka.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paredown.cost.serving.pipeline import Station, Trace, amdahl, bottleneck, bound, simulate
from paredown.errors import InputError, NotApplicable
from paredown.figure import Figure, counted, measured, predicted
from paredown.measure import pictures
from paredown.measure.brokers import KINDS, Kind
from paredown.measure.child import tell
from paredown.measure.compare import latency
from paredown.measure.fingerprint import cores, fingerprint
from paredown.measure.served import Log, Spans, Stage, Work, serve
from paredown.result import PipelineDoc, PipelinePicture, PipelineRun

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paredown.workload import Workload

PIXELS = (64, 512, 3000)
"""Sides of a small, a medium and a large picture."""
STAGES = ("decode", "resize", "normalise", "copy", "inference", "post")
RUN_S, FEWEST, MOST = 1.5, 24, 600
CONCURRENCY = 8
STUCK = 5.0


@dataclass(frozen=True)
class Image:
    """What a network reads: a batch of pictures as one tensor (batch, channels, height, width)."""

    batch: int
    channels: int
    height: int
    width: int


def image_of(workload: Workload) -> Image:
    """The picture that a workload reads. Raises ``NotApplicable`` for one that reads others."""
    import torch

    inputs = workload.inputs
    if workload.run != "forward" or workload.kwargs or len(inputs) != 1:
        raise NotApplicable(f"{workload.name}: --pipeline needs one run with one input, a picture")
    x = inputs[0]
    if not isinstance(x, torch.Tensor) or x.dim() != 4 or not x.is_floating_point():
        raise NotApplicable(f"{workload.name}: --pipeline needs a batch of pictures as its input")
    if x.shape[1] not in (1, 3):
        raise NotApplicable(
            f"{workload.name}: its input has {x.shape[1]} channels, a picture has 1 or 3"
        )
    return Image(*x.shape)


def network(workload: Workload, backend: str) -> Callable[[], Work]:
    """The network as a stage's worker: copy into the batch, run, copy the results out.

    Each worker compiles its own executable for one thread. A batch that is not full keeps what lay
    in its other rows.
    """
    import torch
    from torch.utils import _pytree

    from paredown import runtime

    def make() -> Work:
        run = runtime.backend(backend).lower(workload, threads=1)
        held = workload.inputs[0].clone()
        run(held)

        def work(arrays: list[NDArray[Any]], spans: Spans) -> list[list[NDArray[Any]]]:
            with spans.span("copy"):
                for i, a in enumerate(arrays):
                    held[i].copy_(torch.from_numpy(a if a.flags.writeable else a.copy()))
            with spans.span("inference"):
                out = run(held)
            with spans.span("post"):
                leaves = [t for t in _pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
                rows = [t.float().numpy().copy() for t in leaves if t.dim() and len(t) == len(held)]
            return [[r[i] for r in rows] for i in range(len(arrays))]

        return work

    return make


def chained(first: Callable[[], Work], second: Callable[[], Work]) -> Callable[[], Work]:
    """Two stages in one worker: nothing is handed over."""

    def make() -> Work:
        one, two = first(), second()

        def work(arrays: list[NDArray[Any]], spans: Spans) -> list[list[NDArray[Any]]]:
            return two([a for made in one(arrays, spans) for a in made], spans)

        return work

    return make


def requests_for(seconds: float, concurrency: int) -> int:
    """How many requests of so many seconds fill a run."""
    return int(np.clip(RUN_S / max(seconds, 1e-6), max(FEWEST, 4 * concurrency), MOST))


def stations(logs: Sequence[Log], stages: Sequence[Stage]) -> list[Station]:
    """Stages with the service times of runs with one request at a time, their first two left out.

    What handing over takes beyond the sender's own time is the receiver's. A service of more than
    ``STUCK`` medians was interrupted by other work on the machine and is left out.
    """
    found: list[Station] = []
    for at, s in enumerate(stages):
        seconds: list[float] = []
        for log in logs:
            extra = 0.0
            if at and s.given != "queue":
                beyond = np.median(log.handing[s.name]) - np.median(log.sending[s.name])
                extra = max(0.0, float(beyond))
            limit = STUCK * float(np.median(log.services[s.name]))
            seconds += [x + extra for x in log.services[s.name][2:] if x <= limit]
        found.append(Station(s.name, tuple(seconds), s.workers, batch=s.batch))
    return found


@dataclass(frozen=True)
class Compared:
    """Ways to serve: the model from one request at a time, its forecast, and what was measured."""

    stations: list[Station]
    told: Trace
    real: Trace
    alone: list[Log]


def compared(
    stages: Sequence[Stage], payloads: Sequence[NDArray[Any]], concurrency: int
) -> Compared:
    """Serve one at a time, many at a time, and one at a time again, as a machine's speed drifts."""
    many = len(cores())
    alone = [Stage(s.name, s.make, given=s.given) for s in stages]
    trial = serve(alone, payloads, concurrency=1, requests=4)
    seconds = sum(float(np.median(v)) for v in trial.services.values())
    few = max(6, requests_for(seconds, 1) // 2)
    count = requests_for(seconds / min(many, 1 + stages[0].workers), concurrency)
    logs = [serve(alone, payloads, concurrency=1, requests=few)]
    real = serve(stages, payloads, concurrency=concurrency, requests=count).trace
    logs.append(serve(alone, payloads, concurrency=1, requests=few))
    model = stations(logs, stages)
    told = simulate(model, concurrency=concurrency, requests=MOST, cores=many)
    return Compared(model, told, real, logs)


def profile(
    workload: Workload,
    *,
    backend: str,
    sizes: Sequence[int] = PIXELS,
    codec: pictures.Codec = "jpeg",
    concurrency: int = CONCURRENCY,
) -> PipelineDoc:
    """Measure the stages and the served pipeline, in this process.

    Raises ``NotApplicable`` for a network that reads no pictures, ``MissingExtra`` without Pillow.
    """
    image = image_of(workload)
    pictures.require()
    if not sizes or min(sizes) < 8 or concurrency < 1:
        raise InputError(f"pictures have at least 8 pixels a side, got {list(sizes)}")
    many = len(cores())
    rows: list[PipelinePicture] = []
    runs: list[PipelineRun] = []
    middle = sorted(sizes)[len(sizes) // 2]
    for pixels in sizes:
        tell(f"pictures of {pixels} pixels")
        payloads = files(pixels, codec)
        prepare = pictures.preprocess(image.height, image.width, image.channels)
        net = network(workload, backend)
        fused = [Stage("pipeline", chained(prepare, net))]
        first = serve(fused, payloads, concurrency=1, requests=4)
        count = requests_for(float(np.median(first.services["pipeline"])), 1)
        rows.append(picture_row(pixels, payloads, serve(fused, payloads, concurrency=1,
                                                        requests=count)))  # fmt: skip
        cases: list[tuple[Kind | None, int]] = [(None, 1), ("queue", 1), ("queue", many)]
        if pixels == middle:
            cases.extend((k, 1) for k in KINDS[1:])
        for kind, workers in dict.fromkeys(cases):
            runs.append(
                run_row(pixels, payloads, prepare, net, kind, workers, image.batch, concurrency)
            )
    return PipelineDoc(
        target=workload.name,
        backend=backend,
        batch=image.batch,
        shape=[image.channels, image.height, image.width],
        codec=codec,
        cores=many,
        pictures=rows,
        runs=runs,
        fingerprint=fingerprint(),
        notes=["every worker is one thread; pictures are made, their spectrum is a photograph's"],
    )


def files(pixels: int, codec: pictures.Codec = "jpeg") -> list[NDArray[Any]]:
    """Files to serve round and round: three, one where making it takes seconds."""
    return [pictures.stored(pixels, codec, seed) for seed in range(3 if pixels <= 1024 else 1)]


def picture_row(pixels: int, payloads: Sequence[NDArray[Any]], log: Log) -> PipelinePicture:
    """Shares of the stages, one request at a time; the first requests are left out."""
    steady = log.trace.steady
    spans = {s: [log.spans[i].get(s, 0.0) for i in steady] for s in STAGES}
    whole = log.trace.latencies
    share = float(np.sum(spans["inference"]) / np.sum(whole))
    return PipelinePicture(
        pixels=pixels,
        file_bytes=counted(round(float(np.mean([len(p) for p in payloads]))), "B"),
        stages={name: latency(seconds) for name, seconds in spans.items()},
        latency=latency(whole),
        spans=measured(float(np.median(log.covered())), "x", n=len(steady)),
        outside=measured(1 - share, "share", n=len(steady)),
        without_network=predicted(amdahl(share), "x", reason="Amdahl, a network of no time"),
        without_the_rest=predicted(amdahl(1 - share), "x", reason="Amdahl, the network alone"),
    )


def run_row(
    pixels: int,
    payloads: Sequence[NDArray[Any]],
    prepare: Callable[[], Work],
    net: Callable[[], Work],
    kind: Kind | None,
    workers: int,
    batch: int,
    concurrency: int,
) -> PipelineRun:
    """One way to serve: predicted from one request at a time, then measured with many."""
    many = len(cores())
    if kind is None:
        stages = [Stage("pipeline", chained(prepare, net), workers)]
    else:
        stages = [
            Stage("preprocess", prepare, workers),
            Stage("network", net, batch=batch, given=kind),
        ]
    found = compared(stages, payloads, concurrency)
    real, told, model = found.real, found.told, found.stations
    return PipelineRun(
        pixels=pixels,
        broker=kind or "fused",
        workers=workers,
        concurrency=concurrency,
        bottleneck=bottleneck(model, many)[0],
        bound=predicted(bound(model, concurrency=concurrency, cores=many), "runs/s"),
        throughput_predicted=predicted(told.throughput, "runs/s"),
        throughput=measured(real.throughput, "runs/s", n=len(real.steady)),
        latency_predicted=predicted(float(np.median(told.latencies)), "s"),
        latency=latency(real.latencies),
        alone=latency([x for log in found.alone for x in log.trace.latencies]),
        handing=_handing(found.alone),
        littles_ratio=measured(real.littles_ratio, "x", n=len(real.steady)),
    )


def _handing(logs: Sequence[Log]) -> Figure | None:
    taken = [x for log in logs for x in log.handing.get("network", [])[2:]]
    return latency(taken) if taken else None
