"""The price of a network whose work depends on the input: a distribution over inputs.

Each input is run once with the real weights, so that the branches it takes are recorded, and that
run is priced. The figures are means with quantiles over inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paredown.cost.price import Priced, price
from paredown.device.device import Device
from paredown.figure import Figure, over_inputs, unavailable
from paredown.graph.capture import capture_run
from paredown.graph.varying import forget
from paredown.workload import Workload

Call = tuple[tuple[Any, ...], dict[str, Any]]


def figures_over_inputs(
    workload: Workload,
    device: Device,
    *,
    backend: str = "eager",
    calls: Iterable[Call] | None = None,
) -> dict[str, Figure]:
    """Predicted ``latency`` (s), ``throughput``, ``memory``, ``traffic``, ``energy``, and counted
    ``macs``, over the population, in its order and beginning with no memory of earlier runs.

    ``memory`` is that of the input that needs most. Raises ``CaptureError`` when the model raises.
    """
    forget(workload.model)
    priced: list[Priced] = []
    for args, kwargs in workload.population_inputs() if calls is None else calls:
        graph = capture_run(workload, args, kwargs)
        priced.append(price(graph, device, backend=backend))
    forget(workload.model)
    latency = over_inputs([p.seconds for p in priced], "s", "predicted")
    largest = max((p.peak_bytes for p in priced), key=Figure.known)
    return {
        "latency": latency,
        "throughput": Figure(value=1 / latency.known(), unit="runs/s", how="predicted"),
        "memory": largest,
        "traffic": _over([p.traffic for p in priced]),
        "energy": _over([p.energy for p in priced]),
        "macs": over_inputs([p.macs.known() for p in priced], "MAC", "counted"),
    }


def _over(figures: list[Figure]) -> Figure:
    missing = next((f.reason for f in figures if f.value is None), None)
    if missing is not None:
        return unavailable(figures[0].unit, missing)
    return over_inputs([f.known() for f in figures], figures[0].unit, "predicted")
