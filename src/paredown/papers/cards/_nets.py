"""What the architectures' cards share: networks as if trained, distances, tasks of digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from paredown.nn.norm import LayerScale
from paredown.nn.reparam import reparameterise
from paredown.papers.cards import _scans
from paredown.papers.cards._parts import Build

IMAGE = 32
SCANS = {
    "quick": _scans.Plan(8, batch=48, rate=6e-3, size=20, canvas=IMAGE, noise=0.6),
    "full": _scans.Plan(40, size=20, canvas=IMAGE, noise=0.6),
}
# For networks whose steps are long.
SHORT_SCANS = {
    "quick": _scans.Plan(4, batch=48, rate=6e-3, size=20, canvas=IMAGE, noise=0.4),
    "full": _scans.Plan(30, size=20, canvas=IMAGE, noise=0.6),
}
# Small transformers need a lower rate and more steps than convolutions do.
TOKEN_SCANS = {
    "quick": _scans.Plan(12, batch=36, rate=3e-3, size=16, noise=0.2),
    "full": _scans.Plan(60, rate=2e-3, size=16, noise=0.35),
}
SMALL_SCANS = {
    "quick": _scans.Plan(8, batch=48, rate=6e-3, size=12, canvas=16),
    "full": _scans.Plan(40, size=12, canvas=16),
}


def scans(build: Build, name: str, seed: int, plan: _scans.Plan) -> dict[str, float]:
    """Held-out accuracy on noisy scans."""
    return {"accuracy": _scans.accuracy(build, name, seed, plan)}


def images(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    """An example of one image (or other tensor) of zeros of this shape."""
    return lambda: (torch.zeros(shape),)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, norms, scales and biases random, as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    for m in norms(model):
        m.weight.data.uniform_(0.5, 1.5, generator=generator)
        m.bias.data.normal_(0, 0.3, generator=generator)
        assert m.running_mean is not None
        assert m.running_var is not None
        m.running_mean.normal_(0, 0.3, generator=generator)
        m.running_var.uniform_(0.5, 2, generator=generator)
    for name, p in model.named_parameters():
        if name.endswith(("gamma", "beta")):
            p.data.uniform_(-1, 1, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> Iterator[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    """All batch norms of a model."""
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            yield m


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, over the largest value of the second (or 1 where that is less)."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def opened(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Layer scales set to ``scale``: from 1e-6 blocks stay shut in a training of hundreds of steps.

    Done to every network of a comparison alike.
    """
    for m in model.modules():
        if isinstance(m, LayerScale):
            m.gamma.data.fill_(scale)
    return model


def merged_apart(model: nn.Module, side: int) -> float:
    """A network as if trained, off the one with its branches merged."""
    net, x = lively(model), torch.randn(2, 1, side, side)
    with torch.inference_mode():
        return apart(reparameterise(net)(x), net(x))
