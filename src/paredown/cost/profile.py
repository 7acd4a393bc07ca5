"""`pare profile`: capture a workload, price it on a device, and lay it out as a document."""

from __future__ import annotations

from dataclasses import dataclass, field

from paredown.cost import tabulate
from paredown.cost.fit import misfits
from paredown.cost.machines import machine
from paredown.cost.parts import parts, rate
from paredown.cost.price import Priced, price
from paredown.cost.tables import has_rate
from paredown.device.device import Device
from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.result import ProfileDoc, TensorInfo, Totals
from paredown.workload import Workload


@dataclass(frozen=True)
class Measured:
    """What `measure.operators` found: self time by node index, and the whole run."""

    seconds: dict[int, float] = field(default_factory=dict)
    latency: Figure | None = None
    parts: dict[str, Figure] = field(default_factory=dict)


def profile(
    workload: Workload,
    device: Device,
    *,
    train: bool = False,
    measured: Measured | None = None,
    backend: str = "eager",
    graph: Graph | None = None,
) -> ProfileDoc:
    """Profile one run of a workload on a device; allocates no weights.

    ``measured`` must come from the graph of the same capture; pass that as ``graph``. Raises
    ``CaptureError`` when the workload cannot be captured.
    """
    graph = graph if graph is not None else capture(workload, train=train)
    priced = price(graph, device, backend=backend)
    taken = measured or Measured()
    return ProfileDoc(
        target=workload.name,
        device=device.name,
        device_how=device.how,
        backend=backend,
        threads=device.threads,
        inputs=[
            TensorInfo(name=t.name or f"input{i}", shape=list(t.shape), dtype=t.dtype)
            for i, t in enumerate(graph.tensors[j] for j in graph.inputs)
        ],
        totals=_totals(priced, taken),
        run="train_step" if train else workload.run,
        parts=_parts(priced, taken),
        machine=machine(graph, device),
        priced_share=tabulate.priced_share(graph, taken.seconds),
        unpriced=graph.unpriced,
        operators=tabulate.operators(priced, taken.seconds),
        modules=tabulate.modules(priced, taken.seconds),
        memory=tabulate.memory(priced),
        waterline=_waterline(priced, taken),
        notes=[*graph.notes, *_limits(priced)],
    )


def _limits(priced: Priced) -> list[str]:
    """What the device cannot hold, and the types it states no rate for."""
    device = priced.device
    found = [m.words(device) for m in misfits(priced.graph, device)]
    used = {c.run.dtype for c in priced.costs if c.run.node.macs}
    silent = sorted(d for d in used if device.how == "nominal" and not has_rate(device, d))
    if silent:
        found.append(
            f"{device.name} states no rate for {', '.join(silent)}: priced at its fastest, "
            "as if it were converted"
        )
    return found


def _totals(priced: Priced, measured: Measured) -> Totals:
    return Totals(
        macs=priced.macs,
        params=priced.params,
        traffic_bytes=priced.traffic,
        peak_bytes=priced.peak_bytes,
        latency_s=measured.latency or priced.latency,
        energy_j=priced.energy,
    )


def _parts(priced: Priced, measured: Measured) -> dict[str, Figure]:
    """Time, throughput and MACs of a loop's first call and its later ones."""
    loop = getattr(priced.graph.source, "loop", None)
    if loop is None:
        return {}
    found = {**parts(priced), "throughput": rate(priced), **measured.parts}
    for phase in loop.phases:
        macs = sum(n.macs or 0 for n in priced.graph.nodes if n.phase == phase)
        found[f"macs.{phase}"] = counted(macs, "MAC")
    return found


def _waterline(priced: Priced, measured: Measured) -> dict[str, float]:
    line = priced.waterline()
    if measured.latency is not None:
        line["e_measured"] = line["ideal_s"] / measured.latency.known()
    return line
