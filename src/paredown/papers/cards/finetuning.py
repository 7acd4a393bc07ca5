"""Claim card of tune mode for convolution and batch norm (arXiv:2305.11624)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure, counted, measured
from paredown.measure.memory import torch_peak
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width
from paredown.papers.cards import _task
from paredown.papers.cards._paired import Paired
from paredown.papers.timing import side_by_side
from paredown.techniques.quantize.fold_norm import folded
from paredown.techniques.train.tune_mode import tune_mode
from paredown.workload import Workload
from paredown.workloads import clutter
from paredown.workloads.fit import Phase, fit
from paredown.zoo.resnet import ResNet

Mode = Literal["eval", "tune", "deploy"]
MODES: tuple[Mode, ...] = ("eval", "tune", "deploy")

# Channels of the wide-spread network have sigma up to this many decades larger.
SPREAD_DECADES = 1.5
RATES = (0.003, 0.01, 0.03)


def network(width: int = 16) -> ResNet:
    """The network whose memory and time are measured: ResNet-18 of a quarter of the width."""
    torch.manual_seed(0)
    return ResNet((2, 2, 2, 2), 10, 3, width=width)


def kept_bytes(width: int, size: int) -> dict[str, int]:
    """What a step at batch 8 keeps for its backward pass, in each mode."""
    x = torch.randn(8, 3, size, size)
    models = {mode: in_mode(network(width), mode, x[:1]) for mode in MODES}
    return {mode: saved_bytes(lambda m=m: m(x), m) for mode, m in models.items()}


def small_network(classes: int) -> ResNet:
    """The network that is pretrained and fine-tuned on digits in clutter."""
    return ResNet((1, 1, 1), classes, 1, width=16)


def in_mode(model: nn.Module, mode: Mode, example: Tensor) -> nn.Module:
    """The model in evaluation mode, tuned, or with its norms folded for good (a copy)."""
    model.eval()
    if mode == "eval":
        return model
    tuned = tune_mode(Workload(model, (example,)))
    if mode == "tune":
        return tuned.model
    deployed = copy.deepcopy(model)
    for norm, path in tuned.pairs.items():
        conv: Any = deployed.get_submodule(path)
        weight, bias = folded(conv, deployed.get_submodule(norm))
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        parent, _, name = norm.rpartition(".")
        setattr(deployed.get_submodule(parent), name, nn.Identity())
    return deployed


def saved_bytes(run: Callable[[], Any], model: nn.Module | None = None) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once.

    Parameters and statistics of ``model`` are left out: they are there anyway.
    """
    there: list[Tensor] = [*model.parameters(), *model.buffers()] if model is not None else []
    own = {t.untyped_storage().data_ptr() for t in there}
    seen: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        kept = run()
    del kept
    return sum(seen.values())


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One forward and backward pass, gradients dropped."""

    def run() -> None:
        # The timing child is in inference mode, where nothing can be trained.
        with torch.inference_mode(False), torch.enable_grad():
            F.cross_entropy(model(x), y).backward()
            model.zero_grad(set_to_none=True)

    return run


def steps(batch: int, size: int) -> list[tuple[str, Callable[[], None]]]:
    """A training step in each mode, ready to be timed (built in the timing child)."""
    with torch.inference_mode(False):
        x, y = torch.randn(batch, 3, size, size), torch.zeros(batch, dtype=torch.int64)
        return [(mode, step(in_mode(network(), mode, x[:1]), x, y)) for mode in MODES]


def widened(model: nn.Module, seed: int) -> nn.Module:
    """The same function with sigma of each channel up to ``SPREAD_DECADES`` larger."""
    generator = torch.Generator().manual_seed(seed)
    out = copy.deepcopy(model)
    for block in list(out.modules()):
        conv, norm = getattr(block, "conv", None), getattr(block, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            scale = 10 ** (torch.rand(conv.out_channels, generator=generator) * SPREAD_DECADES)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            conv.weight.data *= scale.reshape(-1, 1, 1, 1)
            norm.running_mean *= scale
            # The epsilon keeps its share, so that the function is exactly the same.
            norm.running_var.copy_((norm.running_var + norm.eps) * scale**2 - norm.eps)
    return out


class _Half:
    """Training scenes of the first five digits only."""

    def __init__(self, budget: _task.Budget) -> None:
        self.scenes = clutter.Scenes(
            budget.size, batch=budget.batch, noise=_task.NOISE, pieces=_task.PIECES
        )

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for (x,), y in self.scenes():
            yield (x[y < 5],), y[y < 5]


def finetune(
    model: nn.Module, rate: float, seed: int, budget: _task.Budget
) -> tuple[float, list[float]]:
    """Held-out accuracy and losses after plain SGD with momentum; 0.1 where it diverged."""
    torch.manual_seed(seed)
    scenes = clutter.Scenes(budget.size, batch=budget.batch, noise=_task.NOISE, pieces=_task.PIECES)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    losses: list[float] = []
    for _ in range(max(2, budget.epochs // 4)):
        for (x,), y in scenes():
            loss = F.cross_entropy(model(x), y)
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                return 0.1, losses
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return float(_task.judge(budget.size)(model).mean()), losses


def transfer(seed: int, budget: _task.Budget) -> dict[str, float]:
    """Pretrain on five classes, fine-tune on ten in each mode, at the rate best for eval mode.

    The choice of that rate uses another order of the data than the comparison.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = small_network(5)
    fit(model, [Phase(_Half(budget), budget.epochs)], rate=budget.rate, seed=seed)
    head: Any = model.head
    head[-1] = nn.Linear(head[-1].in_features, 10)
    nn.init.zeros_(head[-1].weight)
    wide = widened(model, seed)
    example = torch.zeros(1, 1, budget.size, budget.size)
    trials = {
        r: finetune(in_mode(copy.deepcopy(wide), "eval", example), r, seed + 50, budget)[0]
        for r in RATES
    }
    rate = max(trials, key=lambda r: trials[r])
    found: dict[str, float] = {"rate": rate}
    losses: dict[str, list[float]] = {}
    for mode in MODES:
        ready = in_mode(copy.deepcopy(wide), mode, example)
        found[mode], losses[mode] = finetune(ready, rate, seed, budget)
    first = np.subtract(losses["tune"][:10], losses["eval"][:10])
    found["loss difference"] = float(np.abs(first).max())
    return found


