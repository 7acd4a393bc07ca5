"""Accelerator costs beside ZigZag's: bytes per memory, energy and cycles, layer by layer.

    python benchmarks/zigzag.py --zigzag PYTHON [--json benchmarks/results/zigzag.json]
        [--networks resnet18,mobilenetv2,resnet50] [--machines gemmini,eyeriss] [--minutes 10]

PYTHON is an interpreter with ``zigzag-dse`` (and ``six``, which 3.9.1 does not name). Both sides
get the same machine (array, memories, bandwidths, energy per number from `cost.reuse`), the same
convolutions and products (captured from the zoo's networks; equal layers once, with their count),
and the same spatial mapping, as ours prices it. ZigZag then tries every order of at most six loop
factors; its least energy stands for bytes and energy, its least latency for cycles. The file is
written after each layer, so that a run that is stopped is gone on with by the next; without PYTHON
our side is priced anew. Nothing is timed: every figure is predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from paredown import device, zoo
from paredown.cost.heterogeneous import (
    CLOCK_HZ,
    DLA_CHANNELS,
    SubAccelerator,
    Template,
    cycles_and_accesses,
    layer_cost,
)
from paredown.cost.reuse import BUFFER, MEMORY, NEIGHBOUR, REGISTER, WORD
from paredown.cost.systolic import Layer, cost, layers, moved, passed
from paredown.errors import InputError
from paredown.files import write_text

RESULTS = Path(__file__).parent / "results" / "zigzag.json"
PEER = Path(__file__).with_name("zigzag_peer.py")
NETWORKS = ("resnet18", "mobilenetv2", "resnet50")
FACTORS = 6
"""Loop factors that ZigZag orders: what it merges beyond is the smallest ones."""
Row = dict[str, Any]
Spatial = dict[str, list[str]]


@dataclass(frozen=True)
class Work:
    """A layer and what its shape leaves open: input size, stride, padding, dilation."""

    layer: Layer
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def described(self, bits: int, sums: int) -> dict[str, Any]:
        """ZigZag's form of it, with numbers and partial sums of so many bits."""
        x, ((sy, sx), (dy, dx)) = self.layer, (self.stride, self.dilation)
        return {
            "id": 0,
            "name": x.name,
            "operator_type": "Conv",
            "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
            "dimension_relations": [f"ix={sx}*ox+{dx}*fx", f"iy={sy}*oy+{dy}*fy"],
            "loop_dims": ["B", "K", "G", "OX", "OY", "C", "FX", "FY"],
            "loop_sizes": [
                x.batch, x.outputs, x.groups, x.out[1], x.out[0], x.inputs, x.kernel[1], x.kernel[0]
            ],
            "operand_precision": {"W": bits, "I": bits, "O": sums, "O_final": bits},
            "operand_source": {"I": 0, "W": 0},
            "pr_loop_dims": ["IX", "IY"],
            "pr_loop_sizes": [self.size[1], self.size[0]],
            "padding": [[self.padding[1]] * 2, [self.padding[0]] * 2],
        }  # fmt: skip


def works(name: str) -> list[tuple[Work, int]]:
    """Different layers of a network of the zoo in 16-bit numbers, with how often each occurs."""
    import torch

    from paredown.graph.capture import capture
    from paredown.workload import Workload

    with torch.device("meta"):
        model = zoo.create(name).to(torch.bfloat16).eval()
    inputs = tuple(x.to("meta", torch.bfloat16) for x in zoo.example(name))
    graph = capture(Workload(model, inputs, name=name))
    nodes = [n for n in graph.nodes if n.macs]
    found = layers(graph)
    if len(found) != len(nodes):
        raise InputError(f"{name}: {len(nodes) - len(found)} operators are no layer of an array")
    counted: Counter[Work] = Counter()
    names: dict[Work, str] = {}
    for node, layer in zip(nodes, found, strict=True):
        bare = replace(layer, name="")
        if "conv" in node.op:
            shape = graph.tensors[node.inputs[0]].shape[2:]
            stride, padding, dilation = (tuple(node.args[i]) for i in (3, 4, 5))
            work = Work(bare, (shape[0], shape[1]), stride, padding, dilation)
        else:
            work = Work(bare, layer.out)
        counted[work] += 1
        names.setdefault(work, layer.name)
    return [(replace(w, layer=replace(w.layer, name=names[w])), n) for w, n in counted.items()]


