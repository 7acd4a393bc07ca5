"""Claim cards of token mixers: ConViT (arXiv:2103.10697) and NiNformer (2403.02411)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.papers.cards._nets import TOKEN_SCANS, apart, images
from paredown.papers.cards._nets import scans as scans_accuracy
from paredown.papers.cards._parts import (
    Build,
    Contrast,
    Exact,
    Subject,
    Timing,
    Trained,
    Work,
    better,
    learns,
)
from paredown.papers.cards._scans import Plan, Scans, judge
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.papers.cards.networks import graph_of
from paredown.workloads.fit import Phase, fit
from paredown.zoo.convit import ConViT, GatedPositionalAttention
from paredown.zoo.mlp_mixer import MlpMixer
from paredown.zoo.ninformer import NiNBlock, NiNformer, block_macs
from paredown.zoo.vit import ViT


def convolution() -> float:
    """Sharp heads whose gates are shut to content, off a 3x3 convolution, inside the map."""
    torch.manual_seed(0)
    attention, side = GatedPositionalAttention(18, 9, 6, strength=50.0), 6
    attention.gate.data.fill_(100.0)
    x = torch.randn(2, side * side, 18)
    weight = torch.zeros(18, 18, 3, 3)
    with torch.inference_mode():
        ours = attention(x).mT.reshape(2, 18, side, side)
        for head in range(9):
            part = slice(2 * head, 2 * head + 2)
            weight[:, part, head % 3, head // 3] = attention.proj.weight[:, part]
        conv = F.conv2d(x.mT.reshape(2, 18, side, side), weight, attention.proj.bias)
    return apart(ours[..., 1:-1, 1:-1], conv)


class FewScans(Scans):
    """The first ``share`` of the training scans, each seen as often as all of them would be."""

    def __init__(self, plan: Plan, share: float) -> None:
        super().__init__(plan)
        kept = round(share * len(self.ink))
        times = len(self.ink) // kept
        self.ink = self.ink[:kept].repeat(times, 1, 1, 1)
        self.labels = self.labels[:kept].repeat(times)


def from_few(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Held-out accuracy after training on a share of the scans ("ConViT, 10 %")."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, share = build(name), float(name.partition(", ")[2].rstrip(" %")) / 100
    batches = FewScans(plan, share)
    fit(model, [Phase(batches, plan.epochs)], rate=plan.rate, seed=seed, loss=F.cross_entropy)
    return {"accuracy": float(judge(plan)(model).mean())}


def small_convit(name: str) -> nn.Module:
    """Three blocks over 16 patches, two of them with gated positions, or none (a ViT)."""
    local = 2 if name.startswith("ConViT") else 0
    return ConViT(4, 12, 10, 1, depth=3, local=local, image_size=16, patch=4)


CONVIT_PAIR = (("DeiT-S", "vit-s"), ("ConViT-S", "convit-s"))
FEW, ALL = "10 %", "100 %"


class ConViTCard(ArchitectureCard):
    """Counts, the convolution it begins as, and what locality gives with few and many examples."""

    key = "convit"
    claim = (
        "attention that begins as a convolution and may leave it gains most where data are few "
        "(59.6 % against 48.0 % with a tenth of ImageNet, 81.4 % against 79.9 % with all)"
    )
    rows = ("convit-ti", "convit-s", "convit-b")
    exact = (Exact("shut gates and sharp heads, off a convolution", convolution, 1e-4),)
    timings = (Timing(zoo_pair, (*CONVIT_PAIR, 224), "ConViT-S", "DeiT-S", None, per_mac=True),)
    trained = Trained(
        from_few,
        small_convit,
        images(1, 1, 16, 16),
        TOKEN_SCANS,
        seeds={"quick": 4, "full": 10},
    )
    learnt = (
        learns(f"ConViT, {ALL}", 0.6),
        better(f"ConViT, {FEW}", f"ViT, {FEW}"),
        Contrast(
            "gain with 10 % of the data less that with all",
            {f"ConViT, {FEW}": 1, f"ViT, {FEW}": -1, f"ConViT, {ALL}": -1, f"ViT, {ALL}": 1},
            0.0,
            "accuracy",
        ),
    )


def formula() -> float:
    """MACs of the default network's blocks, off the formula."""
    block = NiNBlock(64, 256, 512, dropout=0.0)
    return abs(graph_of(block, 1, 64, 256).macs / block_macs(64, 256, 512) - 1)


class Ones(nn.Module):
    """A gate that is open."""

    def forward(self, x: Tensor) -> Tensor:
        """Ones of the input's shape."""
        return torch.ones_like(x)


def open_mixer() -> float:
    """A block whose gate is one, off a linear map and a feed-forward net."""
    torch.manual_seed(0)
    block, x = NiNBlock(16, 12, 24, dropout=0.0).eval(), torch.randn(2, 16, 12)
    block.set_submodule("gate", Ones())
    with torch.inference_mode():
        y = x + block.proj(block.norm(x))
        return apart(block(x), y + block.mlp(block.norm(y)))


def small_token_net(name: str) -> nn.Module:
    """Three blocks over 16 patches of 48 channels, about 23,900 parameters each."""
    if name == "ViT":
        return ViT(48, 3, 4, 10, 1, image_size=16, patch=4, mlp_ratio=152 / 48)
    if name == "MLP-Mixer":
        return MlpMixer(48, 3, 96, 217, 10, 1, image_size=16, patch=4)
    return NiNformer(48, 3, 96, 10, 1, image_size=16, patch=4, dropout=0.0)


def token_nets() -> list[Subject]:
    """A ViT of the default NiNformer's tokens, width and depth, and NiNformer, for 32 x 32."""
    x = torch.randn(1, 3, 32, 32)
    vit = ViT(256, 4, 4, 10, 3, image_size=32, patch=4, mlp_ratio=2)
    return [("ViT", vit, (x,)), ("NiNformer", NiNformer(), (x,))]


class NiNformerCard(ArchitectureCard):
    """Counts, the gate, and the three token mixers with as many parameters."""

    key = "ninformer"
    claim = (
        "a gate made by a small mixer inside the block replaces attention with better accuracy "
        "than ViT and MLP-Mixer of the same scale"
    )
    rows = ("ninformer",)
    exact = (
        Exact("MACs of a block, off the formula", formula, 0.0),
        Exact("open gate, off a linear map", open_mixer),
    )
    work = (
        Work("NiNformer", "ViT", 1.02, of="params"),
        Work("NiNformer", "MLP-Mixer", 1.02, of="params"),
    )
    timings = (Timing(token_nets, (), "NiNformer", "ViT", 1.0),)
    trained = Trained(
        scans_accuracy,
        small_token_net,
        images(1, 1, 16, 16),
        TOKEN_SCANS,
        seeds={"quick": 4, "full": 10},
    )
    learnt = (
        learns("NiNformer", 0.6),
        better("NiNformer", "ViT"),
        better("NiNformer", "MLP-Mixer"),
    )