class TuneModeCard(Card):
    """Saved bytes counted, peak and time of a step measured, fine-tuning in three modes."""

    key = "tune-mode-convbn"
    claim = (
        "folding a frozen batch norm in every forward pass keeps the accuracy of evaluation mode "
        "with significantly less training memory and time, nearly those of the folded network, "
        "whose own fine-tuning is unstable"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "saved_bytes_ratio": 0.75,
        "step_time_ratio": 1.0,
        "loss_difference": 1e-3,
        "tune_minus_eval": -0.01,
        "eval_minus_deploy": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """ResNet-18 of width 16, batch 8 at 224 x 224; then transfer between digits, by seed.

        Tune mode keeps the folded weights too, so it loses where weights outweigh maps: the same
        is counted at 64 x 64 with twice the width.
        """
        t = self.thresholds
        kept, few = kept_bytes(16, 224), kept_bytes(32, 64)
        peak = {mode: torch_peak(run) for mode, run in steps(8, 224)}
        progress("timing steps")
        seconds = 12.0 if scale == "quick" else 40.0
        rows = side_by_side(steps, 8, 224, seconds=seconds, threads=2, limit_s=300)
        speed: Figure = rows["tune"]["ratio"]
        seeds = list(range(3 if scale == "quick" else 10))
        budget = _task.Budget(epochs=8 if scale == "quick" else 15)
        by = Paired.run(transfer, seeds, budget, progress=progress)
        checks = [
            Check(
                "saved bytes, tune over eval",
                kept["tune"] / kept["eval"],
                "<=",
                t["saved_bytes_ratio"],
                unit="x",
            ),
            Check(
                "time of a step, tune over eval",
                speed.known(),
                "<=",
                t["step_time_ratio"],
                half_width(speed),
                "x",
            ),
            Check(
                "losses of 10 steps, tune off eval",
                max(by["loss difference"]),
                "<=",
                t["loss_difference"],
            ),
            _task.not_worse(
                "accuracy, tune minus eval", by["tune"], by["eval"], t["tune_minus_eval"]
            ),
            _task.not_worse(
                "accuracy, eval minus deploy", by["eval"], by["deploy"], t["eval_minus_deploy"]
            ),
        ]
        figures: dict[str, Figure] = {
            **{f"saved bytes, {m}": counted(b, "B") for m, b in kept.items()},
            "saved bytes, tune over eval, 64 x 64, twice the width": counted(
                few["tune"] / few["eval"], "x"
            ),
            **{f"peak of a step, {m}": measured(b, "B", n=1) for m, b in peak.items()},
            **{f"time of a step, {m}": rows[m]["latency"] for m in MODES},
            "time of a step, tune over eval": speed,
            "time of a step, deploy over eval": rows["deploy"]["ratio"],
            "a/a ratio": rows["a/a"]["ratio"],
            **by.figures("accuracy", MODES),
        }
        return Experiment(figures, checks, seeds, {"transfer": by.rows("measured", "value")})
