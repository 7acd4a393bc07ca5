"""Random small subgraphs, timed in eager: what surrogates that read a graph's text learn from.

ML-driven hardware cost model for MLIR (2023, arXiv:2302.11405) labels subgraphs of networks by a
compiler and a simulator; here convolutions, products, pointwise operators, norms and reductions are
drawn at random and timed on this machine. `measure.generate` makes chains of one kind instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from paredown.graph.capture import capture
from paredown.graph.liveness import liveness
from paredown.graph.text import canonical, text
from paredown.workload import Workload

LEAST_S = 0.004
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


class Drawn(nn.Module):
    """Steps one after the other; ``add`` adds the last value of the same shape."""

    def __init__(self, names: list[str], layers: list[nn.Module]) -> None:
        super().__init__()
        self.names = names
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """An image (1, channels, side, side), or rows (rows, width)."""
        seen = [x]
        for name, layer in zip(self.names, self.layers, strict=True):
            if name == "add":
                like = [s for s in seen[:-1] if s.shape == x.shape]
                x = x + (like[-1] if like else x)
            elif name in POINTWISE:
                x = POINTWISE[name](x)
            elif name == "mean":
                x = x.mean((2, 3))
            elif name == "softmax":
                x = torch.softmax(x, -1)
            else:
                x = layer(x)
            seen.append(x)
        return x


@dataclass(frozen=True)
class Label:
    """A subgraph as text with what it takes: seconds (measured), bytes at its peak (counted)."""

    topology: str
    written: str
    seconds: float
    peak_bytes: int
    macs: int
    moved_bytes: int
    calls: int


def draw(seed: int) -> Workload:
    """A subgraph of one to six steps; the same for the same seed."""
    r = Random(seed)
    torch.manual_seed(seed)
    image = r.random() < 0.6
    names: list[str] = []
    layers: list[nn.Module] = []
    width = 2 ** r.randint(3, 7)
    side = r.choice((7, 14, 28, 56)) if image else 0
    x = torch.randn(1, width, side, side) if image else torch.randn(2 ** r.randint(0, 7), 4 * width)
    width = width if image else 4 * width
    for _ in range(r.randint(1, 6)):
        kinds = ["conv", "conv", "depthwise", "norm2", "pool", "mean"] if side else [
            "linear", "linear", "norm1", "softmax"]  # fmt: skip
        name = r.choice([*kinds, r.choice(list(POINTWISE)), "add"])
        layer: nn.Module = nn.Identity()
        if name == "conv":
            more, kernel = 2 ** r.randint(3, 7), r.choice((1, 3))
            layer = nn.Conv2d(width, more, kernel, r.choice((1, 1, 2)), kernel // 2)
            side, width = -(-side // layer.stride[0]), more
        elif name == "depthwise":
            kernel = r.choice((3, 5))
            layer = nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width)
        elif name == "pool" and side > 3:
            layer, side = nn.MaxPool2d(2), side // 2
        elif name == "pool":
            name = "relu"
        elif name == "norm2":
            layer = nn.BatchNorm2d(width)
        elif name == "norm1":
            layer = nn.LayerNorm(width)
        elif name == "linear":
            more = 2 ** r.randint(4, 10)
            layer, width = nn.Linear(width, more), more
        elif name == "mean":
            side = 0
        names.append(name)
        layers.append(layer)
    model = Drawn(names, layers).eval().requires_grad_(False)
    return Workload(model, (x,), name=f"subgraph {seed}")


def label(workload: Workload) -> Label:
    """Capture and time a subgraph here: the least of several bursts' medians."""
    graph = capture(workload)
    order = canonical(graph)
    return Label(
        " ".join(n.op for n in order),
        text(graph, "nodes"),
        timed(lambda: workload.model(*workload.inputs)),
        liveness(graph).peak_bytes,
        graph.macs,
        sum(n.bytes_read + n.bytes_written for n in graph.work_nodes()),
        sum(1 for _ in graph.work_nodes()),
    )


def timed(run: Callable[[], Tensor]) -> float:
    """Seconds of a warm run: the least of four bursts' medians."""
    with torch.inference_mode():
        run()
        start = time.perf_counter()
        run()
        count = int(np.clip(LEAST_S / 4 / max(time.perf_counter() - start, 1e-7), 1, 200))
        bursts: list[float] = []
        for _ in range(4):
            laps: list[float] = []
            for _ in range(count):
                start = time.perf_counter()
                run()
                laps.append(time.perf_counter() - start)
            bursts.append(float(np.median(laps)))
    return min(bursts)
