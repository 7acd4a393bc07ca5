"""Claim card of BDWP and SAT: N:M sparse training in both directions (arXiv:2309.13015)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from paredown import device, kernels, zoo
from paredown.cost.sparse_training import Step, share_of_macs, step
from paredown.cost.systolic import layers
from paredown.figure import Figure, counted, predicted, unavailable
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _scans, _sparse, _task
from paredown.papers.cards._paired import Paired
from paredown.papers.timing import side_by_side
from paredown.techniques.recover import Plan, train
from paredown.techniques.sparsify import nm_products
from paredown.workload import TrainingData, Workload

DEVICE = "sat-vcu1525"
PRICED = {"ResNet-18": ("resnet18", 64), "ViT-S": ("vit-s", 64)}
"""Networks of the array's model, at 224 pixels, and their batch."""
NOISE = 0.7
LAYERS = ("3", "6")
"""Convolutions of the small network that train sparse: all but the first."""
WAYS: dict[str, dict[str, Any]] = {
    "BDWP 2:4": {"n": 2, "m": 4, "decay": 2e-4},
    "BDWP 2:8": {"n": 2, "m": 8, "decay": 2e-4},
    "BDWP 2:8 without decay": {"n": 2, "m": 8},
    "forward alone 2:8": {"n": 2, "m": 8, "direction": "forward", "decay": 2e-4},
    "backward alone 2:8": {"n": 2, "m": 8, "direction": "backward"},
}


