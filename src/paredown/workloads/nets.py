"""Four small networks of different make on small tasks: the benchmark's targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from paredown import zoo
from paredown.errors import TargetError, UnknownName
from paredown.workload import Workload
from paredown.workloads import clutter, digits
from paredown.workloads.fit import Batches
from paredown.zoo.convnext import ConvNeXt
from paredown.zoo.vit import ViT
from paredown.zoo.vovnet import VoVNet


@dataclass(frozen=True)
class Net:
    """How a network is built and trained; ``size`` is the side of its square images.

    ``task`` is "clutter" (digits in clutter) or "digits" (centred ones, for what learns slowly).
    """

    build: Callable[[], nn.Module]
    size: int
    epochs: int
    rate: float
    task: Literal["clutter", "digits"] = "clutter"

    def batches(self) -> Batches:
        """Training batches of its task."""
        if self.task == "clutter":
            return clutter.Scenes(self.size)
        return digits.Epochs(*digits.split("train", self.size))


def _mobilenet() -> nn.Module:
    return zoo.create("mobilenetv2", width=0.5, num_classes=10, in_channels=1, last=640)


def _vovnet() -> nn.Module:
    stages = ((48, 96, 1), (64, 192, 1), (80, 256, 1), (96, 320, 1))
    return VoVNet(stages, num_classes=10, in_channels=1, stem=(32, 32, 64), layers=4)


def _convnext() -> nn.Module:
    return ConvNeXt(
        (2, 2, 4, 2), (32, 64, 128, 256), num_classes=10, in_channels=1, patch=4, scale=0.1
    )


def _vit() -> nn.Module:
    return ViT(128, 6, 4, num_classes=10, in_channels=1, image_size=64, patch=8, mlp_ratio=3)


NETS: dict[str, Net] = {
    "mobilenetv2": Net(_mobilenet, 96, 40, 3e-3),
    "vovnet": Net(_vovnet, 96, 36, 2e-3),
    "convnext": Net(_convnext, 96, 30, 2e-3, "digits"),
    "vit": Net(_vit, 64, 50, 1.5e-3, "digits"),
}


def net(name: str) -> Net:
    """One of the four; raises ``UnknownName``."""
    if name not in NETS:
        raise UnknownName("benchmark network", name, list(NETS))
    return NETS[name]


def store(model: nn.Module, path: Path) -> None:
    """Write weights in bfloat16 and running statistics in float32, without step counters."""
    buffers = {name for name, _ in model.named_buffers()}
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            k: v.detach().contiguous().to(torch.float32 if k in buffers else torch.bfloat16)
            for k, v in state.items()
        },
        path,
    )


def restore(model: nn.Module, path: Path) -> nn.Module:
    """Load what `store` wrote as float32, eval mode; raises ``TargetError`` for a missing file."""
    if not path.exists():
        raise TargetError(f"{path} is missing: `python benchmarks/train_nets.py` makes it")
    state = {k: v for k, v in model.state_dict().items() if not v.is_floating_point()}
    model.load_state_dict(state | {k: v.float() for k, v in load_file(path).items()})
    return model.eval()


def workload(name: str, folder: Path) -> Workload:
    """A trained network of the four on its task, its weights from ``folder``."""
    chosen = net(name)
    model = restore(chosen.build(), folder / f"{name}.safetensors")
    task = clutter if chosen.task == "clutter" else digits
    return task.workload(model, size=chosen.size, name=name)
