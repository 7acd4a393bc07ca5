"""Claim cards of image restoration: MAXIM (arXiv:2201.02973) and DRCT (arXiv:2404.00722)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.papers.cards import _pictures
from paredown.papers.cards._nets import apart, images
from paredown.papers.cards._parts import (
    Build,
    Exact,
    Subject,
    Timing,
    Trained,
    Work,
    better,
    learns,
)
from paredown.papers.cards._pictures import Plan, halved, noisy, restored
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.papers.cards.networks import graph_of
from paredown.zoo._gmlp import Axis, from_cells, to_cells
from paredown.zoo.drct import DRCT, DenseGroup
from paredown.zoo.maxim import MAXIM, restoration_loss
from paredown.zoo.swin import SwinBlock
from paredown.zoo.unet import UNet

AXES: dict[str, tuple[Axis, ...]] = {
    "multi-axis": ("grid", "block"),
    "local only": ("block",),
    "global only": ("grid",),
}


class Residual(nn.Module):
    """A network that finds what is to be added to its input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to pictures."""
        return x + self.net(x)


def small_maxim(name: str) -> nn.Module:
    """A narrow MAXIM of one stage with both axes or one, or a convolutional U-Net."""
    if name == "U-Net":
        return Residual(UNet(1, 1, width=12, depth=3, padded=True, norm=True, dropout=0.0))
    return MAXIM(8, 1, 1, groups=1, bottlenecks=1, sizes=(4, 4, 2), axes=AXES[name])


def maxim_loss(found: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
    """The paper's loss; the U-Net's one picture is judged by the same."""
    every = [found] if isinstance(found, Tensor) else list(found)
    return restoration_loss(every, target, scales=1)


def denoised(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """PSNR after training to remove noise."""
    return restored(build, name, seed, plan, noisy, maxim_loss)[1]


def cells_back() -> float:
    """Cells of a map put together again, off the map."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 12, 3)
    return apart(from_cells(to_cells(x, 4, 3), 4, 3, 8, 12), x)


def linear_work() -> float:
    """MACs per pixel of maps four times as large, off those of the small ones.

    Channel attention reads one mean per map and level, whatever its size: under 2 % here.
    """
    net = small_maxim("multi-axis")
    one, four = (graph_of(net, 1, 1, s, s).macs for s in (64, 128))
    return abs(four / one / 4 - 1)


def maxims() -> list[Subject]:
    """A U-Net of about MAXIM-S1's MACs, and MAXIM-S1, on 64 x 64 pictures."""
    x = torch.randn(1, 3, 64, 64)
    unet = UNet(3, 3, width=64, depth=4, padded=True, norm=True)
    return [("U-Net", unet, (x,)), ("MAXIM-S1", MAXIM(32, 1), (x,))]


class MAXIMCard(ArchitectureCard):
    """Counts and views; both axes against one, and against a convolutional U-Net.

    The damaged pictures have 20.2 dB; two more are to be reached.
    """

    key = "maxim"
    claim = (
        "gated MLPs in blocks and across grids together restore images better than either alone "
        "and than convolutional networks of as much work, at a cost linear in pixels"
    )
    rows = ("maxim-s1", "maxim-s2", "maxim-s3", "maxim-2s", "maxim-3s")
    errors = (0.0, None)
    exact = (
        Exact("cells put back, off their map", cells_back, 0.0),
        Exact("MACs per pixel at four times the pixels, share off", linear_work, 0.02),
    )
    work = (Work("multi-axis", "U-Net", 1.1),)
    timings = (Timing(maxims, (), "MAXIM-S1", "U-Net", None, per_mac=True),)
    trained = Trained(
        denoised,
        small_maxim,
        images(1, 1, 32, 32),
        {"quick": Plan(60), "full": Plan(1000)},
        seeds={"quick": 3, "full": 10},
        floors={"PSNR": 0.01},
    )
    learnt = (
        learns("multi-axis", 22.2, "PSNR", "dB"),
        better("multi-axis", "local only", 0.0, "PSNR", "dB"),
        better("multi-axis", "global only", 0.0, "PSNR", "dB"),
        better("multi-axis", "U-Net", -0.1, "PSNR", "dB"),
    )