def network() -> nn.Module:
    """Three convolutions with batch norms and a linear, on 16 pixels."""
    parts: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        parts += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def quality(seed: int, epochs: int) -> dict[str, float]:
    """Held-out accuracy after the same steps from the same start, dense and in every way."""
    torch.set_num_threads(1)
    how = _scans.Plan(epochs, noise=NOISE)
    judge, data = _scans.judge(how), TrainingData(_scans.Scans(how), F.cross_entropy)
    plan = Plan(epochs * (720 // how.batch), how.rate, task=1.0, checks=1, seed=seed)

    def trained(**way: Any) -> nn.Module:
        torch.manual_seed(seed)
        model = network()
        if way:
            nm_products.convert(model, LAYERS, **way)
        train(model, None, data, plan)
        return model

    dense = trained()
    found = {"dense": float(judge(dense).mean())}
    found |= {name: float(judge(trained(**way)).mean()) for name, way in WAYS.items()}
    with torch.no_grad():
        for path in LAYERS:
            weight: Any = dense.get_submodule(path).weight
            weight.copy_(torch.where(nm_products.kept(weight, 2, 8, 1), weight, 0.0))
    return found | {"2:8 after training": float(judge(dense).mean())}


def priced(name: str, batch: int) -> dict[tuple[int, int] | None, Step]:
    """Training steps on the array: dense (None) and by pattern, all layers but the first and last.

    Convolutions whose channels M does not divide stay dense.
    """
    with torch.device("meta"):
        model = zoo.create(name).to(torch.bfloat16).eval()
        image = torch.empty(batch, 3, 224, 224, dtype=torch.bfloat16)
    found = layers(capture(Workload(model, (image,))))
    where = device.load(DEVICE)
    steps: dict[tuple[int, int] | None, Step] = {None: step(found, where)}
    for n, m in ((2, 4), (2, 8)):
        sparse = {x.name for x in found[1:-1] if x.inputs % m == x.outputs % m == 0}
        steps[n, m] = step(found, where, sparse, (n, m))
    return steps


def packed() -> list[tuple[str, Callable[[], Any]]]:
    """128 rows through 768 x 768, float32: the engine's dense and its packed kernel (in the child).

    It has no kernel of its own for N:M: the one for single weights runs.
    """
    g = torch.Generator().manual_seed(0)
    a, w = torch.randn(128, 768, generator=g), torch.randn(768, 768, generator=g)
    thin = torch.where(nm_products.kept(w, 2, 8, 1), w, 0.0)
    runs: list[tuple[str, Callable[[], Any]]] = []
    for name, form, weight in (("dense", None, w), ("packed", "single", thin)):
        run, out = _sparse.product("avx512", form, a, weight)
        run()
        torch.testing.assert_close(out, a @ weight.T, rtol=1e-3, atol=1e-2)
        runs.append((name, run))
    return runs


class BDWPCard(Card):
    """Small CNNs trained in six ways; ResNet-18 and ViT-S on the array's model."""

    key = "bdwp-sat"
    claim = (
        "training with weights 2:8 sparse forward and backward halves the work of a step, costs "
        "about half a point of accuracy and is 1.75x faster on an array that skips zeros (energy "
        "and other accelerators left out here)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "drop": 0.01,
        "minus_after_training": 0.0,
        "macs_off_the_formula": 1e-9,
        "least_speed_up": 1.5,
        "most_speed_up": 2.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed: all ways start from the same weights."""
        t, quick = self.thresholds, scale == "quick"
        steps = {what: priced(*args) for what, args in PRICED.items()}
        why, figures = kernels.why_missing(), dict[str, Figure]()
        native: Any = kernels.native()
        if why is None and "avx512" not in native.levels():
            why = "no AVX-512 here"
        if why is None:
            rows = side_by_side(packed, seconds=2.0, threads=1, limit_s=120)
            figures["packed 2:8 product on the CPU, time over dense"] = rows["packed"]["ratio"]
        else:
            figures["packed 2:8 product on the CPU, time over dense"] = unavailable("x", why)
        seeds = list(range(5 if quick else 10))
        by = Paired.run(quality, seeds, 8 if quick else 40, progress=progress)
        checks = [
            *(
                _task.mean_check(f"drop, {name}", by.less("dense", name), "<=", t["drop"])
                for name in ("BDWP 2:4", "BDWP 2:8")
            ),
            _task.mean_check(
                "accuracy, BDWP 2:8 minus 2:8 after training",
                by.less("BDWP 2:8", "2:8 after training"),
                ">=",
                t["minus_after_training"],
            ),
            Check(
                "MACs of a sparse layer's step off (2 N/M + 1) / 3",
                max(abs(counted_share(n, m) - share_of_macs(n, m)) for n, m in ((2, 4), (2, 8))),
                "<=",
                t["macs_off_the_formula"],
            ),
        ]
        table: list[dict[str, Any]] = []
        for what, found in steps.items():
            gain = found[None].seconds / found[2, 8].seconds
            checks += [
                Check(f"step at 2:8, {what}: speed-up", gain, ">=", t["least_speed_up"], unit="x"),
                Check(f"step at 2:8, {what}: at most", gain, "<=", t["most_speed_up"], unit="x"),
            ]
            for pattern, one in found.items():
                name = "dense" if pattern is None else "{}:{}".format(*pattern)
                table.append(
                    {
                        "network": what,
                        "weights": name,
                        "macs": one.macs,
                        "seconds": one.seconds,
                        "update_share": one.update_s / one.seconds,
                    }
                )
            figures |= {
                f"step at 2:8, {what}: speed-up": predicted(gain, "x"),
                f"step at 2:8, {what}: MACs": counted(found[2, 8].macs / found[None].macs, "1"),
            }
        figures |= by.figures("accuracy")
        tables = {"steps": table, "accuracy": by.rows("weights", "accuracy")}
        return Experiment(figures, checks, seeds, tables)


def counted_share(n: int, m: int) -> float:
    """Weights that are not zero in a layer's three products, over those of dense ones."""
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(64, 96))
    nm_products.convert(holder, ["0"], n, m)
    layer: Any = holder[0]
    ahead, back, _ = layer.pruned()
    left = int((ahead != 0).sum()) + int((back != 0).sum()) + ahead.numel()
    return left / (3 * ahead.numel())
