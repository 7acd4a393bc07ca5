"""Serve requests through stages in threads, in a closed loop, and log where each one's time went.

After Beyond Inference (arXiv:2403.12981): a request waits, is worked on and is handed over, stage
by stage; the spans of a request add up to its time from arrival to end.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from paredown.cost.serving.pipeline import Trace
from paredown.errors import InputError
from paredown.measure.brokers import Broker, Kind, Message, Queue, broker

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

END = -1
"""The request that tells a worker to stop."""


class Spans:
    """Seconds by name of what one service did."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def span(self, name: str) -> Generator[None]:
        """Add the time of the ``with`` block to ``name``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


Work = Callable[[list["NDArray[Any]"], Spans], list[list["NDArray[Any]"]]]
"""Arrays that were taken at once -> for each the arrays that it sends on."""


@dataclass(frozen=True)
class Stage:
    """A kind of worker: ``make()`` gives one worker its function, in the worker's own thread.

    ``batch``: as many waiting messages as it takes at once; ``given``: how messages reach it.
    """

    name: str
    make: Callable[[], Work]
    workers: int = 1
    batch: int = 1
    given: Kind = "queue"


@dataclass
class Log:
    """What a run left: the trace, spans of each request, and seconds of each stage's services."""

    trace: Trace
    spans: list[dict[str, float]]
    services: dict[str, list[float]]
    """Seconds from taking messages to having handed on what came of them."""
    handing: dict[str, list[float]]
    """Seconds from the start of sending a message to its being taken, by the stage that takes."""
    sending: dict[str, list[float]]
    """The part of it that the sender is busy."""

    def covered(self) -> list[float]:
        """Sum of a request's spans over its time, for those that ended while the loop was full.

        1 but for what no span saw; with fan-out a request's jobs overlap and it is larger.
        """
        t = self.trace
        return [sum(self.spans[i].values()) / (t.ended[i] - t.arrived[i]) for i in t.steady]


@dataclass
class _Run:
    stages: Sequence[Stage]
    ways: list[Queue | Broker]
    payloads: Sequence[NDArray[Any]]
    requests: int
    arrived: list[float] = field(default_factory=list)
    ended: dict[int, float] = field(default_factory=dict)
    spans: dict[int, dict[str, float]] = field(default_factory=dict)
    open_jobs: dict[int, int] = field(default_factory=dict)
    services: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    handing: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sending: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)
    ready: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def arrive(self) -> None:
        """The next request, where one is left."""
        with self.lock:
            request = len(self.arrived)
            if request >= self.requests:
                return
            now = time.perf_counter()
            self.arrived.append(now)
            self.spans[request] = defaultdict(float)
            self.open_jobs[request] = 1
        self.ways[0].put(Message(request, self.payloads[request % len(self.payloads)], now))

    def worker(self, at: int) -> None:
        """One worker's life."""
        try:
            work = self.stages[at].make()
            self.ready.release()
            while self._serve(at, work):
                continue
        except BaseException as e:
            # Whatever a stage raises, the run that waits for it must end and raise it.
            self.failed.append(e)
            self.ready.release()
            self.done.set()

    def _serve(self, at: int, work: Work) -> bool:
        stage, way = self.stages[at], self.ways[at]
        first = way.get()
        assert first is not None
        if first.request == END:
            return False
        taken = [first]
        while len(taken) < stage.batch and (more := way.get(wait=False)) is not None:
            if more.request == END:
                way.put(more)
                break
            taken.append(more)
        start = time.perf_counter()
        spans = Spans()
        made = work([m.array for m in taken], spans)
        sends = [(m.request, a) for m, arrays in zip(taken, made, strict=True) for a in arrays]
        self._log(stage.name, taken, start, spans, made, last=at + 1 == len(self.stages))
        if at + 1 < len(self.stages):
            for request, array in sends:
                sent = time.perf_counter()
                self.ways[at + 1].put(Message(request, array, sent))
                with self.lock:
                    self.sending[self.stages[at + 1].name].append(time.perf_counter() - sent)
        end = time.perf_counter()
        with self.lock:
            self.services[stage.name].append(end - start)
        if at + 1 == len(self.stages):
            for message in taken:
                self._end(message.request, end)
        return True

    def _log(
        self,
        name: str,
        taken: Sequence[Message],
        start: float,
        spans: Spans,
        made: Sequence[Sequence[NDArray[Any]]],
        *,
        last: bool,
    ) -> None:
        with self.lock:
            for message, arrays in zip(taken, made, strict=True):
                own = self.spans[message.request]
                own[f"wait for {name}"] += start - message.sent
                self.handing[name].append(start - message.sent)
                for key, seconds in spans.seconds.items():
                    own[key] += seconds
                if not last:
                    self.open_jobs[message.request] += len(arrays) - 1

    def _end(self, request: int, now: float) -> None:
        with self.lock:
            self.open_jobs[request] -= 1
            if self.open_jobs[request]:
                return
            self.ended[request] = now
            if len(self.ended) == self.requests:
                self.done.set()
        self.arrive()


def serve(
    stages: Sequence[Stage], payloads: Sequence[NDArray[Any]], *, concurrency: int, requests: int
) -> Log:
    """Serve ``requests`` payloads, taken round and round, with ``concurrency`` of them at a time.

    Every message of a stage before the last must send at least one on. Raises what a stage raises,
    ``InputError`` for fewer than three requests for each at a time.
    """
    if requests < 3 * concurrency or concurrency < 1:
        raise InputError(f"{requests} requests are too few for {concurrency} at a time: three each")
    with ExitStack() as stack:
        ways = [stack.enter_context(broker(s.given)) for s in stages]
        run = _Run(stages, ways, payloads, requests)
        workers = [
            threading.Thread(target=run.worker, args=(at,), daemon=True)
            for at, stage in enumerate(stages)
            for _ in range(stage.workers)
        ]
        for w in workers:
            w.start()
        for _ in workers:
            run.ready.acquire()
        for _ in range(concurrency):
            run.arrive()
        run.done.wait()
        if run.failed:
            raise run.failed[0]
        for at, stage in enumerate(stages):
            for _ in range(stage.workers):
                ways[at].put(Message(END, np.zeros(0, np.uint8), 0.0))
        for w in workers:
            w.join()
    order = range(requests)
    return Log(
        Trace(tuple(run.arrived), tuple(run.ended[i] for i in order), concurrency),
        [dict(run.spans[i]) for i in order],
        dict(run.services),
        dict(run.handing),
        dict(run.sending),
    )
