"""A served network as stations with workers and queues, after Beyond Inference (arXiv:2403.12981).

Requests pass the stations in order; a fixed number of them is in the system (a closed loop, as the
paper's load generator keeps it). Bounds are those of operational analysis (Denning and Buzen 1978);
``simulate`` replays measured service times, with the machine's cores shared among busy workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paredown.errors import InputError


@dataclass(frozen=True)
class Station:
    """Workers that serve alike: seconds of single services as they were measured.

    ``fan_out``: jobs here per job of the station before; ``batch``: jobs that a worker takes at
    once, as many as wait, in the time of one service.
    """

    name: str
    seconds: tuple[float, ...]
    workers: int = 1
    fan_out: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) < 0:
            raise InputError(f"station {self.name}: service times must be given and not negative")
        if min(self.workers, self.fan_out, self.batch) < 1:
            raise InputError(f"station {self.name}: workers, fan-out and batch are at least 1")

    @property
    def mean(self) -> float:
        """Mean seconds of one service."""
        return float(np.mean(self.seconds))


def amdahl(share: float, speedup: float = float("inf")) -> float:
    """End-to-end gain when what takes ``share`` of the time gets ``speedup`` times faster.

    1 / (1 - f + f / s). Raises ``InputError`` for a share outside 0 to 1.
    """
    if not 0 <= share <= 1 or speedup <= 0:
        raise InputError(f"a share lies in 0 to 1 and a speed-up above 0, got {share}, {speedup}")
    left = 1 - share + share / speedup
    return float("inf") if left == 0 else 1 / left


def demands(stations: Sequence[Station], *, full: bool = True) -> dict[str, float]:
    """Busy seconds of each station per request; with ``full`` its batches are."""
    found: dict[str, float] = {}
    jobs = 1
    for s in stations:
        jobs *= s.fan_out
        services = jobs / s.batch if full else float(-(-jobs // s.batch))
        found[s.name] = services * s.mean
    return found


def bottleneck(stations: Sequence[Station], cores: int) -> tuple[str, float]:
    """What limits throughput, and its seconds per request: the largest demand / workers.

    All stations together are limited by the machine: their demands over its cores (``cores``).
    """
    busy = demands(stations)
    each = {s.name: busy[s.name] / s.workers for s in stations}
    each["cores"] = sum(busy.values()) / cores
    name = max(each, key=lambda n: each[n])
    return name, each[name]


def bound(stations: Sequence[Station], *, concurrency: int, cores: int) -> float:
    """The most requests per second: 1 / bottleneck, and with few in the system N / one's time."""
    alone = sum(demands(stations, full=False).values())
    if len(stations) == 1 or all(s.fan_out == 1 for s in stations):
        return min(1 / bottleneck(stations, cores)[1], concurrency / alone)
    # A request's own jobs overlap: only the stations bound it.
    return 1 / bottleneck(stations, cores)[1]


@dataclass(frozen=True)
class Trace:
    """When each request arrived and ended, in seconds; a closed loop of ``concurrency``."""

    arrived: tuple[float, ...]
    ended: tuple[float, ...]
    concurrency: int

    def __post_init__(self) -> None:
        if len(self.ended) < 3 * self.concurrency or len(self.arrived) != len(self.ended):
            raise InputError(
                f"a trace needs an end for each arrival and three requests for each of "
                f"{self.concurrency} at a time, got {len(self.arrived)} and {len(self.ended)}"
            )

    @property
    def steady(self) -> list[int]:
        """Requests that ended while the loop was full: from its filling to the last arrival."""
        order = sorted(range(len(self.ended)), key=lambda i: self.ended[i])
        return order[self.concurrency : len(order) - self.concurrency]

    @property
    def throughput(self) -> float:
        """Requests per second while the loop was full."""
        ends = sorted(self.ended)
        steady = self.steady
        return len(steady) / (self.ended[steady[-1]] - ends[self.concurrency - 1])

    @property
    def latencies(self) -> list[float]:
        """Seconds from arrival to end of the same requests."""
        return [self.ended[i] - self.arrived[i] for i in self.steady]

    @property
    def littles_ratio(self) -> float:
        """Throughput x mean time in the system / number in it: 1 by Little's law."""
        return self.throughput * float(np.mean(self.latencies)) / self.concurrency


@dataclass
class _Service:
    at: int
    requests: list[int]
    left: float


@dataclass
class _State:
    waiting: list[deque[int]]
    free: list[int]
    active: list[_Service] = field(default_factory=list)


def simulate(
    stations: Sequence[Station],
    *,
    concurrency: int,
    requests: int,
    cores: int,
    seed: int = 0,
) -> Trace:
    """Replay service times drawn from those measured; busy workers beyond ``cores`` share them.

    The next request arrives when one ends. First come, first served; a worker never waits for a
    batch to fill.
    """
    if concurrency < 1 or requests < 1 or cores < 1:
        raise InputError("concurrency, requests and cores are at least 1")
    rng = np.random.default_rng(seed)
    state = _State([deque() for _ in stations], [s.workers for s in stations])
    arrived: list[float] = []
    ended: dict[int, float] = {}
    open_jobs: dict[int, int] = {}
    now = 0.0

    def arrive() -> None:
        request = len(arrived)
        if request < requests:
            arrived.append(now)
            open_jobs[request] = stations[0].fan_out
            state.waiting[0].extend([request] * stations[0].fan_out)

    for _ in range(concurrency):
        arrive()
    while len(ended) < requests:
        for at, station in enumerate(stations):
            while state.free[at] and state.waiting[at]:
                queue = state.waiting[at]
                taken = [queue.popleft() for _ in range(min(station.batch, len(queue)))]
                state.free[at] -= 1
                left = station.seconds[int(rng.integers(len(station.seconds)))]
                state.active.append(_Service(at, taken, left))
        rate = min(1.0, cores / len(state.active))
        step = min(s.left for s in state.active)
        now += step / rate
        for s in state.active:
            s.left -= step
        done = [s for s in state.active if s.left <= 1e-15]
        state.active = [s for s in state.active if s.left > 1e-15]
        for service in done:
            state.free[service.at] += 1
            for request in service.requests:
                if service.at + 1 < len(stations):
                    more = stations[service.at + 1].fan_out
                    state.waiting[service.at + 1].extend([request] * more)
                    open_jobs[request] += more - 1
                    continue
                open_jobs[request] -= 1
                if not open_jobs[request]:
                    ended[request] = now
                    arrive()
    return Trace(tuple(arrived), tuple(ended[i] for i in range(requests)), concurrency)
