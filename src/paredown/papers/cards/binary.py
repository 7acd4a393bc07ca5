"""Claim card of MST-compression of binary networks (Vo et al. 2023, arXiv:2308.13735).

The paper's networks (VGG-small, ResNets) and its accelerator are not tried; bit products and bytes
are counted, and the order of the tree is timed on this CPU. What the paper counts as stored, a bit
for each difference, leaves out where it stands: bytes here are those of files.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor, nn

from paredown import kernels
from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, mean_and_power
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.papers.cards.sparse_kernels import speed_check
from paredown.papers.timing import Rows, side_by_side
from paredown.runtime import binary, binary_plan, sign_code, sparse_file
from paredown.runtime import binary_tree as trees
from paredown.runtime.forms_binary import BinaryConv
from paredown.techniques.quantize.mst_bnn import MSTBNN
from paredown.workload import TrainingData, Workload
from paredown.workloads.fit import Phase, fit

STRENGTHS = (0.0, 2e-5, 1e-4)
"""Of the training term (the paper's lambda), none first."""
CHOSEN = "2e-05"
NOISE = 0.5
POSITIONS = (64, 16, 16)
"""Output positions of the three binary layers."""
ROWS = 4096
"""Positions over which the orders are timed, on one layer of 64 channels and 576 inputs."""


class Net(nn.Module):
    """``(n, 1, 16, 16) -> (n, 10)``: four convolutions with norms, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        plan = ((1, 32, 2), (32, 64, 1), (64, 64, 2), (64, 64, 1))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
                )
                for a, b, stride in plan
            )
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.layers(x).mean((2, 3)))


def floats(seed: int, plan: _scans.Plan) -> Workload:
    """A trained float network with the data to train it on."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net, scans = Net(), _scans.Scans(plan)
    fit(net, [Phase(scans, plan.epochs)], rate=plan.rate, seed=seed, loss=F.cross_entropy)
    net.eval()
    torch.manual_seed(seed)
    seen = [inputs[0] for inputs, _ in scans()][:8]
    data = TrainingData(scans, F.cross_entropy)
    x = _scans.judge(plan).images[:8]
    return Workload(net, (x,), training=data, original=net, calibration=seen)


def in_bits(given: Workload, strength: float, steps: int, seed: int) -> nn.Module:
    """The network in bits, trained with the term."""
    way = MSTBNN(strength=strength, steps=steps, task=1.0, seed=seed)
    return way.apply(given, way.sites(given, capture(given))).workload.model


def binary_layers(model: nn.Module) -> list[BinaryConv]:
    """In the order in which they run."""
    return [m for m in model.modules() if isinstance(m, BinaryConv)]


def costs(model: nn.Module) -> dict[str, float]:
    """Gains in bit products of a run and in stored bytes over all binary layers; the depth, and
    the share of signs of the last layer in which channels differ from the majority.
    """
    plain, along, bits, held, deflated, depth, apart = 0, 0, 0, 0, 0, 0, 0.0
    for layer, positions in zip(binary_layers(model), POSITIONS, strict=True):
        weight = layer.weight_signs().numpy()
        tree = trees.spanning_tree(weight)
        plain += positions * tree.inputs * len(weight)
        along += positions * tree.bit_ops
        bits += layer.signs.numel()
        held += sparse_file.nbytes({"signs": layer.signs.data})
        deflated += sign_code.deflated_bytes(weight)
        depth = max(depth, tree.depth)
        apart = float((weight != np.where(weight.sum(0) >= 0, 1, -1)).mean())
    return {
        "bit products": plain / along,
        "bytes": bits / held,
        "bytes, zlib": bits / deflated,
        "depth": float(depth),
        "apart": apart,
    }


def differing(model: nn.Module, seed: int) -> dict[str, float]:
    """Sums that any order gives otherwise than the float convolution of signs, and lengths of
    trees that are not scipy's.
    """
    wrong, longer = 0, 0
    generator = torch.Generator().manual_seed(seed)
    for layer in binary_layers(model):
        weight = layer.weight_signs()
        x = torch.randn(4, layer.inputs, 8, 8, generator=generator)
        ones = torch.where(x >= layer.threshold.view(-1, 1, 1), 1.0, -1.0)
        around = F.pad(ones, (1, 1, 1, 1), value=1.0)
        direct = F.conv2d(around, weight, stride=layer.stride).transpose(0, 1).flatten(1)
        rows = layer.patches(x).flatten(0, 2)
        columns = F.unfold(around, 3, stride=layer.stride).transpose(1, 2).flatten(0, 1)
        tree = trees.spanning_tree(weight.numpy())
        found = [
            layer.integers(x).transpose(0, 1).flatten(1),
            torch.from_numpy(trees.products(tree, weight.numpy(), columns.numpy())).T,
            *(run(rows) for run in orders(layer, tree).values()),
        ]
        wrong += sum(int((f != direct).sum()) for f in found)
        between = trees.distances(weight.numpy())
        # scipy takes a distance of 0 for no edge: one more everywhere, and as many less again.
        told = minimum_spanning_tree(between + 1).sum() - (len(between) - 1)
        longer += abs(tree.length - int(told))
    return {"differing": float(wrong), "longer": float(longer)}


def orders(layer: BinaryConv, tree: trees.Tree) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways along the tree, and slices without one."""
    weight, at = layer.weight_signs().numpy(), layer.places().numpy()
    along = binary_plan.plan(weight, tree, at)
    return {
        "tree, input by input": binary.Along(along, gathers=True),
        "tree, slices": binary.Along(along),
        "no tree, slices": binary.Along(binary_plan.plan(weight, None, at)),
    }


def quality(seed: int, epochs: int, steps: int) -> dict[str, float]:
    """Accuracy in floats and for every strength, gains, and what must be exact."""
    plan = _scans.Plan(epochs, noise=NOISE)
    judge = _scans.judge(plan)
    given = floats(seed, plan)
    found = {"accuracy, float32": float(judge(given.model).mean())}
    found |= {"differing": 0.0, "longer": 0.0}
    for strength in STRENGTHS:
        model, name = in_bits(given, strength, steps, seed), f"{strength:.0e}"
        found[f"accuracy, {name}"] = float(judge(model).mean())
        found |= {f"{what}, {name}": gain for what, gain in costs(model).items()}
        for what, count in differing(model, seed).items():
            found[what] += count
    return found


def subjects(apart: float) -> list[tuple[str, Callable[[], Any]]]:
    """One layer's sums by popcount and by each order, on packed rows (in the timing child).

    ``apart`` is the share of signs in which its channels differ from one vector.
    """
    layer = BinaryConv((64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
    one = torch.where(torch.rand(layer.shape[1:]) < 0.5, -1.0, 1.0)
    layer.fill(one * torch.where(torch.rand(layer.shape) < apart, -1.0, 1.0))
    layer.threshold.zero_()
    weight, side = layer.weight_signs().flatten(1), int(ROWS**0.5)
    x = torch.randn(1, 64, side, side)
    rows, words = layer.patches(x).flatten(0, 2), layer.words()
    columns = F.unfold(torch.where(x >= 0, 1.0, -1.0), 3, padding=1)[0].T.contiguous()
    tree = trees.spanning_tree(weight.numpy())
    return [
        ("popcount", lambda: binary.binary_product(rows, words, 576)),
        *((name, lambda run=run: run(rows)) for name, run in orders(layer, tree).items()),
        ("float32 product", lambda: columns @ weight.T),
    ]


def random_gain() -> float:
    """Gain of random weights of 128 channels and 576 inputs, mean of four."""
    g = np.random.default_rng(0)
    found = [trees.spanning_tree(g.choice([-1, 1], (128, 576))).gain for _ in range(4)]
    return float(np.mean(found))


class MstBnnCard(Card):
    """A small network in bits on noisy scans, trained with and without the term, by seed."""

    key = "mst-bnn"
    claim = (
        "computing the channels of binary layers along a minimum spanning tree, trained to be "
        "short, takes several times fewer bit products and stored bits at a negligible loss"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "differing": 0.0,
        "longer": 0.0,
        "random_off_2.2": 0.1,
        "gain": 3.0,
        "drop": 0.01,
        "more": 0.0,
        "bytes": 2.0,
        "popcount_over_tree": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Counts are exact; accuracy at each strength over seeds; times on one thread."""
        if kernels.native() is None:
            return Experiment({}, [], [0], untestable=kernels.why_missing())
        t, quick = self.thresholds, scale == "quick"
        seeds = list(range(4 if quick else 10))
        epochs, steps = (6, 300) if quick else (40, 2000)
        by = Paired.run(quality, seeds, epochs, steps, progress=progress)
        names = [f"{s:.0e}" for s in STRENGTHS]
        random = random_gain()
        seconds = 5.0 if quick else 30.0
        rows = side_by_side(
            subjects, by.mean(f"apart, {CHOSEN}"), seconds=seconds, threads=1, limit_s=200.0
        )
        checks = [
            Check("sums other than the convolution's", sum(by["differing"]), "<=", t["differing"]),
            Check("lengths of trees other than scipy's", sum(by["longer"]), "<=", t["longer"]),
            Check("gain of random weights, off 2.2", abs(random - 2.2), "<=", t["random_off_2.2"]),
            _mean(f"gain in bit products, {CHOSEN}", by[f"bit products, {CHOSEN}"], t["gain"]),
            _mean(f"gain in stored bytes, {CHOSEN}", by[f"bytes, {CHOSEN}"], t["bytes"]),
            _task.mean_check(
                f"loss of accuracy by the term, {CHOSEN}",
                by.less(f"accuracy, {names[0]}", f"accuracy, {CHOSEN}"),
                "<=",
                t["drop"],
            ),
            *(
                _mean(
                    f"gain in bit products, {b} less {a}",
                    by.less(f"bit products, {b}", f"bit products, {a}"),
                    t["more"],
                )
                for a, b in pairwise(names)
            ),
            speed_check(
                "time of popcounts over that along the tree",
                rows,
                "popcount",
                "tree, slices",
                t["popcount_over_tree"],
            ),
        ]
        return Experiment(
            {**_figures(by, rows), "gain, random signs of 128 x 576": counted(random, "x")},
            checks,
            seeds,
            {
                "accuracy": by.rows("network", "accuracy", _named(by, "accuracy")),
                "times": [
                    {"order": n, "seconds": r["latency"].value, "positions": ROWS}
                    for n, r in rows.items()
                    if n != "a/a"
                ],
            },
        )


def _named(by: Paired, what: str) -> list[str]:
    return [n for n in by if n.startswith(what)]


def _figures(by: Paired, rows: Rows) -> dict[str, Figure]:
    gains = [*_named(by, "bit products"), *_named(by, "bytes")]
    return {
        **by.figures("held-out", _named(by, "accuracy")),
        **by.figures("gain", gains, "x"),
        **by.figures("tree", _named(by, "depth")),
        **{f"time over popcounts, {n}": r["ratio"] for n, r in rows.items()},
    }


def _mean(name: str, values: list[float], threshold: float) -> Check:
    mean, power = mean_and_power(values)
    return Check(name, mean, ">=", threshold, power, "x")
