"""What a device's own model says of a run, beside the price of its operators one by one.

An array of elements: cycles, utilisation and time of its layers (`systolic`). A dataflow machine:
traffic and time as streaming pipelines (`fusion`). An FPGA: tasks one by one, all at once, and the
best of both (`reconfigure`). Every figure is predicted; what a model leaves out its figure says.
Bytes are those of the network's own numbers: capture it in the machine's for their sake.
"""

from __future__ import annotations

from collections.abc import Callable

from paredown.cost import fusion, reconfigure, systolic
from paredown.device.device import Device
from paredown.figure import Figure, predicted
from paredown.graph.graph import Graph


def machine(graph: Graph, device: Device) -> dict[str, Figure]:
    """Figures by name; empty for devices without a model of their own, and for training steps."""
    if any(n.phase in ("backward", "optimizer") for n in graph.nodes):
        return {}
    if device.array is not None:
        return _array(graph, device)
    made = MODELS.get(device.kind)
    return made(graph, device) if made is not None and any(n.macs for n in graph.nodes) else {}


def _array(graph: Graph, device: Device) -> dict[str, Figure]:
    found = systolic.costs(graph, device)
    if not found:
        return {}
    assert device.array is not None
    missing = systolic.left_out(graph)
    why = "elementwise work left out"
    why += f", and {', '.join(missing)}" if missing else ""
    cycles = sum(c.cycles for c in found)
    work = sum(c.layer.macs for c in found)
    filled = work / (cycles * device.array.rows * device.array.columns)
    seconds = sum(c.seconds for c in found)
    return {
        "array.cycles": predicted(float(cycles), "cycles", reason=why),
        "array.utilization": predicted(filled, "1", reason="multiply-accumulates per element"),
        "array.mean_utilization": predicted(
            systolic.mean_utilization(found), "1", reason="each layer counted once (DRACO)"
        ),
        "array.traffic": predicted(float(sum(c.traffic for c in found)), "B", reason=why),
        "array.latency": predicted(seconds, "s", reason=why),
    }


def _pipelines(graph: Graph, device: Device) -> dict[str, Figure]:
    found = fusion.pipelines(graph, device)
    return {
        "stream.groups": predicted(float(len(found.groups)), "groups"),
        "stream.traffic": predicted(float(found.traffic), "B", reason="groups as pipelines"),
        "stream.latency": predicted(found.seconds, "s", reason="groups as pipelines"),
        "unfused.traffic": predicted(float(found.unfused_traffic), "B"),
        "unfused.latency": predicted(found.unfused_seconds, "s"),
    }


def _fabric(graph: Graph, device: Device) -> dict[str, Figure]:
    work, where = reconfigure.tasks_of(graph), reconfigure.machine(device)
    best = reconfigure.hybrid(work, where)
    why = "products at the peak in int16; what exceeds the chip is written and read again"
    return {
        "fabric.sequential": predicted(reconfigure.sequential(work, where).seconds, "s"),
        "fabric.dataflow": predicted(reconfigure.dataflow(work, where).seconds, "s"),
        "fabric.hybrid": predicted(best.seconds, "s", reason=why),
        "fabric.streamed_groups": predicted(
            float(sum(b - a > 1 for a, b in best.groups)), "groups"
        ),
    }


MODELS: dict[str, Callable[[Graph, Device], dict[str, Figure]]] = {
    "dataflow": _pipelines,
    "fpga": _fabric,
}
