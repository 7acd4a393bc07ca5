"""Claim cards over volumes: H-DenseUNet (arXiv:1709.07330), reversible U-Net (2104.09648)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from paredown.measure.memory import torch_peak
from paredown.nn.reversible import ReversibleSequence
from paredown.papers.cards import _solids
from paredown.papers.cards._nets import apart, images
from paredown.papers.cards._parts import Exact, Subject, Timing, Trained, better, learns
from paredown.papers.cards._solids import BLOBS, Plan
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.papers.cards.networks import graph_of, peak_inner_bytes
from paredown.zoo.h_denseunet import DenseUNet, HDenseUNet, to_volume, with_neighbours
from paredown.zoo.rev_mbconv_unet3d import RevMBConvUNet3d

DECODER = (10, 12, 8, 8, 6)


def narrow(
    blocks: tuple[int, ...] = (1, 1, 2, 1), in_channels: int = 3, *, dims: int = 2
) -> DenseUNet:
    """A narrow DenseUNet; in 2-D with long skips."""
    return DenseUNet(
        blocks,
        in_channels=in_channels,
        growth=4,
        stem=8,
        decoder=DECODER,
        dims=dims,
        skips=dims == 2,
    )


class Slices(nn.Module):
    """A 2-D network on every slice with its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = narrow()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1, d, h, w)`` to scores of that size."""
        out = self.net(with_neighbours(x))
        assert isinstance(out, Tensor)
        return to_volume(out, x.shape[0])


def small_dense(name: str) -> nn.Module:
    """The hybrid, its 2-D network alone, or a 3-D network as deep."""
    if name == "2-D":
        return Slices()
    if name == "3-D":
        return narrow(in_channels=1, dims=3)
    return HDenseUNet(flat=narrow(), solid=narrow((1, 1, 1, 1), 4, dims=3), dropout=0.0)


def slices_back() -> float:
    """Slices put back, off the volume that they came from."""
    torch.manual_seed(0)
    x = torch.randn(2, 1, 5, 3, 4)
    return apart(to_volume(with_neighbours(x)[:, 1:2], 2), x)


@cache
def published(name: str) -> tuple[int, int]:
    """Parameters, and bytes of intermediates alive at once on a 224 x 224 x 8 volume."""
    with torch.device("meta"):
        model = (
            HDenseUNet()
            if name == "hybrid"
            else DenseUNet(in_channels=1, dims=3, decoder=(768, 384, 96, 96, 64))
        )
    params = sum(p.numel() for p in model.parameters())
    return params, peak_inner_bytes(graph_of(model, 1, 1, 8, 224, 224))


def params_ratio() -> float:
    """The hybrid's parameters over those of a 3-D network as deep as its 2-D branch."""
    return published("hybrid")[0] / published("3-D")[0]


def peak_ratio() -> float:
    """The hybrid's activations alive at once over that network's."""
    return published("hybrid")[1] / published("3-D")[1]


class HDenseUNetCard(ArchitectureCard):
    """Counts, slices and volumes, memory; the hybrid against each of its halves.

    The small 3-D networks have no long skips, as in the authors' code; the 2-D one has.
    """

    key = "h-denseunet"
    claim = (
        "a deep 2-D network with a light 3-D one behind it segments tumours better than either, "
        "without the memory of a full 3-D network"
    )
    rows = ("h-denseunet", "denseunet167")
    exact = (
        Exact("slices put back, off their volume", slices_back, 0.0),
        Exact("params, hybrid over 3-D as deep", params_ratio, 1.0),
        Exact("activations at once, hybrid over 3-D as deep", peak_ratio, 1.0),
    )
    trained = Trained(
        _solids.tumours,
        small_dense,
        images(1, 1, *_solids.SHAPE),
        {"quick": Plan(80, 4, 1e-2), "full": Plan(800, 4)},
        seeds={"quick": 3, "full": 10},
        floors={"tumour dice": 0.001},
    )
    learnt = (
        learns("hybrid", 0.5, "tumour dice"),
        better("hybrid", "2-D", 0.0, "tumour dice"),
        better("hybrid", "3-D", 0.0, "tumour dice"),
    )


def small_rev(name: str = "reversible", *, width: int = 8, blocks: int = 2) -> RevMBConvUNet3d:
    """Three levels; the twin stores its activations."""
    return RevMBConvUNet3d(
        1, 1, width=width, levels=3, blocks=blocks, reversible=name == "reversible"
    )


