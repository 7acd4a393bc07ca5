"""Re-parameterised convolutions: several branches to train, one convolution to run, exactly equal.

RepVGG (Ding et al. 2021, arXiv:2101.03697, section 3.3) and the dilated form of UniRepLKNet (Ding
et al. 2024, arXiv:2311.15599, section 3.1). ``fuse()`` needs the running statistics, so the fused
convolution equals the branches in evaluation mode only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.conv import conv_like


def fold_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm behind it folded in."""
    if norm.running_mean is None or norm.running_var is None:
        raise InputError("a batch norm without running statistics cannot be folded")
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    start = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * gain.reshape(-1, 1, 1, 1), norm.bias - start * gain


def grown_kernel(weight: Tensor, kernel: int, dilation: int = 1) -> Tensor:
    """A kernel with zeros put between its taps (``dilation``) and around it, ``kernel`` wide.

    Equal to the dilated convolution with "same" padding. Raises ``InputError`` when it is wider.
    """
    taps = weight.shape[-1]
    span = (taps - 1) * dilation + 1
    if span > kernel or (kernel - span) % 2:
        raise InputError(f"a {taps}-tap kernel at dilation {dilation} does not fit in {kernel}")
    wide = weight.new_zeros(*weight.shape[:2], span, span)
    wide[:, :, ::dilation, ::dilation] = weight
    around = (kernel - span) // 2
    return F.pad(wide, (around, around, around, around))


def identity_kernel(channels: int, groups: int, kernel: int) -> Tensor:
    """The convolution weight that returns its input."""
    per_group = channels // groups
    weight = torch.zeros(channels, per_group, kernel, kernel)
    at = torch.arange(channels)
    weight[at, at % per_group, kernel // 2, kernel // 2] = 1
    return weight


class RepConv(nn.Module):
    """Sum of a ``kernel`` convolution, a 1x1 one and the identity, each with its own batch norm.

    The identity stands only where the shape is kept; ``pointwise`` and ``identity`` leave branches
    out, ``small`` is another size of the smaller convolution. No activation. ``fuse()`` gives one
    convolution with a bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        small: int = 1,
        pointwise: bool = True,
        identity: bool = True,
    ) -> None:
        super().__init__()

        def branch(size: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs))

        sizes = (kernel, small) if pointwise and kernel > small else (kernel,)
        self.branches = nn.ModuleList(branch(s) for s in sizes)
        keeps = identity and stride == 1 and inputs == outputs
        self.identity = nn.BatchNorm2d(inputs) if keeps else None
        self.kernel, self.groups = kernel, groups

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out = out + branch(x)
        return out if self.identity is None else out + self.identity(x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """One convolution equal to the sum of the branches in evaluation mode."""
        first = _conv_of(self.branches[0])
        weights, biases = [], []
        for branch in self.branches:
            assert isinstance(branch, nn.Sequential)
            w, b = _folded(branch)
            weights.append(grown_kernel(w, self.kernel))
            biases.append(b)
        if self.identity is not None:
            eye = identity_kernel(first.in_channels, self.groups, self.kernel)
            w, b = fold_norm(eye.to(first.weight), None, self.identity)
            weights.append(w)
            biases.append(b)
        return _filled(first, torch.stack(weights).sum(0), torch.stack(biases).sum(0))


class DilatedReparamConv(nn.Module):
    """A large depthwise convolution and small dilated ones, each with a batch norm, summed.

    ``branches`` are ``(kernel, dilation)`` of the small ones. ``fuse()`` gives one depthwise
    convolution with a bias. Raises ``InputError`` for a branch that reaches beyond the kernel.
    """

    def __init__(
        self, channels: int, kernel: int, branches: Sequence[tuple[int, int]] = ()
    ) -> None:
        super().__init__()

        def branch(size: int, dilation: int) -> nn.Sequential:
            reach = (size - 1) * dilation + 1
            if reach > kernel or not size % 2:
                raise InputError(f"{size} taps at dilation {dilation} do not fit in {kernel}")
            conv = nn.Conv2d(
                channels,
                channels,
                size,
                padding=reach // 2,
                dilation=dilation,
                groups=channels,
                bias=False,
            )
            return nn.Sequential(conv, nn.BatchNorm2d(channels))

        self.kernel = kernel
        self.large = branch(kernel, 1)
        self.small = nn.ModuleList(branch(k, d) for k, d in branches)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        out = self.large(x)
        for branch in self.small:
            out = out + branch(x)
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """One depthwise convolution equal to the sum of the branches in evaluation mode."""
        weight, bias = _folded(self.large)
        for branch in self.small:
            assert isinstance(branch, nn.Sequential)
            w, b = _folded(branch)
            weight = weight + grown_kernel(w, self.kernel, _conv_of(branch).dilation[0])
            bias = bias + b
        return _filled(_conv_of(self.large), weight, bias)


def reparameterise(model: nn.Module) -> nn.Module:
    """A copy of a model, in evaluation mode, with every block that has ``fuse()`` fused."""
    out = copy.deepcopy(model).eval()
    fuse = getattr(out, "fuse", None)
    if callable(fuse):
        return fuse()  # type: ignore[no-any-return]
    _fuse_children(out)
    return out


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        fuse = getattr(child, "fuse", None)
        if callable(fuse):
            setattr(module, name, fuse())
        else:
            _fuse_children(child)


def _conv_of(branch: nn.Module) -> nn.Conv2d:
    assert isinstance(branch, nn.Sequential)
    conv = branch[0]
    assert isinstance(conv, nn.Conv2d)
    return conv


def _folded(branch: nn.Sequential) -> tuple[Tensor, Tensor]:
    conv, norm = branch[0], branch[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return fold_norm(conv.weight, conv.bias, norm)


def _filled(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of the geometry of ``conv`` with these weights."""
    out = conv_like(conv, bias=True)
    out.weight.copy_(weight)
    assert out.bias is not None
    out.bias.copy_(bias)
    return out.eval()
