"""Claim card of Maestro: trainable low rank by ordered dropout (Horvath et al. 2024)."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.technique import Rewrite
from paredown.techniques.factorize.low_rank import LowRank
from paredown.techniques.factorize.ordered import Ordered, OrderedDropout
from paredown.techniques.factorize.ranks import narrowed
from paredown.techniques.factorize.trained_low_rank import TrainedLowRank
from paredown.techniques.recover import Plan, recalibrate, session, train
from paredown.workload import TrainingData, Workload

WIDTHS = (24, 48, 48, 48)
KEPT = ("3", "6", "9")
"""The convolutions that are split: all but the first."""
SHARES = (0.4, 0.3, 0.2, 0.1)
RATE = 4e-3
SIZE = 4
"""Rows and columns of the exact cases."""


def network() -> nn.Module:
    """A CNN of four convolutions with batch norm, and one linear."""
    layers: list[nn.Module] = []
    before = 1
    for i, width in enumerate(WIDTHS):
        layers += [
            nn.Conv2d(before, width, 3, 2 if i in (1, 2) else 1, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * before, 10))


def turned(values: Tensor, seed: int) -> Tensor:
    """A square matrix with these singular values between random orthogonal ones."""
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=g))[0] for _ in range(2))
    return left * values @ right


def angle(a: Tensor, b: Tensor) -> float:
    """The largest principal angle between the spans of two sets of columns, in radians."""
    a, b = torch.linalg.qr(a.double())[0], torch.linalg.qr(b.double())[0]
    return float(torch.linalg.matrix_norm(a - b @ (b.T @ a), 2).clamp(max=1).asin())


def white(seed: int) -> Tensor:
    """``(16, SIZE)`` inputs whose second moment is the identity."""
    g = torch.Generator().manual_seed(seed)
    return 4 * torch.linalg.qr(torch.randn(16, SIZE, generator=g))[0]


def learned(
    x: Tensor, y: Tensor, penalty: float = 0.0, steps: int = 1000
) -> tuple[Ordered, list[int]]:
    """Factors of one linear layer trained from noise to map ``x`` to ``y``, ranks after steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    layer = Ordered(0.5 * torch.randn(SIZE, SIZE), 0.5 * torch.randn(SIZE, SIZE), SIZE)
    layer.put_on(net[0])
    data = TrainingData(lambda: [((x,), y)] * 50, F.mse_loss)
    plan = Plan(steps, 0.1, task=1.0, decay=0.0, checks=1, clip=1e9)
    ranks: list[int] = []
    with session(progress=lambda _: ranks.append(int(layer.rank))):
        train(net, None, data, plan, companion=OrderedDropout([layer], penalty, list))
    return layer, ranks


def off_svd() -> float:
    """The largest angle between learned leading spans and those of the singular vectors."""
    wanted = turned(3 * 0.6 ** torch.arange(SIZE), 1)
    x = white(2)
    u, _, v = torch.linalg.svd(wanted)
    layer, _ = learned(x, x @ wanted.T)
    pairs = [(layer.kept(k), k) for k in range(1, SIZE)]
    return max(max(angle(s, u[:, :k]), angle(f.T, v[:k].T)) for (f, s), k in pairs)


def off_pca() -> float:
    """The largest angle between an autoencoder's learned spans and the principal components."""
    axes = torch.linalg.qr(turned(torch.ones(SIZE), 4))[0]
    x = white(3) * 2 * 0.6 ** torch.arange(SIZE) @ axes.T
    layer, _ = learned(x, x)
    return max(angle(layer.kept(k)[1], axes[:, :k]) for k in range(1, SIZE))


def rises() -> tuple[int, int]:
    """Steps at which a rank rose while a map of rank 2 was learned, and the rank it ended at."""
    x = white(5)
    values = torch.tensor([3.0, 2.0, 0.0, 0.0])
    _, ranks = learned(x, x @ turned(values, 6).T, penalty=0.2, steps=300)
    return sum(b > a for a, b in itertools.pairwise(ranks)), ranks[-1]


