"""Claim card of Beyond Inference: what surrounds a vision network, here on two cores."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from paredown.cost.serving.pipeline import Station, bottleneck, simulate
from paredown.figure import Figure
from paredown.measure import pictures
from paredown.measure.brokers import Kind
from paredown.measure.child import Jobs, Limits
from paredown.measure.fingerprint import cores
from paredown.measure.pipeline import STUCK, chained, compared, files, network, picture_row
from paredown.measure.served import Spans, Stage, Work, serve
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    mean_and_power,
    mean_figure,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from paredown.workload import Workload

SIZES = (64, 512, 3000)
FACES = (1, 25)
BROKERS: tuple[Kind | None, ...] = (None, "memory", "log", "synced log")
REPEATS = {"quick": 6, "full": 10}
BROKER_REPEATS = 2
"""At the quick scale: nothing hangs on them."""
NETWORK, SIDE = "zoo:mobilenetv2?width=0.5", 96
CONCURRENCY = 4


class BeyondInferenceCard(Card):
    """MobileNetV2 at half width and 96 pixels, in eager with one thread; JPEG files by Pillow.

    No GPU, so what is moved to one and what competes for it is left out; the paper's brokers are
    Redis and Kafka. How the brokers rank is reported and asks for nothing.
    """

    key = "beyond-inference"
    claim = (
        "processing and data movement take up to 56% of the latency of a medium picture and most "
        "of a large one's, and bound throughput (brokers and GPUs left out)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "spans_off_the_end_to_end_time": 0.02,
        "off_littles_law": 0.05,
        "outside_share_large": 0.5,
        "off_the_throughput_without_the_bottleneck": 0.15,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Stages one by one; the large picture served whole, without decoding, by two; brokers."""
        t = self.thresholds
        repeats = REPEATS[scale]
        found = Jobs().run(
            _job, repeats, limits=Limits.default(90.0 * repeats), on_message=progress
        )
        rows, served, brokers = found["pictures"], found["served"], found["brokers"]
        large = [r["outside"] for r in rows if r["pixels"] == SIZES[-1]]
        share, power = mean_and_power(large)
        spans = max(abs(r["spans"] - 1) for r in rows)
        little = max(abs(r["littles_ratio"] - 1) for r in served)
        freed = [r["throughput"] / r["predicted"] for r in served if r["removed"]]
        ratio, spread = mean_and_power(freed)
        checks = [
            Check("spans off the time from arrival to end", spans, "<=",
                  t["spans_off_the_end_to_end_time"]),
            Check("off Little's law, worst run", little, "<=", t["off_littles_law"]),
            Check(f"outside the network, {SIZES[-1]} pixels", share, ">=",
                  t["outside_share_large"], power, "share"),
            Check("throughput without the bottleneck, measured off predicted", abs(ratio - 1), "<=",
                  t["off_the_throughput_without_the_bottleneck"], spread, "x"),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            f"outside the network, {p} pixels": mean_figure(
                [r["outside"] for r in rows if r["pixels"] == p], "share"
            )
            for p in SIZES
        }
        kept = next(r for r in served if not r["removed"])
        figures["throughput with it removed over whole"] = mean_figure(
            [r["throughput"] / w["throughput"]
             for r, w in zip(*_halves(served), strict=True)], "x"
        )  # fmt: skip
        for faces in FACES:
            mine = [r for r in brokers if r["faces"] == faces]
            for name in ("memory", "log", "synced log"):
                figures[f"{faces} faces: {name} over fused"] = mean_figure(
                    [r[name] / r["fused"] for r in mine], "x"
                )
        tables = {"pictures": rows, "served": served, "brokers": brokers,
                  "bottleneck": [{"bottleneck": kept["bottleneck"]}]}  # fmt: skip
        return Experiment(figures, checks, list(range(repeats)), tables)


