"""Claim card of adaptive computation modules (Wojcik et al. 2023, arXiv:2312.10193)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from paredown.figure import Figure
from paredown.graph.capture import capture
from paredown.measure.child import Jobs, Limits
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.runtime.adaptive_mlp import AdaptiveMlp
from paredown.techniques.adaptive.acm_training import slices
from paredown.techniques.adaptive.computation import AdaptiveComputation
from paredown.techniques.recover import Plan, train
from paredown.workload import TrainingData, Workload, share
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit
from paredown.zoo.vit import ViT

SIDE, CHANNELS, RATIO = 16, 48, 4
TARGETS = (0.6, 0.4)
STEPS: dict[Scale, tuple[int, int]] = {"quick": (60, 150), "full": (300, 1500)}
"""Steps of the first two phases each, and of the third."""
LAYER, TOKENS = 768, 197
"""The feed-forward layer that is timed: ViT-B's, on 197 tokens."""


def plan(scale: Scale) -> _scans.Plan:
    """How the networks are trained."""
    epochs = 9 if scale == "quick" else 40
    return _scans.Plan(epochs, 24, 3e-3, SIDE, SIDE, 0.45)


def trained(seed: int, scale: Scale) -> Workload:
    """A ViT of four blocks on noisy scans, with judges for thresholds and data to train on."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = ViT(CHANNELS, 4, 3, 10, 1, image_size=SIDE, patch=4, mlp_ratio=RATIO)
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.xavier_uniform_(p)
    how = plan(scale)
    batches = _scans.Scans(how)
    fit(model, [Phase(batches, how.epochs)], rate=how.rate, seed=seed, loss=F.cross_entropy)
    ink, labels = digits.split("validation", SIDE)
    generator = torch.Generator().manual_seed(_scans.JUDGE_SEED + 1)
    images = _scans.placed(ink, how, generator)
    return Workload(
        model.eval(),
        (images[:24],),
        calibration=list(images.split(64)),
        evaluate=digits.Accuracy(images, labels, batch=128),
        training=TrainingData(batches, F.cross_entropy),
        scale=1.0,
        population=list(_scans.judge(how).images[:240].split(24)),
    )


def narrowed(w: Workload, keep: float, steps: int, seed: int) -> nn.Module:
    """The same share of hidden units in every layer for every token, those that matter most,
    trained as long.
    """
    model: Any = share(w.model)
    inputs: dict[int, torch.Tensor] = {}
    hooks = [
        block.mlp.register_forward_hook(
            lambda _m, args, _out, i=i: inputs.__setitem__(i, args[0].flatten(0, -2))
        )
        for i, block in enumerate(model.blocks)
    ]
    with torch.no_grad():
        model(*w.inputs)
    for hook in hooks:
        hook.remove()
    count = round(keep * RATIO * CHANNELS)
    for i, block in enumerate(model.blocks):
        old = block.mlp
        order = AdaptiveMlp(CHANNELS, CHANNELS, RATIO * CHANNELS, 1, "gelu", [1.0])
        slices((old.fc1, old.fc2), order, inputs[i])
        old.fc1, old.fc2 = nn.Linear(CHANNELS, count), nn.Linear(count, CHANNELS)
        with torch.no_grad():
            old.fc1.weight.copy_(order.up.weight[:count])
            old.fc1.bias.copy_(order.up.bias[:count])
            old.fc2.weight.copy_(order.down[:count].t())
            old.fc2.bias.copy_(order.bias)
    assert w.training is not None
    settings = Plan(steps, 1e-3, temperature=1.0, task=0.5, checks=8, seed=seed)
    train(model, share(w.model), w.training, settings, evaluate=w.evaluate)
    return model.eval()


def scores(seed: int, scale: Scale) -> dict[str, float]:
    """Held-out accuracy, mean load of what was judged, and its span over images (in a worker)."""
    w, judge = trained(seed, scale), _scans.judge(plan(scale))
    layer_steps, steps = STEPS[scale]
    found = {"original": float(judge(w.model).mean())}
    graph = capture(w)
    for target in TARGETS:
        technique = AdaptiveComputation(target, steps=steps, layer_steps=layer_steps, seed=seed)
        change = technique.apply(w, technique.sites(w, graph))
        layers = [m for m in change.workload.model.modules() if isinstance(m, AdaptiveMlp)]
        for layer in layers:
            layer.counts = [0] * (layer.learners + 1)
        found[f"adaptive {target}"] = float(judge(change.workload.model).mean())
        loads: list[float] = []
        for layer in layers:
            counts = layer.counts or [0]
            run = sum(n * c for n, c in enumerate(counts))
            loads.append(run / max(1, sum(counts)) / layer.learners)
        found[f"load {target}"] = sum(loads) / len(loads)
        # The gates' own work counts: a narrowed layer spends it on hidden units.
        whole = 4 * 17 * 2 * RATIO * CHANNELS**2
        gates = 4 * 17 * (CHANNELS * 16 + 16 * 16 + 16 * 5)
        equal = found[f"load {target}"] + gates / whole
        longer = steps + 2 * layer_steps
        found[f"narrowed {target}"] = float(judge(narrowed(w, equal, longer, seed)).mean())
    return found


def timed(seconds: float) -> dict[str, tuple[Figure, Figure]]:
    """A layer of ViT-B's size with random gates at a load of about 0.4, 0.6 and 1, over the dense
    one (in a child).
    """
    from paredown.measure.compare import interleave
    from paredown.nn.mlp import Mlp

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1, TOKENS, LAYER)
    dense = Mlp(LAYER, 4 * LAYER).eval()
    runs: list[tuple[str, Any]] = [("dense", lambda: dense(x))]
    for load in (0.4, 0.6, 1.0):
        m = AdaptiveMlp(LAYER, LAYER, LAYER, 4, "gelu", [load] * 4).eval()
        nn.init.normal_(m.down, std=0.02)
        _spread(m, x, load)
        runs.append((f"load {load}", lambda m=m: m(x)))
    with torch.inference_mode():
        done = interleave(runs, seconds=seconds)
    found = {t.name: (t.latency, t.ratio) for t in done.timings}
    return found | {"a/a": (done.timings[0].latency, done.a_a)}


def _spread(module: AdaptiveMlp, x: torch.Tensor, load: float) -> None:
    """Gates whose choices over these tokens have this mean: the last bias is tilted until so."""
    last: Any = module.gate[-1]
    with torch.no_grad():
        last.weight.mul_(20)
        if load == 1:
            last.bias.copy_(1e3 * torch.arange(5.0))
            return
        low, high = -5.0, 5.0
        for _ in range(30):
            tilt = (low + high) / 2
            last.bias.copy_(tilt * torch.arange(5.0))
            mean = float(module.gate(x).argmax(-1).float().mean()) / 4
            low, high = (tilt, high) if mean < load else (low, tilt)


class ACMCard(Card):
    """ViTs on noisy scans: adaptive layers against narrowed ones of equal work."""

    key = "acm"
    claim = (
        "learners in order and a gate per token, in place of trained feed-forward layers, keep "
        "accuracy over a wide range of budgets, above layers that are narrowed for every token "
        "alike, and land at the budget they were given"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "loss_at_0.6": 0.01,
        "over_narrowed_0.6": 0.0,
        "over_narrowed_0.4": 0.0,
        "load_off": 0.05,
        "time_over_dense_0.6": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Accuracy over seeds; a layer's time in eager fp32 on one thread."""
        rows = Jobs().run(timed, 3.0 if scale == "quick" else 20.0, limits=Limits.default(600.0))
        seeds = list(range(3 if scale == "quick" else 8))
        by = Paired.run(scores, seeds, scale, progress=progress)
        t = self.thresholds
        off = max(abs(x - target) for target in TARGETS for x in by[f"load {target}"])
        ratio = rows["load 0.6"][1]
        checks = [
            _task.mean_check(
                "accuracy lost at 0.6", by.less("original", "adaptive 0.6"), "<=", t["loss_at_0.6"]
            ),
            *(
                _task.mean_check(
                    f"accuracy at {x}, adaptive minus narrowed",
                    by.less(f"adaptive {x}", f"narrowed {x}"),
                    ">=",
                    t[f"over_narrowed_{x}"],
                )
                for x in TARGETS
            ),
            Check("mean load, furthest from its target", off, "<=", t["load_off"]),
            Check(
                "time of ViT-B's layer at a load of 0.6 over the dense one",
                ratio.known(),
                "<=",
                t["time_over_dense_0.6"],
                half_width(ratio),
                "x",
            ),
        ]
        figures: dict[str, Figure] = {f"time over dense, {n}": r for n, (_, r) in rows.items()}
        figures |= by.figures("of 1")
        return Experiment(figures, checks, seeds)
