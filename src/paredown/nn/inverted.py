"""The inverted residual block, whole and in slices (MobileNetV2, arXiv:1801.04381, section 5).

The wide inner tensor never has to exist whole: the block is a sum over groups of inner channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.act import Activation, relu6
from paredown.nn.conv import ConvNormAct
from paredown.nn.drop import drop_path

Skip = Literal["thin", "wide", "none"]


class InvertedResidual(nn.Module):
    """Thin in, 1x1 expansion, depthwise 3x3, 1x1 projection to thin out; a thin skip.

    The projection is linear unless ``linear`` is False (the paper's figure 6a). ``skip`` is "thin"
    (the paper's), "wide" (from expansion to depthwise output, 6b) or "none"; a skip stands only
    where the stride is 1 and, for thin ones, the ends are equally wide. ``expand`` 1 has no
    expansion convolution; ``inner`` gives the inner width outright, without expansion where it is
    the outer one unless ``pointwise`` says otherwise. ``kernel`` is the depthwise one's;
    ``squeeze`` stands behind it (squeeze-and-excitation over the inner width in MobileNetV3,
    arXiv:1905.02244, figure 4, and EfficientNet). ``eps`` is the norms', ``drop`` the rate of
    stochastic depth; ``bias`` gives the convolutions one in front of their norms (LeYOLO).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        expand: float = 6,
        stride: int = 1,
        kernel: int = 3,
        inner: int | None = None,
        pointwise: bool | None = None,
        squeeze: nn.Module | None = None,
        linear: bool = True,
        skip: Skip = "thin",
        act: Activation = relu6,
        eps: float = 1e-5,
        drop: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        wide = round(inputs * expand) if inner is None else inner
        expands = expand != 1 if inner is None else wide != inputs
        if pointwise is not None:
            expands = pointwise
        self.expand: nn.Module = nn.Identity()
        if expands:
            self.expand = ConvNormAct(inputs, wide, act=act, eps=eps, bias=bias)
        self.depthwise = ConvNormAct(
            wide, wide, kernel, stride=stride, groups=wide, act=act, eps=eps, bias=bias
        )
        self.squeeze = squeeze if squeeze is not None else nn.Identity()
        self.project = ConvNormAct(wide, outputs, act=None if linear else act, eps=eps, bias=bias)
        self.drop = drop_path(drop)
        self.thin_skip = skip == "thin" and stride == 1 and inputs == outputs
        self.wide_skip = skip == "wide" and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        wide = self.expand(x)
        inner = self.squeeze(self.depthwise(wide))
        if self.wide_skip:
            inner = inner + wide
        out = self.project(inner)
        return x + self.drop(out) if self.thin_skip else out


class SlicedInvertedResidual(nn.Module):
    """An inverted residual block in eval mode, run over ``slices`` groups of its inner channels.

    Equal to the whole block up to rounding; the inner tensors are ``slices`` times smaller, the
    thin output is accumulated. Norms are folded into the convolutions. Raises ``InputError`` for a
    block with a wide skip, squeeze-and-excitation or a non-linear projection (none is a sum over
    channels), another activation than ReLU6, or more slices than inner channels.
    """

    def __init__(self, block: InvertedResidual, slices: int) -> None:
        super().__init__()
        if block.wide_skip or not isinstance(block.project.act, nn.Identity):
            raise InputError("slicing needs a linear projection and no wide skip")
        if not isinstance(block.squeeze, nn.Identity):
            raise InputError("slicing needs a block without squeeze-excite: it reads all slices")
        if not isinstance(block.depthwise.act, nn.ReLU6):
            raise InputError("slicing is written for ReLU6, which it applies in place")
        inner = block.depthwise.conv.out_channels
        if not 1 <= slices <= inner:
            raise InputError(f"slices must be 1..{inner} (the inner channels), got {slices}")
        depth_w, depth_b = folded(block.depthwise)
        project_w, project_b = folded(block.project)
        self.stride, self.thin_skip = block.depthwise.conv.stride, block.thin_skip
        self.padding = block.depthwise.conv.padding
        self.expands = isinstance(block.expand, ConvNormAct)
        if isinstance(block.expand, ConvNormAct):
            expand_w, expand_b = folded(block.expand)
            self.expand_w = _parameters(expand_w.tensor_split(slices))
            self.expand_b = _parameters(expand_b.tensor_split(slices))
        self.bounds = [int(t[0]) for t in torch.arange(inner).tensor_split(slices)] + [inner]
        self.depth_w = _parameters(depth_w.tensor_split(slices))
        self.depth_b = _parameters(depth_b.tensor_split(slices))
        self.project_w = _parameters(project_w.tensor_split(slices, dim=1))
        self.project_b = nn.Parameter(project_b)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, accumulated in place slice by slice."""
        out: Tensor | None = None
        for i, (dw, db, pw) in enumerate(
            zip(self.depth_w, self.depth_b, self.project_w, strict=True)
        ):
            if self.expands:
                wide = F.conv2d(x, self.expand_w[i], self.expand_b[i]).clamp_(0, 6)
            else:
                wide = x[:, self.bounds[i] : self.bounds[i + 1]]
            inner = F.conv2d(wide, dw, db, self.stride, self.padding, groups=dw.shape[0]).clamp_(
                0, 6
            )
            del wide
            part = F.conv2d(inner, pw, self.project_b if i == 0 else None)
            del inner
            out = part if out is None else out.add_(part)
            del part
        assert out is not None
        return out.add_(x) if self.thin_skip else out


def folded(layer: ConvNormAct) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm's running statistics folded in."""
    norm = layer.norm
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = layer.conv.weight * gain.reshape(-1, 1, 1, 1)
    mean = norm.running_mean
    if layer.conv.bias is not None:
        mean = mean - layer.conv.bias
    return weight.detach(), (norm.bias - mean * gain).detach()


def _parameters(parts: tuple[Tensor, ...]) -> nn.ParameterList:
    """Each part as its own contiguous parameter, so no slice is copied at run time."""
    return nn.ParameterList(nn.Parameter(p.contiguous()) for p in parts)