def _halves(served: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs without the bottleneck, and those with it, by repeat."""
    return [r for r in served if r["removed"]], [r for r in served if not r["removed"]]


def _job(repeats: int) -> dict[str, Any]:
    """Everything that is timed, in a process of its own."""
    import torch

    from paredown.measure.child import tell

    torch.set_num_threads(1)
    work = workload()
    payloads = {p: files(p) for p in SIZES}
    found: dict[str, Any] = {"pictures": [], "served": [], "brokers": []}
    for repeat in range(repeats):
        if repeat % 2 == 0:
            for pixels in SIZES:
                found["pictures"].append(share_row(work, pixels, payloads[pixels], repeat))
        found["served"] += served_rows(work, payloads[SIZES[-1]], repeat)
        if repeat < BROKER_REPEATS or repeats > REPEATS["quick"]:
            found["brokers"] += [faces_row(work, payloads[SIZES[1]], n, repeat) for n in FACES]
        tell(f"repeat {repeat + 1} of {repeats}: {found['pictures'][-1]['outside']:.0%} outside")
    return found


def workload() -> Workload:
    """The classifier that is served."""
    import torch

    from paredown import targets

    made = targets.resolve(NETWORK)
    made.inputs = (torch.zeros(1, 3, SIDE, SIDE),)
    return made


def share_row(
    work: Workload, pixels: int, payloads: list[NDArray[Any]], repeat: int
) -> dict[str, Any]:
    """One request at a time: medians of the stages, the share outside the network."""
    stage = Stage("pipeline", chained(pictures.preprocess(SIDE, SIDE), network(work, "eager")))
    count = 9 if pixels > 1024 else 24
    row = picture_row(pixels, payloads, serve([stage], payloads, concurrency=1, requests=count))
    return {
        "pixels": pixels, "repeat": repeat, "outside": row.outside.known(),
        "spans": row.spans.known(), **{k: f.known() for k, f in row.stages.items()},
    }  # fmt: skip


def served_rows(work: Workload, payloads: list[NDArray[Any]], repeat: int) -> list[dict[str, Any]]:
    """A large picture served whole, and with its bottleneck's main stage (decoding) removed.

    The second is predicted from the first: each service's time less that of its decoding.
    """
    stages = [
        Stage("preprocess", pictures.preprocess(SIDE, SIDE)),
        Stage("network", network(work, "eager")),
    ]
    whole = compared(stages, payloads, CONCURRENCY)
    first, second = whole.stations
    left = tuple(
        service - spans["decode"]
        for log in whole.alone
        for service, spans in list(zip(log.services["preprocess"], log.spans, strict=True))[2:]
        if service <= STUCK * first.mean
    )
    without = Station(first.name, left)
    many = len(cores())
    predicted = simulate([without, second], concurrency=CONCURRENCY, requests=400, cores=many)
    stages[0] = Stage("preprocess", pictures.preprocess(SIDE, SIDE, decoded=opened(payloads)))
    which = [np.array([i]) for i in range(len(payloads))]
    freed = serve(stages, which, concurrency=CONCURRENCY, requests=32).trace
    shared = {"repeat": repeat, "bottleneck": bottleneck(whole.stations, many)[0]}
    return [
        {**shared, "removed": False, "throughput": whole.real.throughput,
         "predicted": whole.told.throughput, "littles_ratio": whole.real.littles_ratio},
        {**shared, "removed": True, "throughput": freed.throughput,
         "predicted": predicted.throughput, "littles_ratio": freed.littles_ratio},
    ]  # fmt: skip


def opened(payloads: list[NDArray[Any]]) -> list[Any]:
    """The files decoded by Pillow."""
    image = pictures.require()
    return [image.open(io.BytesIO(p.tobytes())).convert("RGB") for p in payloads]


def faces_row(
    work: Workload, payloads: list[NDArray[Any]], faces: int, repeat: int
) -> dict[str, Any]:
    """Frames per second of a detector with so many faces each, by what hands them over."""
    row: dict[str, Any] = {"faces": faces, "repeat": repeat}
    detect = chained(pictures.preprocess(SIDE, SIDE), detector(work, faces))
    for kind in BROKERS:
        if kind is None:
            stages = [Stage("frame", chained_all(detect, network(work, "eager")))]
        else:
            stages = [Stage("frame", detect), Stage("face", network(work, "eager"), given=kind)]
        log = serve(stages, payloads, concurrency=CONCURRENCY, requests=12 if faces > 1 else 24)
        row[kind or "fused"] = log.trace.throughput
    return row


def detector(work: Workload, faces: int) -> Callable[[], Work]:
    """The network on a frame, then as many crops of it as there are faces (given, not found)."""
    net = network(work, "eager")

    def make() -> Work:
        run = net()

        def one(arrays: list[NDArray[Any]], spans: Spans) -> list[list[NDArray[Any]]]:
            run(arrays, spans)
            return [[a] * faces for a in arrays]

        return one

    return make


def chained_all(first: Callable[[], Work], second: Callable[[], Work]) -> Callable[[], Work]:
    """Frame and faces in one worker, face by face: nothing is handed over."""

    def make() -> Work:
        one, two = first(), second()

        def work(arrays: list[NDArray[Any]], spans: Spans) -> list[list[NDArray[Any]]]:
            for crop in (a for made in one(arrays, spans) for a in made):
                two([crop], spans)
            return [[] for _ in arrays]

        return work

    return make