@dataclass(frozen=True)
class Memory:
    """One memory as ZigZag reads it: bits, bits a cycle, energy of a number, what lies in it."""

    name: str
    size: int
    width: int
    energy: float
    operands: str
    """Of ``W``, ``I``, ``O``."""
    shared: bool = True
    """By the whole array; else every element has one."""
    ports: int = 2
    """One in and one out, or a single one for both."""

    def described(self, bits: int) -> dict[str, Any]:
        """ZigZag's form of it, with numbers of so many bits."""
        ways = {"W": ("tl", "fh"), "I": ("tl", "fh"), "O": ("tl th", "fh fl")}
        out = [f"{OPERANDS[o]}, {w}" for o in self.operands for w in ways[o][0].split()]
        into = [f"{OPERANDS[o]}, {w}" for o in self.operands for w in ways[o][1].split()]
        wide = {"bandwidth_min": 1, "bandwidth_max": self.width}
        ports = [
            {"name": "r_port_1", "type": "read", **wide, "allocation": out},
            {"name": "w_port_1", "type": "write", **wide, "allocation": into},
        ]
        if self.ports == 1:
            ports = [{"name": "rw_port_1", "type": "read_write", **wide, "allocation": out + into}]
        access = self.energy * self.width / bits
        return {
            "size": self.size,
            "r_cost": access,
            "w_cost": access,
            "area": 0.0,
            "latency": 1,
            "operands": [OPERANDS[o] for o in self.operands],
            "ports": ports,
            "served_dimensions": ["D1", "D2"] if self.shared else [],
        }


OPERANDS = {"W": "I2", "I": "I1", "O": "O"}
OUTSIDE = 8 * 2**34
"""Bits of a memory outside the chip: it holds everything."""


@dataclass(frozen=True)
class Machine:
    """One accelerator on both sides: its array and memories, our figures, the spatial mapping."""

    name: str
    says: str
    bits: int
    sums: int
    rows: int
    columns: int
    memories: tuple[Memory, ...]
    ours: Callable[[Layer], Row]
    spatial: Callable[[Layer], Spatial]

    def accelerator(self) -> dict[str, Any]:
        """ZigZag's description."""
        return {
            "name": self.name,
            "memories": {m.name: m.described(self.bits) for m in self.memories},
            "operational_array": {
                "unit_energy": 1.0,
                "unit_area": 1.0,
                "dimensions": ["D1", "D2"],
                "sizes": [self.rows, self.columns],
            },
        }

    def layer(self, work: Work) -> Layer:
        """The layer with numbers of this machine."""
        x, byte = work.layer, self.bits // 8
        return replace(
            x,
            weight_bytes=x.weight_bytes * byte // 2,
            input_bytes=x.input_bytes * byte // 2,
            output_bytes=x.output_bytes * byte // 2,
        )


def unrolled(**sizes: int) -> list[str]:
    """Loops over one dimension of the array, those of one left out."""
    return [f"{d}, {n}" for d, n in sizes.items() if n > 1] or ["K, 1"]


def packed(layer: Layer, rows: int) -> list[str]:
    """The window on the rows as whole loops: the fewest folds of (channels, y, x)."""
    best = min(
        (
            (
                math.ceil(layer.inputs / c)
                * math.ceil(layer.kernel[0] / y)
                * math.ceil(layer.kernel[1] / x),
                c * y * x,
                (c, y, x),
            )
            for c, y, x in product(
                range(1, min(layer.inputs, rows) + 1),
                range(1, layer.kernel[0] + 1),
                range(1, layer.kernel[1] + 1),
            )
            if c * y * x <= rows
        ),
    )[2]
    return unrolled(C=best[0], FY=best[1], FX=best[2])


