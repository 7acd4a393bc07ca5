"""Claim card of LPViT: blocks chosen by second-order damage and power (arXiv:2407.02068)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paredown import kernels, recipe, runtime
from paredown.figure import Figure, counted, predicted, unavailable
from paredown.graph.capture import capture
from paredown.measure.energy import why_unavailable
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width
from paredown.papers.cards import _scans, _sparse, _task, _vits
from paredown.papers.cards._paired import Paired
from paredown.papers.timing import Rows, side_by_side
from paredown.runtime.gate import gate
from paredown.technique import Change, Technique
from paredown.techniques.sparsify.block_pruning import BlockPruning
from paredown.techniques.sparsify.one_shot import OneShotPruning
from paredown.workload import Workload
from paredown.zoo.vit import ViT

SHARES = (0.3, 0.5, 0.7)
BLOCK = "16x16"
"""The released scripts' blocks for DeiT-S; a 48-channel network has three across."""


def ways(share: float) -> dict[str, Technique]:
    """Blocks of all linears but the head at equal work, and so at equal modelled power."""
    return {
        "LPViT": BlockPruning(share=share, block=BLOCK),
        "LPViT, mean gradient": BlockPruning(share=share, block=BLOCK, gradient="mean"),
        "LPViT, each layer": BlockPruning(share=share, block=BLOCK, damage="layer"),
        "magnitude": OneShotPruning(sparsity=share, pattern=BLOCK, method="magnitude"),
        "Wanda": OneShotPruning(sparsity=share, pattern=BLOCK, method="wanda"),
    }


def without_head(workload: Workload, technique: Technique) -> Change:
    """A technique at all its sites but the classifier."""
    found = technique.sites(workload, capture(workload))
    return technique.apply(workload, found.only(except_=("head",)))


def at_random(workload: Workload, share: float, seed: int) -> nn.Module:
    """The network with blocks chosen at random, the same share of every linear but the head."""
    own = workload.own().model
    rows, columns = (int(n) for n in BLOCK.split("x"))
    for path, module in own.named_modules():
        if isinstance(module, nn.Linear) and path != "head":
            module.weight.data = _sparse.pruned(module.weight.data, share, (rows, columns), seed)
    return own


def quality(seed: int, epochs: int) -> dict[str, float]:
    """Held-out accuracy whole and with blocks gone, chosen in every way; no retraining."""
    workload = _vits.trained(seed, epochs)
    workload.calibration = list(torch.cat(list(workload.calibration or [])).split(4))
    judge = _scans.judge(_vits.plan(epochs))
    found = {"dense": float(judge(workload.model).mean())}
    for share in SHARES:
        for name, way in ways(share).items():
            change = without_head(workload, way)
            found[f"{name} {share:g}"] = float(judge(change.workload.model).mean())
            if name == "LPViT":
                found[f"MACs {share:g}"] = change.decisions.values["macs"]
                found[f"power {share:g}"] = change.decisions.values["power"]
        found[f"random {share:g}"] = float(judge(at_random(workload, share, seed)).mean())
    return found


class Products(nn.Module):
    """The four products of a ViT-B block, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(768, 2304), nn.Linear(768, 768)
        self.fc1, self.fc2 = nn.Linear(768, 3072), nn.Linear(3072, 768)

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, 768)`` to the same shape."""
        return self.fc2(self.fc1(self.proj(self.qkv(x)[:, :768])))


def executables(
    model: nn.Module, x: Tensor, recipes: dict[str, str]
) -> list[tuple[str, Callable[[], Any]]]:
    """Recipes on one network, bfloat16 on the native engine, one thread; outputs agree first."""
    runs: list[tuple[str, Callable[[], Any]]] = []
    for name, text in recipes.items():
        found = recipe.run(recipe.parse_inline(text), Workload(model.eval(), (x,))).workload
        run = runtime.backend("native").lower(found, threads=1)
        gate(run, found).demand()
        runs.append((name, lambda run=run: run(x)))
    return runs


@torch.inference_mode(False)  # blocks are chosen by gradients
def products() -> list[tuple[str, Callable[[], Any]]]:
    """A block's products, half of the 16 x 32 blocks of each gone (in the timing child)."""
    half = "one-shot-pruning:sparsity=0.5,pattern=16x32,method=magnitude; bf16"
    return executables(Products(), torch.randn(197, 768), {"dense": "bf16", "0.5": half})


