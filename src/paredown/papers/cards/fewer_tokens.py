"""Claim card of GTP-ViT: graph-based token propagation without training (arXiv:2311.03035)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from paredown import zoo
from paredown.figure import Figure, counted
from paredown.graph.capture import capture, fake_workload
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width, mean_figure
from paredown.papers.cards import _scans
from paredown.papers.cards._task import mean_check, pool
from paredown.papers.timing import side_by_side
from paredown.technique import Technique
from paredown.techniques.tokens.merging import TokenMerging
from paredown.techniques.tokens.propagation import TokenPropagation
from paredown.workload import Workload
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit
from paredown.zoo.vit import ViT

SIDE = 32
# 64 patches, 4 blocks: 8 given up in each saves a quarter of the work, 12 (as many as merging can
# in the last block) a bit above a third.
QUARTER, MOST = 8, 12
REMOVED: dict[Scale, tuple[int, ...]] = {
    "quick": (QUARTER, MOST),
    "full": (4, QUARTER, 10, MOST),
}
PLANS: dict[Scale, _scans.Plan] = {
    "quick": _scans.Plan(9, 24, 3e-3, SIDE, SIDE, 0.45),
    "full": _scans.Plan(40, 24, 3e-3, SIDE, SIDE, 0.7),
}
# The authors search alpha for each P; here it is chosen on validation scans, never on those judged.
ALPHAS = (0.1, 0.3)
RELEASED = 8
"""P of the paper's 25 %, for ViT-B's count and for the timing."""


def small_vit() -> ViT:
    """65 tokens, 48 channels; weights wide enough that such a narrow net learns in few steps."""
    model = ViT(48, 4, 3, 10, 1, image_size=SIDE, patch=4, mlp_ratio=2)
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.xavier_uniform_(p)
    return model


def reducer(model: nn.Module, size: int = SIDE, channels: int = 1) -> Callable[[Technique], Any]:
    """What puts a token technique on all blocks of a copy of a model, which it captures once."""
    workload = Workload(model.eval(), (torch.zeros(1, channels, size, size),))
    graph = capture(workload)

    def reduced(technique: Technique) -> Any:
        sites = technique.sites(workload, graph)
        return technique.rewrite(
            workload, sites, technique.assume(workload, graph, sites)
        ).workload.model

    return reduced


def methods(removed: int, alpha: float, seed: int) -> dict[str, Technique]:
    """Four ways to give up the same number of tokens in every block."""
    return {
        "GTP": TokenPropagation(per_block=removed, alpha=alpha),
        "ToMe": TokenMerging(per_block=removed),
        "pruning": TokenPropagation(per_block=removed, alpha=0.0),
        "random": TokenPropagation(per_block=removed, alpha=0.0, select="random", seed=seed),
    }


def judged(seed: int, scale: Scale) -> dict[str, float]:
    """Held-out accuracy of one trained network, whole and with fewer tokens (in a worker)."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    plan, model = PLANS[scale], small_vit()
    fit(
        model,
        [Phase(_scans.Scans(plan), plan.epochs)],
        rate=plan.rate,
        seed=seed,
        loss=F.cross_entropy,
    )
    held_out, validation = _scans.judge(plan), _validation(plan)
    reduced = reducer(model)
    found = {"original": float(held_out(model).mean())}
    for removed in REMOVED[scale]:
        tried = {
            a: float(validation(reduced(TokenPropagation(per_block=removed, alpha=a))).mean())
            for a in ALPHAS
        }
        alpha = max(tried, key=lambda a: tried[a])
        for name, technique in methods(removed, alpha, seed).items():
            found[f"{name} {removed}"] = float(held_out(reduced(technique)).mean())
    return found


def _validation(plan: _scans.Plan) -> digits.Accuracy:
    ink, labels = digits.split("validation", plan.size)
    generator = torch.Generator().manual_seed(_scans.JUDGE_SEED + 1)
    images = torch.cat([_scans.placed(ink, plan, generator) for _ in range(2)])
    return digits.Accuracy(images, labels.repeat(2), batch=128)


def timed() -> list[tuple[str, Callable[[], Any]]]:
    """ViT-Ti/16 at 224 pixels, batch 1, whole and at P = 8 (in the timing child)."""
    model = zoo.create("vit-ti").eval()
    x = torch.randn(1, 3, 224, 224)
    runs: dict[str, Any] = {"original": model}
    reduced = reducer(model, 224, 3)
    for name in ("ToMe", "GTP"):
        technique = methods(RELEASED, ALPHAS[0], 0)[name]
        runs[name] = reduced(technique)
    return [(name, lambda m=m: m(x)) for name, m in runs.items()]