def curves(seed: int, epochs: int) -> dict[str, float]:
    """Held-out accuracy of the whole network and of each way's networks at every share.

    Every way takes the same number of steps: trained whole and cut afterwards, trained under
    ordered dropout once, or trained at one share after a quarter of the steps (fixed rank).
    """
    torch.set_num_threads(1)
    how = _scans.Plan(epochs, rate=RATE, noise=0.5)
    scans, judge = _scans.Scans(how), _scans.judge(how)
    data = TrainingData(scans, F.cross_entropy)
    steps = epochs * (720 // how.batch)

    def plan(n: int) -> Plan:
        return Plan(n, RATE, task=1.0, decay=0.0, checks=1, seed=seed)

    def fresh() -> nn.Module:
        torch.manual_seed(seed)
        return network()

    def of(model: nn.Module) -> Workload:
        calibration = [inputs for (inputs, _), _ in zip(scans(), range(8), strict=False)]
        return Workload(model, (judge.images[:8],), training=data, calibration=calibration)

    def cut(workload: Workload, way: Rewrite) -> nn.Module:
        sites = way.sites(workload, capture(workload)).only(KEPT)
        return way.apply(workload, sites).workload.model

    def score(model: nn.Module) -> float:
        torch.manual_seed(seed)
        recalibrate(model, ((inputs, {}) for inputs, _ in scans()))
        return float(judge(model).mean())

    plain = fresh()
    train(plain, None, data, plan(steps))
    found = {"whole": score(plain)}
    whole = of(plain)
    ours = cut(
        of(fresh().eval()),
        TrainedLowRank(SHARES[0], steps=steps, lr=RATE, task=1.0, seed=seed),
    )
    before = capture(whole).macs
    for share in SHARES:
        small = narrowed(ours, share)
        found[f"maestro, {share:g}"] = score(small)
        for name, aware in (("svd", False), ("aware svd", True)):
            way = LowRank(share=share, round_to=1, aware=aware)
            found[f"{name}, {share:g}"] = score(cut(whole, way))
        if share == SHARES[0]:
            found["macs"] = before / capture(of(small)).macs
    warm = fresh()
    train(warm, None, data, plan(steps // 4))
    thin = cut(of(warm.eval()), LowRank(share=0.2, round_to=1))
    train(thin, None, data, plan(steps - steps // 4))
    return found | {"fixed rank, 0.2": score(thin)}


class MaestroCard(Card):
    """Exact linear cases; a digits CNN cut to many shares after one training."""

    key = "maestro-lod"
    claim = (
        "recovers the singular value decomposition and the principal components in the linear "
        "cases; smaller networks at preserved accuracy, at many sizes from one training"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "angle": 1e-2,
        "rank_rises": 0.0,
        "minus_svd": 0.0,
        "drop": 0.005,
        "macs_ratio": 2.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; all ways get the same steps."""
        t, quick = self.thresholds, scale == "quick"
        angles = {"singular vectors": off_svd(), "principal components": off_pca()}
        rose, ended = rises()
        seeds = list(range(6 if quick else 10))
        by = Paired.run(curves, seeds, 8 if quick else 40, progress=progress)
        ratio, top = min(by["macs"]), SHARES[0]
        checks = [
            *(
                Check(f"angle to the {n}", a, "<=", t["angle"], unit="rad")
                for n, a in angles.items()
            ),
            Check("steps at which a rank rose", rose, "<=", t["rank_rises"]),
            *(
                _task.mean_check(
                    f"accuracy at {s:g} of the weights, Maestro minus SVD",
                    by.less(f"maestro, {s:g}", f"svd, {s:g}"),
                    ">=",
                    t["minus_svd"],
                )
                for s in SHARES[1:]
            ),
            _task.mean_check(
                f"drop from the whole network at {top:g}",
                by.less("whole", f"maestro, {top:g}"),
                "<=",
                t["drop"],
            ),
            Check(f"MACs, whole over {top:g}", ratio, ">=", t["macs_ratio"], unit="x"),
        ]
        names = [n for n in by if n != "macs"]
        figures: dict[str, Figure] = {
            **by.figures("accuracy", names),
            f"MACs, whole over {top:g}": counted(ratio, "x"),
            "rank that a map of rank 2 ended at": counted(ended, ""),
        }
        return Experiment(
            figures, checks, seeds, {"accuracy": by.rows("network", "accuracy", names)}
        )