@torch.inference_mode(False)
def networks(depth: int) -> list[tuple[str, Callable[[], Any]]]:
    """ViT-B/16 of some blocks at 224 pixels, untrained, batch 1 (in the timing child)."""
    model = ViT(768, depth, 12, 1000, 3, image_size=224, patch=16)
    recipes = {f"{s:g}": f"block-pruning:share={s:g}; bf16" for s in SHARES}
    return executables(model, torch.randn(1, 3, 224, 224), {"dense": "bf16", **recipes})


class LPViTCard(Card):
    """Trained small ViTs without retraining; products and networks of ViT-B's width in time."""

    key = "lpvit"
    claim = (
        "blocks of a ViT's linears chosen over all layers by second-order damage and power keep "
        "accuracy where blocks of least magnitude or random ones lose it, and make the network "
        "faster and its power lower"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "minus_magnitude": 0.05,
        "minus_random": 0.05,
        "mean_gradient_minus_magnitude": 0.0,
        "drop_at_0.3": 0.02,
        "drop_at_0.5": 0.05,
        "macs_over_budget": 0.01,
        "products_at_0.5": 1.3,
        "network_at_0.5": 1.2,
        "power_at_0.5": 1.4,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; times on one thread, both sides on the native engine."""
        native: Any = kernels.native()
        why = kernels.why_missing()
        if why is None and "amx" not in native.levels():
            why = "no AMX: the engine has no tiles to skip"
        if why is not None:
            return Experiment({}, [], [], untestable=why)
        t, quick = self.thresholds, scale == "quick"
        progress("timing")
        seconds = 4.0 if quick else 30.0
        one = side_by_side(products, seconds=seconds, threads=1, limit_s=seconds + 120)
        whole = side_by_side(
            networks, 3 if quick else 12, seconds=seconds, threads=1, limit_s=seconds + 240
        )
        seeds = list(range(4 if quick else 10))
        by = Paired.run(quality, seeds, 16 if quick else 40, progress=progress)
        checks = [
            *(
                _task.mean_check(
                    f"accuracy at {s:g}, LPViT minus {name}",
                    by.less(f"LPViT {s:g}", f"{name} {s:g}"),
                    ">=",
                    t[f"minus_{name}"],
                )
                for s in SHARES
                for name in ("magnitude", "random")
            ),
            _task.mean_check(
                "accuracy at 0.5, LPViT of the mean gradient minus magnitude",
                by.less("LPViT, mean gradient 0.5", "magnitude 0.5"),
                ">=",
                t["mean_gradient_minus_magnitude"],
            ),
            *(
                _task.mean_check(
                    f"drop at {s}, LPViT", by.less("dense", f"LPViT {s}"), "<=", t[f"drop_at_{s}"]
                )
                for s in ("0.3", "0.5")
            ),
            Check(
                "MACs kept over the budget",
                max(abs(v - 1 + s) for s in SHARES for v in by[f"MACs {s:g}"]),
                "<=",
                t["macs_over_budget"],
            ),
            _faster("products, dense over half of the blocks gone", one, t["products_at_0.5"]),
            _faster("network, dense over half of the blocks gone", whole, t["network_at_0.5"]),
            Check(
                "modelled power of the linears, dense over half of the blocks gone",
                1 / by.mean("power 0.5"),
                ">=",
                t["power_at_0.5"],
                unit="x",
            ),
        ]
        scores = [n for n in by if not n.startswith(("MACs", "power"))]
        energy = why_unavailable()
        figures: dict[str, Figure] = {
            **by.figures("accuracy", scores),
            "products, time at 0.5 over dense": one["0.5"]["ratio"],
            **{f"network, time at {s:g} over dense": whole[f"{s:g}"]["ratio"] for s in SHARES},
            "a/a ratio": whole["a/a"]["ratio"],
            "modelled power at 0.5 over dense": predicted(by.mean("power 0.5"), "1"),
            "MACs at 0.5 over dense": counted(by.mean("MACs 0.5"), "1"),
        }
        if energy is not None:
            figures["energy of a run"] = unavailable("J", energy)
        table = by.rows("blocks", "accuracy", scores)
        return Experiment(figures, checks, seeds, {"accuracy": table})


def _faster(what: str, rows: Rows, threshold: float) -> Check:
    """A check that dense takes so many times the time of half of the blocks."""
    ratio = rows["0.5"]["ratio"]
    value = 1 / ratio.known()
    return Check(what, value, ">=", threshold, half_width(ratio) * value**2, "x")
