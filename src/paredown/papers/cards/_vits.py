"""The ViT that cards of few-bit quantizers share: trained on noisy scans, its channels spread.

Large trained transformers have channels after their layer norms that differ in size by one or two
orders of magnitude; a tiny one trained for a minute has not. So its channels are spread by factors
that the next weights undo: the function stays, the ranges do not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.graph.capture import capture
from paredown.papers.cards import _scans
from paredown.technique import Change, Technique
from paredown.workload import Workload
from paredown.workloads.fit import Phase, fit
from paredown.zoo.vit import ViT

CANVAS, CHANNELS, DEPTH, HEADS = 16, 48, 4, 3
SPREAD = 10.0
"""Factors of channels lie between its inverse and itself."""
CALIBRATION = 64
"""Scans that ranges are taken from."""


def plan(epochs: int) -> _scans.Plan:
    """How the network is trained: scans of 16 pixels in white noise."""
    return _scans.Plan(epochs, 24, rate=3e-3, size=CANVAS, canvas=CANVAS)


def trained(seed: int, epochs: int) -> Workload:
    """A trained network as it is, with `CALIBRATION` training scans; on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = ViT(CHANNELS, DEPTH, HEADS, 10, 1, image_size=CANVAS, patch=4, mlp_ratio=2)
    how = plan(epochs)
    fit(model, [Phase(_scans.Scans(how), epochs)], rate=how.rate, seed=seed, loss=F.cross_entropy)
    model.eval()
    torch.manual_seed(seed + 1000)
    images = torch.cat([x for (x,), _ in _scans.Scans(how)()])[:CALIBRATION]
    return Workload(model, (images[:16],), calibration=list(images.split(16)), name="vit")


@torch.no_grad()
def spread(workload: Workload, seed: int, largest: float = SPREAD) -> Workload:
    """A copy whose norms' channels are scaled by ``largest**u``, u uniform in -1 .. 1, which the
    next linear undoes.
    """
    own = workload.own()
    model: nn.Module = own.model
    generator = torch.Generator().manual_seed(seed)
    for block in model.get_submodule("blocks").children():
        for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            one, other = block.get_submodule(norm), block.get_submodule(linear)
            draw = torch.rand(one.get_parameter("weight").shape, generator=generator)
            factor = largest ** (2 * draw - 1)
            one.get_parameter("weight").mul_(factor)
            one.get_parameter("bias").mul_(factor)
            other.get_parameter("weight").div_(factor)
    return own


def through(workload: Workload, technique: Technique) -> Change:
    """A technique at all its sites."""
    return technique.apply(workload, technique.sites(workload, capture(workload)))


def weights_of_attention(workload: Workload) -> Tensor:
    """Every softmax weight of one calibration batch, flat."""
    from paredown.runtime.quantized_attention import attention_weights

    found: list[Tensor] = []

    def look(module: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        qkv = module.qkv(x).reshape(*x.shape[:2], 3, module.num_heads, module.head_dim)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        found.append(attention_weights(q, k, None, False, None).flatten())

    copy = workload.copy()
    for block in copy.model.get_submodule("blocks").children():
        block.get_submodule("attn").register_forward_pre_hook(look)
    with torch.no_grad():
        copy.model(*copy.inputs)
    return torch.cat(found)