def weight_stationary(layer: Layer, rows: int, columns: int) -> Spatial:
    """Window on the rows, filters on the columns."""
    return {"D1": packed(layer, rows), "D2": unrolled(K=min(layer.outputs, columns))}


def row_stationary(layer: Layer, rows: int, columns: int) -> Spatial:
    """Kernel rows and strips of the image on the rows, output rows on the columns; what is left of
    both is filled with channels, as `cost.systolic` counts.
    """
    kernel, out = min(layer.kernel[0], rows), layer.out[0]
    up, along = max(1, rows // kernel), max(1, columns // out)
    beside = min(up, math.ceil(out / columns))
    channels, filters = min(up // beside, layer.inputs), min(along, layer.outputs)
    return {
        "D1": unrolled(FY=kernel, OY=beside, C=channels),
        "D2": unrolled(OY=min(out, columns), K=filters),
    }


def systolic(name: str) -> Machine:
    """A device of the catalogue with an array."""
    where = device.load(name)
    assert where.array is not None
    array, near = where.array, where.levels[0]
    clock = array.clock_hz
    bits = 8 if "int8" in where.peak_macs_s else 16
    word = bits // 8
    outside = max(1, round(8 * where.memory.read_bytes_s / clock))
    memory = Memory("memory", OUTSIDE, outside, MEMORY, "WIO", ports=1)
    buffer_width = round(8 * near.read_bytes_s / clock)
    side = {"rows": array.rows, "columns": array.columns}
    if array.dataflow == "weight":
        memories = (
            Memory("weights", bits, bits, 0.0, "W", shared=False),
            Memory("accumulators", 8 * 65536, 32 * array.columns, 0.0, "O"),
            Memory("buffer", 8 * near.capacity_bytes, buffer_width, BUFFER, "WI"),
            memory,
        )
        spatial, sums = weight_stationary, 32
    else:
        memories = (
            *(
                Memory(n, 16 * words, 16, REGISTER, o, shared=False)
                for n, words, o in (("rows", 12, "I"), ("filters", 224, "W"), ("sums", 24, "O"))
            ),
            Memory("buffer", 8 * near.capacity_bytes, buffer_width, BUFFER, "WIO"),
            memory,
        )
        spatial, sums = row_stationary, 16

    def ours(layer: Layer) -> Row:
        found, far = cost(layer, where), moved(layer, near.capacity_bytes)
        close = passed(layer, array)
        if array.dataflow == "weight":  # sums lie in accumulators of their own, free on both sides
            close, through = replace(close, outputs=0.0), far.weights + far.inputs
        else:
            through = far.total
        return {
            "cycles": found.seconds * clock,
            "computing": found.cycles,
            "memory_bytes": {"W": far.weights, "I": far.inputs, "O": far.outputs},
            "buffer_bytes": {
                "W": close.weights * word,
                "I": close.inputs * word,
                "O": close.outputs * word,
            },
            "energy": {
                "arithmetic": float(layer.macs),
                "elements": layer.macs * (4 * REGISTER + NEIGHBOUR),
                "buffer": BUFFER * (close.total + through / word),
                "memory": MEMORY * far.total / word,
            },
        }

    return Machine(
        name, where.title, bits, sums, array.rows, array.columns, memories, ours,
        lambda layer: spatial(layer, **side),
    )  # fmt: skip


ELEMENTS, BUFFER_BYTES_S, BUFFER_BYTES = 256, 64e9, 512 << 10
"""The templates' elements, bytes a second and (ZigZag asks for it, ours holds all) buffer."""


def template(name: Template) -> Machine:
    """A template of `cost.heterogeneous`; time of the memory outside the chip is not counted."""
    sub = SubAccelerator(name, ELEMENTS, BUFFER_BYTES_S)
    width = round(8 * BUFFER_BYTES_S / CLOCK_HZ)
    buffer = Memory("buffer", 8 * BUFFER_BYTES, width, BUFFER, "WIO", ports=1)
    memory = Memory("memory", OUTSIDE, 1 << 16, MEMORY, "WIO", ports=1)
    if name == "dla":
        rows, columns = DLA_CHANNELS, ELEMENTS // DLA_CHANNELS
        near: tuple[Memory, ...] = (Memory("weights", 16, 16, REGISTER, "W", shared=False),)
    else:
        rows = columns = math.isqrt(ELEMENTS)
        # What neighbours pass on: a tile and its rim, read by all elements in every cycle.
        near = (
            Memory("tile", 16 * (rows + 6) * (columns + 6), 16 * ELEMENTS, NEIGHBOUR, "I"),
            Memory("sums", 16, 16, REGISTER, "O", shared=False),
        )

    def ours(layer: Layer) -> Row:
        cycles, accesses = cycles_and_accesses(layer, sub)
        found = layer_cost(layer, sub)
        far = {"W": layer.weight_bytes, "I": layer.input_bytes, "O": layer.output_bytes}
        outside = MEMORY * sum(far.values()) / WORD
        inside = found.energy - outside - BUFFER * accesses
        return {
            "cycles": found.seconds * CLOCK_HZ,
            "computing": cycles,
            "memory_bytes": far,
            "buffer_bytes": {"all": accesses * WORD},
            "energy": {
                "arithmetic": float(layer.macs),
                "elements": inside - layer.macs,
                "buffer": BUFFER * accesses,
                "memory": outside,
            },
        }

    def spatial(layer: Layer) -> Spatial:
        if name == "dla":
            return {
                "D1": unrolled(C=min(layer.inputs, rows)),
                "D2": unrolled(K=min(layer.outputs, columns)),
            }
        return {
            "D1": unrolled(OY=min(layer.out[0], rows)),
            "D2": unrolled(OX=min(layer.out[1], columns)),
        }

    says = f"template {name} of NASAIC, {ELEMENTS} elements, 64 GB/s to the buffer"
    return Machine(name, says, 16, 16, rows, columns, (*near, buffer, memory), ours, spatial)


MACHINES: dict[str, Callable[[], Machine]] = {
    "gemmini": lambda: systolic("gemmini"),
    "eyeriss": lambda: systolic("eyeriss"),
    "dla": lambda: template("dla"),
    "shi": lambda: template("shi"),
}


def theirs(found: list[Row], machine: Machine) -> Row:
    """ZigZag's two evaluations in the form of our figures."""
    cheap, fast = found
    bytes_: dict[str, dict[str, float]] = {"memory": {}, "buffer": {}}
    energy = {"arithmetic": cheap["mac_energy"], "elements": 0.0, "buffer": 0.0, "memory": 0.0}
    known = {m.name: m for m in machine.memories}
    for place, ways in cheap["bits"].items():
        operand, _, name = place.partition("@")
        every = sum(ways.values()) / 8
        below = (ways.get("rd_out_to_low", 0.0) + ways.get("wr_in_by_low", 0.0)) / 8
        if name in bytes_:
            bytes_[name][operand] = below
        where = name if name in energy else "elements"
        energy[where] += known[name].energy * 8 * every / machine.bits
    parts = ("cycles", "computing", "stalls", "loading", "unloading", "drain")
    return {
        "memory_bytes": bytes_["memory"],
        "buffer_bytes": bytes_["buffer"],
        "energy": energy,
        "energy_said": cheap["energy"],
        "loops": cheap["loops"],
        "least_latency": {p: fast[p] for p in parts},
    }


class Peer:
    """ZigZag in its own interpreter, a layer at a time."""

    def __init__(self, python: str, machine: Machine) -> None:
        self.machine = machine
        self._process = subprocess.Popen(
            [python, "-P", str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say({"accelerator": machine.accelerator(), "factors": FACTORS})

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def evaluate(self, work: Work) -> Row:
        """The row of one layer. Raises ``InputError`` where ZigZag stopped."""
        m, layer = self.machine, self.machine.layer(work)
        mapping = {
            "name": "default",
            "spatial_mapping": m.spatial(layer),
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
        self._say({"layer": work.described(m.bits, m.sums), "mapping": mapping})
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError(f"ZigZag stopped at {layer.name} on {m.name}: see its message above")
        return {
            "macs": layer.macs,
            "spatial": m.spatial(layer),
            "ours": m.ours(layer),
            "zigzag": theirs(json.loads(line), m),
        }

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def total(row: Row, count: int = 1) -> Row:
    """A layer's figures of one side, times how often it occurs."""
    fast = row.get("least_latency", row)
    return {
        "cycles": count * fast["cycles"],
        "computing cycles": count * fast["computing"],
        "bytes from and to memory": count * sum(row["memory_bytes"].values()),
        "bytes between buffer and array": count * sum(row["buffer_bytes"].values()),
        "energy": count * sum(row["energy"].values()),
        **{f"energy, {k}": count * v for k, v in row["energy"].items()},
    }


def summary(rows: list[Row]) -> list[Row]:
    """For every machine and network: both sums, ours over theirs, and the spread over layers."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["machine"], row["network"]), []).append(row)
    found: list[Row] = []
    for (machine, network), same in groups.items():
        ours = [total(r["ours"], r["count"]) for r in same]
        peer = [total(r["zigzag"], r["count"]) for r in same]
        figures: Row = {}
        for name in ours[0]:
            a, b = (sum(x[name] for x in side) for side in (ours, peer))
            ratios = [x[name] / y[name] for x, y in zip(ours, peer, strict=True) if y[name]]
            figures[name] = {
                "ours": a,
                "zigzag": b,
                "over": a / b if b else None,
                "least": min(ratios, default=None),
                "median": statistics.median(ratios) if ratios else None,
                "most": max(ratios, default=None),
            }
        found.append(
            {"machine": machine, "network": network, "layers": sum(r["count"] for r in same),
             "different": len(same), "figures": figures}
        )  # fmt: skip
    return found


def told(found: list[Row]) -> Iterator[str]:
    """The summary in lines."""
    for group in found:
        yield f"{group['machine']}, {group['network']} ({group['different']} different layers)"
        for name, f in group["figures"].items():
            if f["over"] is not None:
                yield (
                    f"  {name:32} ours {f['ours']:.4g}, ZigZag {f['zigzag']:.4g}: {f['over']:.3f}"
                    f" (layers {f['least']:.2f} to {f['most']:.2f}, median {f['median']:.2f})"
                )


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zigzag", help="an interpreter that has zigzag-dse; without: sum up")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no layer after so many")
    parser.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Evaluate what the file does not have yet, price all of it anew on our side, sum up."""
    asked = arguments()
    from paredown.measure.fingerprint import fingerprint

    doc: Row = {"schema": 1, "command": f"python benchmarks/zigzag.py --networks {asked.networks}"}
    doc |= {"factors": FACTORS, "machines": {}, "summary": [], "rows": []}
    if asked.json.exists():
        doc = json.loads(asked.json.read_text())
    if asked.zigzag:
        said = "from importlib.metadata import version; print(version('zigzag-dse'))"
        doc["zigzag"] = subprocess.run(
            [asked.zigzag, "-c", said], capture_output=True, text=True, check=True
        ).stdout.strip()
        doc["fingerprint"] = fingerprint().model_dump(mode="json")
    end = time.monotonic() + 60 * asked.minutes
    layers_of = {n: works(n) for n in asked.networks.split(",")}
    for name in asked.machines.split(","):
        machine = MACHINES[name]()
        doc["machines"][name] = {"says": machine.says, "accelerator": machine.accelerator()}
        known = {(r["network"], r["layer"]): r for r in doc["rows"] if r["machine"] == name}
        peer = Peer(asked.zigzag, machine) if asked.zigzag else None
        for network, found in layers_of.items():
            for work, count in found:
                layer, row = machine.layer(work), known.get((network, work.layer.name))
                if row is not None:
                    row["ours"] = machine.ours(layer)
                elif peer is not None and time.monotonic() < end:
                    row = {"machine": name, "network": network, "layer": layer.name, "count": count}
                    doc["rows"].append(row | peer.evaluate(work))
                    write_text(asked.json, json.dumps(doc, indent=1) + "\n")
        if peer is not None:
            peer.close()
    doc["summary"] = summary(doc["rows"])
    write_text(asked.json, json.dumps(doc, indent=1) + "\n")
    print("\n".join(told(doc["summary"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