def saved_macs() -> float:
    """Share of DeiT-B's multiply-accumulates that P = 8 saves, counted without weights."""
    with torch.device("meta"):
        model = zoo.create("vit-b").eval()
    workload = fake_workload(Workload(model, (torch.empty(1, 3, 224, 224, device="meta"),)))
    graph = capture(workload)
    technique = TokenPropagation(per_block=RELEASED)
    return 1 - technique.preview(graph, technique.sites(workload, graph)).graph.macs / graph.macs


class GtpCard(Card):
    """Propagation, merging, pruning and random dropping on trained ViTs at equal token counts."""

    key = "gtp-vit"
    claim = (
        "giving up tokens after sending what they hold along a graph saves a quarter of a ViT's "
        "work at a drop below a point without training, beats plain pruning and token merging at "
        "the same number of tokens, and runs faster than merging"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "macs_saved": 0.25,
        "drop_at_a_quarter": 0.01,
        "minus_pruning": 0.0,
        "minus_merging": 0.0,
        "minus_random": 0.0,
        "time_over_merging": 1.0,
        "time_over_original": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Differences are paired by network; times in eager fp32 on 2 threads."""
        progress("counting and timing")
        saved = saved_macs()
        rows = side_by_side(
            timed, seconds=6.0 if scale == "quick" else 40.0, threads=2, limit_s=400
        )
        seeds = list(range(4 if scale == "quick" else 8))
        found: list[dict[str, float]] = []
        with pool(2) as workers:
            jobs = [workers.submit(judged, seed, scale) for seed in seeds]
            for seed, job in zip(seeds, jobs, strict=True):
                found.append(job.result())
                told = ", ".join(f"{k} {v:.3f}" for k, v in found[-1].items())
                progress(f"seed {seed}: {told}")
        return self._judge(saved, rows, found, seeds)

    def _judge(
        self,
        saved: float,
        rows: dict[str, dict[str, Any]],
        found: list[dict[str, float]],
        seeds: list[int],
    ) -> Experiment:
        t = self.thresholds
        by_name = {name: [f[name] for f in found] for name in found[0]}
        ours, most = by_name[f"GTP {QUARTER}"], by_name[f"GTP {MOST}"]
        over = rows["GTP"]["ratio"].known() / rows["ToMe"]["ratio"].known()
        # Both ratios are to the same original: their errors add at most.
        spread = over * sum(
            half_width(rows[n]["ratio"]) / rows[n]["ratio"].known() for n in ("GTP", "ToMe")
        )
        checks = [
            Check("MACs saved, ViT-B at P = 8", saved, ">=", t["macs_saved"]),
            mean_check(
                "drop, GTP at a quarter less work",
                np.subtract(by_name["original"], ours).tolist(),
                "<=",
                t["drop_at_a_quarter"],
            ),
            *(
                mean_check(
                    f"accuracy at a third less work, GTP minus {name}",
                    np.subtract(most, by_name[f"{name} {MOST}"]).tolist(),
                    ">=",
                    t[key],
                )
                for name, key in (
                    ("pruning", "minus_pruning"),
                    ("ToMe", "minus_merging"),
                    ("random", "minus_random"),
                )
            ),
            Check("time, GTP over ToMe", over, "<=", t["time_over_merging"], spread, "x"),
            Check(
                "time, GTP over original",
                rows["GTP"]["ratio"].known(),
                "<=",
                t["time_over_original"],
                half_width(rows["GTP"]["ratio"]),
                "x",
            ),
        ]
        figures: dict[str, Figure] = {
            "MACs saved, ViT-B at P = 8": counted(saved, "1"),
            "time, GTP over original": rows["GTP"]["ratio"],
            "time, ToMe over original": rows["ToMe"]["ratio"],
            "a/a ratio": rows["a/a"]["ratio"],
            **{f"accuracy, {name}": mean_figure(v, "") for name, v in by_name.items()},
        }
        table = [
            {"method": name, "accuracy": float(np.mean(values)), "networks": len(values)}
            for name, values in by_name.items()
        ]
        return Experiment(figures, checks, seeds, {"accuracy": table})
