"""Layers that paredown makes up, by kind: ``draw_KIND(random, i)`` gives a chain and its input."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.measure.generate_parts import (
    MOST_ELEMENTS,
    MOST_MACS,
    MOST_WEIGHTS,
    Beside,
    Drawn,
    Each,
    draw_batch,
    draw_image,
    draw_size,
    draw_width,
    noise,
)
from paredown.measure.operators import Attend


def draw_conv(r: Random, i: int) -> Drawn:
    """Convolutions, stems and grouped ones among them."""
    while True:
        kernel = r.choice((1, 1, 1, 3, 3, 3, 3, 5, 7))
        widest = 2048 if kernel == 1 else 1024
        a, b = draw_width(r, 16, widest), draw_width(r, 16, widest)
        side, batch, stride = draw_size(r, 5, 260), draw_batch(r), r.choice((1, 1, 1, 2))
        if i % 8 == 2:  # where images are small channels are many
            kernel, side, batch = r.choice((1, 1, 3)), draw_size(r, 5, 16), 1
            a, b = draw_width(r, 256, 2048 // kernel), draw_width(r, 256, 2048 // kernel)
        groups = 1
        if i % 8 == 0:  # a stem: few channels in, many pixels
            a, b, side = r.choice((1, 3, 3, 4)), draw_width(r, 16, 96), draw_size(r, 64, 256)
            kernel, stride = r.choice(((3, 1), (3, 2), (7, 2), (4, 4), (16, 16)))
        elif i % 8 == 1:
            each = r.choice((8, 16, 24))
            a = b = each * draw_size(r, 2, 40)
            groups, kernel = a // each, 3
        macs = batch * (side / stride) ** 2 * a * b * kernel**2 / groups
        if 1e5 < macs < MOST_MACS and batch * side**2 * max(a, b) < MOST_ELEMENTS:
            break
    padding = kernel // 2 if kernel != stride else 0
    x = draw_image(r, a, side, batch)

    def layer(c: int, n: int) -> nn.Module:
        return nn.Conv2d(c, n, kernel, stride, padding, groups=groups, bias=i % 3 > 0)

    if stride > 1 or i % 8 == 0:
        return Beside([layer(a, b) for _ in range(3)]), x
    return [layer(a, b) if j % 2 == 0 else layer(b, a) for j in range(4)], x


def draw_depthwise(r: Random, i: int) -> Drawn:
    """Convolutions by channel, square and banded."""
    while True:
        kernel = r.choice((3, 3, 3, 5, 5, 7, 7, 9, 13))
        shape = r.choice(((kernel, kernel),) * 4 + ((1, kernel), (kernel, 1)))
        c, side, batch = draw_width(r, 16, 1152), draw_size(r, 5, 120), draw_batch(r)
        if batch * side**2 * c < MOST_ELEMENTS and batch * side**2 * c * math.prod(shape) < 1e8:
            break
    stride = r.choice((1, 1, 1, 2))
    padding = (shape[0] // 2, shape[1] // 2)
    made: list[nn.Module] = [
        nn.Conv2d(c, c, shape, stride, padding, groups=c, bias=i % 2 > 0) for _ in range(4)
    ]
    return (Beside(made) if stride > 1 else made), draw_image(r, c, side, batch, 0.35)


class Product(nn.Module):
    """``x W + b`` with the weight as GPT-2 stores it, (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of shape ``(..., inputs)``."""
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], flat.shape[-1])


def draw_linear(r: Random, i: int) -> Drawn:
    """Chains of kind ``linear``."""
    while True:
        rows = r.choice((1, 1, 8)) if i % 4 == 0 else draw_size(r, 1, 4096)
        a, b = draw_width(r, 48, 3072), draw_width(r, 48, 3072)
        if i % 10 == 0:
            rows, b = r.choice((1, 1, 8, 64)), draw_size(r, 8000, 50000)
        if rows * a * b < MOST_MACS and rows * max(a, b) < MOST_ELEMENTS:
            break
    form = r.choice(("linear", "linear", "product", "bare"))

    def layer(n: int, m: int) -> nn.Module:
        return Product(n, m) if form == "product" else nn.Linear(n, m, bias=form == "linear")

    if b > 8000:
        return [layer(a, b)], noise(1, rows, a)
    # As many weights as a network has: they do not stay in the nearest cache.
    pairs = min(max(round(4e6 / (a * b)), 1), 8)
    return [layer(a, b) if j % 2 == 0 else layer(b, a) for j in range(2 * pairs)], noise(1, rows, a)


def draw_matmul(r: Random, i: int) -> Drawn:
    """Chains of kind ``matmul``."""
    while True:
        batch, rows, width = (
            draw_size(r, 1, 512),
            draw_size(r, 4, 256),
            r.choice((16, 32, 32, 64, 64, 128)),
        )
        if batch * rows**2 * width < MOST_MACS and batch * rows * max(rows, width) < MOST_ELEMENTS:
            break

    def both(x: Tensor) -> Tensor:
        return (x @ x.transpose(-1, -2)) @ x

    x = noise(batch, rows, width).div_(math.sqrt(rows * width))
    return [Each(both) for _ in range(2)], x


def draw_attention(r: Random, i: int) -> Drawn:
    """Chains of kind ``attention``."""
    while True:
        batch, heads, width = (
            draw_batch(r),
            draw_size(r, 1, 24),
            r.choice((16, 32, 32, 64, 64, 64, 128)),
        )
        tokens = draw_size(r, 16, 1024)
        if batch * heads * tokens**2 * width < MOST_MACS / 2:
            break
    if i % 3 == 0:  # one new token reads what is kept
        keys = [noise(batch, heads, tokens, width) for _ in range(8)]
        return [Kept(k) for k in keys], noise(batch, heads, 1, width)
    if i % 3 == 1:  # from projections: heads lie inside of rows
        return [Heads(heads) for _ in range(3)], noise(batch, tokens, heads * width)
    return [Attend() for _ in range(3)], noise(batch, heads, tokens, width)


class Kept(nn.Module):
    """Attention of a query to keys that a cache holds, which are its values too."""

    keys: Tensor

    def __init__(self, keys: Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", keys)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(batch, heads, 1, width)``."""
        return F.scaled_dot_product_attention(x, self.keys, self.keys)


class Heads(nn.Module):
    """Attention of rows ``(batch, tokens, heads * width)`` to themselves, causal or not."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        split = x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        return F.scaled_dot_product_attention(split, split, split).transpose(1, 2).flatten(2)


_UNARY: list[Callable[[], Callable[[Tensor], Tensor]]] = [
    lambda: F.relu,
    lambda: F.relu_,
    lambda: F.gelu,
    lambda: F.silu,
    lambda: F.sigmoid,
    lambda: F.hardswish,
    lambda: F.hardtanh_,
    lambda: torch.tanh,
    lambda: lambda x: x + x,
    lambda: lambda x: x + 1.0,
    lambda: lambda x: x * x,
    lambda: lambda x: x * 0.5,
    lambda: lambda x: x.pow(2),
    lambda: torch.neg,
]


def _size(r: Random, i: int) -> tuple[int, ...]:
    if i % 2:
        return r.choice((1, 1, 8)), draw_size(r, 1, 512), draw_width(r, 64, 3072)
    side = draw_size(r, 5, 112)
    return draw_batch(r), draw_width(r, 16, 384), side, side


def draw_pointwise(r: Random, i: int) -> Drawn:
    """Chains of kind ``pointwise``."""
    while math.prod(shape := _size(r, i // len(_UNARY))) > MOST_ELEMENTS:
        pass
    if i % 7 == 6 and len(shape) == 4:  # a scale or shift for each channel
        scale = noise(1, shape[1], 1, 1)
        kept: Callable[[Tensor], Tensor] = (lambda x: x * scale) if i % 2 else (lambda x: x + scale)
    else:
        kept = _UNARY[i % len(_UNARY)]()
    x = noise(*shape)
    if i % 5 == 4 and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    return [Each(kept) for _ in range(6)], x


def draw_norm(r: Random, i: int) -> Drawn:
    """Chains of kind ``norm``."""
    if i % 4 == 0:
        tokens, width = draw_size(r, 1, 4096), draw_width(r, 64, 2048)
        return [nn.LayerNorm(width) for _ in range(6)], noise(1, tokens, width)
    if i % 4 == 1:
        heads, tokens = draw_size(r, 1, 24), draw_size(r, 8, 256)
        return [nn.Softmax(-1) for _ in range(6)], noise(draw_batch(r), heads, tokens, tokens)
    while math.prod(shape := _size(r, 0)) > MOST_ELEMENTS:
        pass
    made: list[nn.Module] = [nn.BatchNorm2d(shape[1]) for _ in range(6)]
    x = noise(*shape)
    return made, x.to(memory_format=torch.channels_last) if i % 8 == 2 else x


def draw_copy(r: Random, i: int) -> Drawn:
    """Chains of kind ``copy``."""
    while math.prod(shape := _size(r, 0)) > MOST_ELEMENTS:
        pass
    flat = (shape[0], shape[2] ** 2, shape[1])
    if i % 4 == 0:
        return [Each(lambda x: x.transpose(-1, -2).contiguous()) for _ in range(6)], noise(*flat)
    if i % 4 == 1:
        tokens, heads, width = draw_size(r, 8, 512), draw_size(r, 1, 16), r.choice((32, 64))
        x = noise(draw_batch(r), heads, tokens, width)
        return [Each(lambda x: x.transpose(1, 2).contiguous()) for _ in range(6)], x
    if i % 4 == 2:
        return [Each(lambda x: torch.cat((x, x), 1)[:, : x.shape[1]]) for _ in range(6)], noise(
            *shape
        )
    return [Each(lambda x: torch.roll(x, (1, 1), (1, 2))) for _ in range(4)], noise(*shape)


def draw_reduction(r: Random, i: int) -> Drawn:
    """Chains of kind ``reduction``."""
    while math.prod(shape := _size(r, i)) > MOST_ELEMENTS:
        pass
    if len(shape) == 4 and i % 3 == 0:  # channels last: what is reduced lies far apart
        n, c, h, w = shape
        norm: Callable[[Tensor], Tensor] = (
            (lambda x: x.mean((1, 2), keepdim=True))
            if i % 4
            else (lambda x: torch.linalg.vector_norm(x, 2, (1, 2), keepdim=True))
        )
        return Beside([Each(norm) for _ in range(4)]), noise(n, h, w, c)
    if len(shape) == 4:
        return Beside([Each(lambda x: x.mean((2, 3), keepdim=True)) for _ in range(4)]), noise(
            *shape
        )
    return Beside([Each(lambda x: x.mean(-1, keepdim=True)) for _ in range(4)]), noise(*shape)


def draw_pool(r: Random, i: int) -> Drawn:
    """Chains of kind ``pool``."""
    c, side = draw_width(r, 16, 256), draw_size(r, 8, 224)
    kernel, stride = r.choice(((3, 2), (2, 2), (3, 1)))
    cls = nn.MaxPool2d if i % 3 else nn.AvgPool2d
    made = [cls(kernel, stride, kernel // 2 if kernel == 3 else 0) for _ in range(3)]
    return Beside(list(made)), draw_image(r, c, side, draw_batch(r))


def draw_deconv(r: Random, i: int) -> Drawn:
    """Chains of kind ``deconv``."""
    c, side = draw_width(r, 16, 256), draw_size(r, 8, 64)
    return Beside([nn.ConvTranspose2d(c, max(c // 2, 1), 2, 2) for _ in range(2)]), noise(
        draw_batch(r), c, side, side
    )


def draw_recurrent(r: Random, i: int) -> Drawn:
    """Chains of kind ``recurrent``."""
    width, steps = draw_width(r, 64, 768), draw_size(r, 8, 128)
    return [nn.LSTM(width, width, batch_first=True) for _ in range(2)], noise(
        draw_batch(r), steps, width
    )


def draw_head(r: Random, i: int) -> Drawn:
    """Chains of kind ``head``."""
    a, b = draw_width(r, 256, 2048), draw_size(r, 5000, 50000)
    a = min(a, 8 * (MOST_WEIGHTS // (8 * b)))
    rows = r.choice((1, 8, 64, 128, 197, 512))
    while rows * a * b > 1e10:
        rows = max(rows // 2, 1)
    return [nn.Linear(a, b, bias=i % 2 > 0)], noise(1, rows, a)