WINDOW, SIDE = 4, 12
SWIN_LAYERS = 12


class PlainGroup(nn.Module):
    """A residual group as SwinIR's: Swin layers of one width, a 3x3 convolution, a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                SwinBlock(
                    channels,
                    6,
                    WINDOW,
                    shift=WINDOW // 2 if i % 2 else 0,
                    size=(SIDE, SIDE),
                    mlp_ratio=2.0,
                )
                for i in range(SWIN_LAYERS)
            )
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        return x + self.conv(self.layers(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def small_drct(name: str) -> DRCT:
    """Two groups for twice the sides: dense ones, or plain ones of as many parameters."""
    settings: dict[str, Any] = {"window": WINDOW, "image_size": SIDE, "features": 16}
    net = DRCT(2, 1, scale=2, width=24, growth=8, num_heads=6, **settings)
    if name == "plain":
        net.groups = nn.ModuleList(PlainGroup(24) for _ in range(2))
    return net


def enlarged(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """PSNR after training to double the sides; how much intensity the weakest group keeps."""
    model, found = restored(build, name, seed, plan, halved, F.l1_loss)
    assert isinstance(model, DRCT)
    x = halved(
        _pictures.textures(16, plan.side, torch.Generator().manual_seed(8)), torch.Generator()
    )
    with torch.inference_mode():
        kept = model.intensities(x)
    return {**found, "intensity kept": float(kept.min() / kept.max())}


def silent_group() -> float:
    """A dense group whose last convolution is zero, off the identity."""
    torch.manual_seed(0)
    group, x = DenseGroup(12, 6, 6, 4, (8, 8)), torch.randn(2, 8, 8, 12)
    last = group.narrow[4]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    with torch.inference_mode():
        return apart(group(x), x)


def scaled_sides() -> float:
    """How many of three scales do not enlarge a 8 x 5 image exactly."""
    few: dict[str, Any] = {"width": 12, "growth": 6, "window": 4, "image_size": 8, "features": 8}
    wrong = 0
    for scale in (2, 3, 4):
        net = DRCT(1, 3, scale=scale, **few).eval()
        with torch.inference_mode():
            out = net(torch.rand(1, 3, 8, 5))
        wrong += tuple(out.shape[2:]) != (8 * scale, 5 * scale)
    return wrong


def groups() -> list[Subject]:
    """Two plain and two dense groups' networks on 32 x 32 pictures."""
    x = torch.rand(1, 1, 32, 32)
    return [("plain", small_drct("plain"), (x,)), ("dense", small_drct("dense"), (x,))]


class DRCTCard(ArchitectureCard):
    """Counts and a silent group; dense groups against plain ones, and their features' intensity."""

    key = "drct"
    claim = (
        "dense connections inside groups keep features from fading towards the end and make a "
        "smaller network (14M for 21M parameters) super-resolve better"
    )
    rows = ("drct-x4", "drct-x2", "drct-l-x4", "drct-l-x2")
    errors = (0.01, None)
    exact = (
        Exact("group whose last convolution is zero, off the identity", silent_group, 0.0),
        Exact("scales whose sides are wrong", scaled_sides, 0.0),
    )
    work = (Work("dense", "plain", 1.02, of="params"),)
    timings = (Timing(groups, (), "dense", "plain", None, per_mac=True),)
    trained = Trained(
        enlarged,
        small_drct,
        images(1, 1, SIDE, SIDE),
        {"quick": Plan(170, side=2 * SIDE), "full": Plan(1500, side=2 * SIDE)},
        seeds={"quick": 3, "full": 10},
        floors={"PSNR": 0.01, "intensity kept": 0.001},
    )
    learnt = (
        learns("dense", 22.0, "PSNR", "dB"),
        better("dense", "plain", -0.05, "PSNR", "dB"),
        better("dense", "plain", 0.0, "intensity kept"),
    )
