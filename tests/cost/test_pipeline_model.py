"""Stations and queues: bounds by hand, the simulation against them, Little's law."""

from __future__ import annotations

import pytest

from paredown.cost.serving.pipeline import Station, Trace, amdahl, bottleneck, bound, simulate
from paredown.errors import InputError


def two(first: float, second: float, **more: int) -> list[Station]:
    return [Station("a", (first,), **more), Station("b", (second,))]


def test_amdahl() -> None:
    assert amdahl(0.5) == 2
    assert amdahl(0.5, 2) == pytest.approx(4 / 3)
    assert amdahl(0) == 1
    assert amdahl(1) == float("inf")
    with pytest.raises(InputError, match="share"):
        amdahl(1.1)


def test_the_bottleneck_is_the_largest_demand_per_worker() -> None:
    assert bottleneck(two(3.0, 2.0), cores=8) == ("a", 3.0)
    assert bottleneck(two(3.0, 2.0, workers=2), cores=8) == ("b", 2.0)
    assert bottleneck(two(3.0, 2.0), cores=1) == ("cores", 5.0)
    fanned = [Station("a", (3.0,)), Station("b", (2.0,), fan_out=5, batch=2)]
    assert bottleneck(fanned, cores=8) == ("b", 5.0)
    assert bound(two(3.0, 2.0), concurrency=1, cores=8) == pytest.approx(1 / 5)


@pytest.mark.parametrize(("cores", "workers"), [(8, 1), (8, 3), (2, 2), (1, 1)])
def test_constant_times_reach_the_bound_when_many_wait(cores: int, workers: int) -> None:
    stations = two(3.0, 2.0, workers=workers)
    told = simulate(stations, concurrency=10, requests=300, cores=cores)
    assert told.throughput == pytest.approx(bound(stations, concurrency=10, cores=cores), rel=0.02)
    alone = simulate(stations, concurrency=1, requests=5, cores=cores)
    assert alone.latencies == pytest.approx([5.0] * 3)
    assert alone.throughput == pytest.approx(0.2)


def test_fan_out_and_batches_by_hand() -> None:
    stations = [Station("a", (1.0,)), Station("b", (2.0,), fan_out=5, batch=2)]
    # Five jobs in services of two, two and one: 1 + 3 x 2 seconds.
    assert simulate(stations, concurrency=1, requests=4, cores=4).latencies == [7.0, 7.0]
    full = simulate(stations, concurrency=6, requests=100, cores=4)
    assert full.throughput == pytest.approx(1 / 5, rel=0.05)


def test_littles_law_holds_while_the_loop_is_full() -> None:
    stations = [Station("a", (1.0, 2.0, 6.0), workers=2), Station("b", (0.5, 3.0))]
    told = simulate(stations, concurrency=7, requests=2000, cores=2, seed=3)
    assert told.littles_ratio == pytest.approx(1, abs=0.02)
    assert told == simulate(stations, concurrency=7, requests=2000, cores=2, seed=3)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="not negative"):
        Station("a", (-1.0,))
    with pytest.raises(InputError, match="at least 1"):
        Station("a", (1.0,), batch=0)
    with pytest.raises(InputError, match="three requests"):
        Trace((0.0, 0.0), (1.0, 2.0), 1)
    with pytest.raises(InputError, match="cores"):
        simulate(two(1, 1), concurrency=1, requests=3, cores=0)