def restored() -> float:
    """Inputs of a stage from its outputs, off the inputs."""
    torch.manual_seed(0)
    stage, x = small_rev(blocks=3).down[0], torch.randn(2, 8, 5, 4, 9)
    assert isinstance(stage, ReversibleSequence)
    with torch.inference_mode():
        return apart(stage.inverse(stage(x)), x)


def gradients_apart() -> float:
    """The worst gradient, relative to its largest entry, off the twin's that stores."""
    torch.manual_seed(0)
    net, twin = small_rev(), small_rev("stored")
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 9, 12, 7)
    for model in (net, twin):
        model(x).square().mean().backward()
    pairs = zip(net.parameters(), twin.parameters(), strict=True)
    return max(
        float((a.grad - b.grad).abs().max() / b.grad.abs().max().clamp(min=1e-12))
        for a, b in pairs
        if a.grad is not None and b.grad is not None
    )


@cache
def step_peak(name: str, side: int, width: int, blocks: int) -> int:
    """Peak bytes of one training step on a cube of this side, from the allocator's events."""
    torch.manual_seed(0)
    net, x = small_rev(name, width=width, blocks=blocks), torch.randn(1, 1, side, side, side)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(x).square().mean().backward()
        net.zero_grad(set_to_none=True)

    return torch_peak(step)


def growth(name: str) -> float:
    """Peak of a step with eight blocks a level over that with two."""
    return step_peak(name, 16, 8, 8) / step_peak(name, 16, 8, 2)


SIDES, WIDTHS = (16, 20, 24, 28, 32), (8, 12, 16, 20, 24)


def volume_ratio() -> float:
    """Voxels that fit the memory of the twin's step on a cube of 16; sides in steps of 4."""
    cap = step_peak("stored", 16, 8, 2)
    return (largest(SIDES, lambda s: step_peak("reversible", s, 8, 2), cap) / 16) ** 3


def width_ratio() -> float:
    """Channels that fit the memory of the twin's step with eight; in steps of 4."""
    cap = step_peak("stored", 16, 8, 2)
    return largest(WIDTHS, lambda w: step_peak("reversible", 16, w, 2), cap) / 8


def largest(sizes: tuple[int, ...], peak: Callable[[int], int], cap: int) -> int:
    """The last size whose peak fits the cap; the smallest where none does."""
    best = sizes[0]
    for size in sizes:
        if peak(size) > cap:
            break
        best = size
    return best


def rev_pair() -> list[Subject]:
    """The twin that stores and the reversible network on a cube of 24 voxels."""
    x = torch.randn(1, 1, 24, 24, 24)
    return [("stored", small_rev("stored"), (x,)), ("reversible", small_rev(), (x,))]


class RevMBConvCard(ArchitectureCard):
    """Inverses, gradients and memory by the allocator's events; blobs found as well as by the twin.

    The recomputation's time is reported: the paper claims memory, not speed.
    """

    key = "rev-mbconv-unet3d"
    claim = (
        "at a fixed memory, reversible inverted bottlenecks take volumes up to 3 times larger, or "
        "up to twice the channels, than the twin that stores its activations"
    )
    exact = (
        Exact("inputs of a stage restored, off the inputs", restored),
        Exact("gradients, off the stored twin's", gradients_apart, 1e-4),
        Exact(
            "peak with 8 blocks a level over 2, reversible",
            lambda: growth("reversible"),
            1.1,
            "<=",
            "measured",
        ),
        Exact(
            "peak with 8 blocks a level over 2, stored",
            lambda: growth("stored"),
            2.0,
            ">=",
            "measured",
        ),
        Exact("voxels that fit, reversible over stored", volume_ratio, 2.0, ">=", "measured"),
        Exact("channels that fit, reversible over stored", width_ratio, 1.5, ">=", "measured"),
    )
    timings = (Timing(rev_pair, (), "reversible", "stored", None, train=True),)
    trained = Trained(
        _solids.blobs,
        small_rev,
        images(1, 1, *BLOBS),
        {"quick": Plan(40, 2, 1e-2), "full": Plan(300, 2, 1e-2)},
        seeds={"quick": 3, "full": 10},
        floors={"dice": 0.001},
    )
    learnt = (
        learns("reversible", 0.8, "dice"),
        better("reversible", "stored", -0.01, "dice"),
    )
