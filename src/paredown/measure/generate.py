"""Operators that paredown makes up to learn from: kind, sizes and layout, as networks have them.

Sizes are log-uniform over the ranges that the zoo's networks and Hugging Face architectures have.
A sample is a chain: equal layers one after the other (or in pairs, there and back, where a layer
changes the width), so that what a run costs beside its calls is divided among many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.measure.operators import Attend
from paredown.workload import Workload

SPACE = 1
"""Version of what is drawn: samples of another one are not mixed with these."""
MOST_MACS = 4e8
"""Of one layer; MOST_ELEMENTS of one tensor: what keeps a chain's run below a tenth of a second."""
MOST_ELEMENTS = 1 << 22
COUNTS = {
    "pointwise": 84,
    "norm": 40,
    "copy": 40,
    "reduction": 24,
    "conv": 110,
    "depthwise": 56,
    "linear": 80,
    "matmul": 30,
    "attention": 36,
    "pool": 12,
    "deconv": 10,
    "recurrent": 12,
    "head": 30,
    "mixed": 32,
}
"""Samples by kind; the first four are timed first, since the others' chains contain them.

``head`` are products as wide as a vocabulary, ``mixed`` small networks of unlike operators: what
these take beyond the sum of their operators is what a call costs when nothing is warm.
"""


@dataclass(frozen=True)
class Sample:
    """One chain: ``make`` gives its workload; ``kind`` is what is learned from it."""

    name: str
    kind: str
    make: Callable[[], Workload]


class Each(nn.Module):
    """A function applied again and again, each time through a module of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """``function(x)``."""
        return self.function(x)


class Beside(nn.Module):
    """The sum of layers that all read the same input: for layers that change its shape."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """``layers[0](x) + layers[1](x) + ...``."""
        total = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            total = total + layer(x)
        return total


class Chain(nn.Module):
    """Layers one after the other; of a layer that gives several results the first goes on."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's result."""
        for layer in self.layers:
            x = layer(x)
            if isinstance(x, tuple):
                x = x[0]
        return x


def samples(
    seed: int = 0, counts: dict[str, int] | None = None, *, fused: bool = False
) -> Iterator[Sample]:
    """Every sample in the order in which they are timed; the same for the same seed.

    ``fused`` is for backends that fuse: pointwise layers do not stand alone there, but behind
    convolutions and products.
    """
    for kind, count in (counts or COUNTS).items():
        for i in range(count):
            alone = kind == "pointwise" or (kind == "norm" and i % 4 > 1)
            if not (fused and alone):
                yield Sample(
                    f"{kind}/{i}", kind, _maker(kind, f"{SPACE}/{seed}/{kind}/{i}", i, fused)
                )


def _maker(kind: str, seed: str, i: int, fused: bool) -> Callable[[], Workload]:
    def make() -> Workload:
        torch.manual_seed(0)
        layers, x = _DRAW[kind](Random(seed), i)
        if fused:  # their layouts are their own: another one is a copy before the first layer
            x = x.contiguous()
        if fused and i % 3 and kind in ("conv", "depthwise", "linear"):
            layers = _with_tails(layers, i)
        model = layers if isinstance(layers, Beside) else Chain(layers)
        return Workload(model.eval().requires_grad_(False), (x,), name=f"{kind} chain")

    return make


Drawn = tuple["list[nn.Module] | Beside", Tensor]


def _with_tails(layers: list[nn.Module] | Beside, i: int) -> list[nn.Module] | Beside:
    """Each layer with what networks put behind it: a batch norm, an activation."""
    plain = list(layers.layers) if isinstance(layers, Beside) else layers
    act = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.ReLU6)[i % 5]
    made: list[nn.Module] = [
        nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), act())
        if isinstance(layer, nn.Conv2d)
        else nn.Sequential(layer, act())
        for layer in plain
    ]
    return Beside(made) if isinstance(layers, Beside) else made


def _log(r: Random, low: float, high: float) -> int:
    return round(math.exp(r.uniform(math.log(low), math.log(high))))


def _width(r: Random, low: int, high: int) -> int:
    """Channels: mostly multiples of 8, as networks have them."""
    step = 8 if r.random() < 0.85 else 1
    return max(step * round(_log(r, low, high) / step), min(low, step))


def _input(*shape: int) -> Tensor:
    return torch.randn(shape).mul_(0.1)


def _image(r: Random, channels: int, side: int, batch: int, last: float = 0.2) -> Tensor:
    x = _input(batch, channels, side, side)
    return x.to(memory_format=torch.channels_last) if r.random() < last else x


def _batch(r: Random) -> int:
    return r.choice((1, 1, 1, 2, 4, 8))


def _conv(r: Random, i: int) -> Drawn:
    while True:
        kernel = r.choice((1, 1, 1, 3, 3, 3, 3, 5, 7))
        a, b = _width(r, 16, 1024), _width(r, 16, 1024)
        side, batch, stride = _log(r, 5, 130), _batch(r), r.choice((1, 1, 1, 2))
        groups = 1
        if i % 8 == 0:  # a stem: few channels in, many pixels
            a, b, side = r.choice((1, 3, 3, 4)), _width(r, 16, 96), _log(r, 64, 256)
            kernel, stride = r.choice(((3, 1), (3, 2), (7, 2), (4, 4), (16, 16)))
        elif i % 8 == 1:
            each = r.choice((8, 16, 24))
            a = b = each * _log(r, 2, 40)
            groups, kernel = a // each, 3
        macs = batch * (side / stride) ** 2 * a * b * kernel**2 / groups
        if 1e5 < macs < MOST_MACS and batch * side**2 * max(a, b) < MOST_ELEMENTS:
            break
    padding = kernel // 2 if kernel != stride else 0
    x = _image(r, a, side, batch)

    def layer(c: int, n: int) -> nn.Module:
        return nn.Conv2d(c, n, kernel, stride, padding, groups=groups, bias=i % 3 > 0)

    if stride > 1 or i % 8 == 0:
        return Beside([layer(a, b) for _ in range(3)]), x
    return [layer(a, b) if j % 2 == 0 else layer(b, a) for j in range(4)], x


def _depthwise(r: Random, i: int) -> Drawn:
    while True:
        kernel = r.choice((3, 3, 3, 5, 5, 7, 7, 9, 13))
        shape = r.choice(((kernel, kernel),) * 4 + ((1, kernel), (kernel, 1)))
        c, side, batch = _width(r, 16, 1152), _log(r, 5, 120), _batch(r)
        if batch * side**2 * c < MOST_ELEMENTS and batch * side**2 * c * math.prod(shape) < 1e8:
            break
    stride = r.choice((1, 1, 1, 2))
    padding = (shape[0] // 2, shape[1] // 2)
    made: list[nn.Module] = [
        nn.Conv2d(c, c, shape, stride, padding, groups=c, bias=i % 2 > 0) for _ in range(4)
    ]
    return (Beside(made) if stride > 1 else made), _image(r, c, side, batch, 0.35)


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


def _linear(r: Random, i: int) -> Drawn:
    while True:
        rows = r.choice((1, 1, 8)) if i % 4 == 0 else _log(r, 1, 4096)
        a, b = _width(r, 48, 3072), _width(r, 48, 3072)
        if i % 10 == 0:
            rows, b = r.choice((1, 1, 8, 64)), _log(r, 8000, 50000)
        if rows * a * b < MOST_MACS and rows * max(a, b) < MOST_ELEMENTS:
            break
    form = r.choice(("linear", "linear", "product", "bare"))

    def layer(n: int, m: int) -> nn.Module:
        return Product(n, m) if form == "product" else nn.Linear(n, m, bias=form == "linear")

    if b > 8000:
        return [layer(a, b)], _input(1, rows, a)
    # As many weights as a network has: they do not stay in the nearest cache.
    pairs = min(max(round(4e6 / (a * b)), 1), 8)
    return [layer(a, b) if j % 2 == 0 else layer(b, a) for j in range(2 * pairs)], _input(
        1, rows, a
    )


def _matmul(r: Random, i: int) -> Drawn:
    while True:
        batch, rows, width = _log(r, 1, 512), _log(r, 4, 256), r.choice((16, 32, 32, 64, 64, 128))
        if batch * rows**2 * width < MOST_MACS and batch * rows * max(rows, width) < MOST_ELEMENTS:
            break

    def both(x: Tensor) -> Tensor:
        return (x @ x.transpose(-1, -2)) @ x

    x = _input(batch, rows, width).div_(math.sqrt(rows * width))
    return [Each(both) for _ in range(2)], x


def _attention(r: Random, i: int) -> Drawn:
    while True:
        batch, heads, width = _batch(r), _log(r, 1, 24), r.choice((16, 32, 32, 64, 64, 64, 128))
        tokens = _log(r, 16, 1024)
        if batch * heads * tokens**2 * width < MOST_MACS / 2:
            break
    if i % 3 == 0:  # one new token reads what is kept
        keys = [_input(batch, heads, tokens, width) for _ in range(8)]
        return [Kept(k) for k in keys], _input(batch, heads, 1, width)
    if i % 3 == 1:  # from projections: heads lie inside of rows
        return [Heads(heads) for _ in range(3)], _input(batch, tokens, heads * width)
    return [Attend() for _ in range(3)], _input(batch, heads, tokens, width)


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
        return r.choice((1, 1, 8)), _log(r, 1, 512), _width(r, 64, 3072)
    side = _log(r, 5, 112)
    return _batch(r), _width(r, 16, 384), side, side


def _pointwise(r: Random, i: int) -> Drawn:
    while math.prod(shape := _size(r, i // len(_UNARY))) > MOST_ELEMENTS:
        pass
    if i % 7 == 6 and len(shape) == 4:  # a scale or shift for each channel
        scale = _input(1, shape[1], 1, 1)
        kept: Callable[[Tensor], Tensor] = (lambda x: x * scale) if i % 2 else (lambda x: x + scale)
    else:
        kept = _UNARY[i % len(_UNARY)]()
    x = _input(*shape)
    if i % 5 == 4 and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    return [Each(kept) for _ in range(6)], x


def _norm(r: Random, i: int) -> Drawn:
    if i % 4 == 0:
        tokens, width = _log(r, 1, 4096), _width(r, 64, 2048)
        return [nn.LayerNorm(width) for _ in range(6)], _input(1, tokens, width)
    if i % 4 == 1:
        heads, tokens = _log(r, 1, 24), _log(r, 8, 256)
        return [nn.Softmax(-1) for _ in range(6)], _input(_batch(r), heads, tokens, tokens)
    while math.prod(shape := _size(r, 0)) > MOST_ELEMENTS:
        pass
    made: list[nn.Module] = [nn.BatchNorm2d(shape[1]) for _ in range(6)]
    x = _input(*shape)
    return made, x.to(memory_format=torch.channels_last) if i % 8 == 2 else x


def _copy(r: Random, i: int) -> Drawn:
    while math.prod(shape := _size(r, 0)) > MOST_ELEMENTS:
        pass
    flat = (shape[0], shape[2] ** 2, shape[1])
    if i % 4 == 0:
        return [Each(lambda x: x.transpose(-1, -2).contiguous()) for _ in range(6)], _input(*flat)
    if i % 4 == 1:
        tokens, heads, width = _log(r, 8, 512), _log(r, 1, 16), r.choice((32, 64))
        x = _input(_batch(r), heads, tokens, width)
        return [Each(lambda x: x.transpose(1, 2).contiguous()) for _ in range(6)], x
    if i % 4 == 2:
        return [Each(lambda x: torch.cat((x, x), 1)[:, : x.shape[1]]) for _ in range(6)], _input(
            *shape
        )
    return [Each(lambda x: torch.roll(x, (1, 1), (1, 2))) for _ in range(4)], _input(*shape)


def _reduction(r: Random, i: int) -> Drawn:
    while math.prod(shape := _size(r, i)) > MOST_ELEMENTS:
        pass
    if len(shape) == 4:
        return Beside([Each(lambda x: x.mean((2, 3), keepdim=True)) for _ in range(4)]), _input(
            *shape
        )
    return Beside([Each(lambda x: x.mean(-1, keepdim=True)) for _ in range(4)]), _input(*shape)


def _pool(r: Random, i: int) -> Drawn:
    c, side = _width(r, 16, 256), _log(r, 8, 112)
    kernel, stride = r.choice(((3, 2), (2, 2), (3, 1)))
    cls = nn.MaxPool2d if i % 3 else nn.AvgPool2d
    made = [cls(kernel, stride, kernel // 2 if kernel == 3 else 0) for _ in range(3)]
    return Beside(list(made)), _image(r, c, side, _batch(r))


def _deconv(r: Random, i: int) -> Drawn:
    c, side = _width(r, 16, 256), _log(r, 8, 64)
    return Beside([nn.ConvTranspose2d(c, max(c // 2, 1), 2, 2) for _ in range(2)]), _input(
        _batch(r), c, side, side
    )


def _recurrent(r: Random, i: int) -> Drawn:
    width, steps = _width(r, 64, 768), _log(r, 8, 128)
    return [nn.LSTM(width, width, batch_first=True) for _ in range(2)], _input(
        _batch(r), steps, width
    )


def _head(r: Random, i: int) -> Drawn:
    a, b = _width(r, 128, 1024), _log(r, 5000, 50000)
    rows = r.choice((1, 8, 64, 128, 197, 512))
    while rows * a * b > 1e10:
        rows = max(rows // 2, 1)
    return [nn.Linear(a, b, bias=i % 2 > 0)], _input(1, rows, a)


class Block(nn.Module):
    """A transformer block, norms first, ``(batch, tokens, width)``."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        b, n, c = x.shape
        parts = self.into(self.norms[0](x)).view(b, n, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norms[1](x))


class Inverted(nn.Module):
    """Expand, convolve by channel, project, add: ``(batch, channels, h, w)`` stays."""

    def __init__(self, channels: int, ratio: int, kernel: int, act: type[nn.Module]) -> None:
        super().__init__()
        wide = channels * ratio
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.body(x)


class Residual(nn.Module):
    """Two 3x3 convolutions with norms, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        made = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)]
        self.body = nn.Sequential(
            made[0], nn.BatchNorm2d(channels), nn.ReLU(), made[1], nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return F.relu(x + self.body(x))


def _mixed(r: Random, i: int) -> Drawn:
    """Small networks: three stages of blocks that narrow the image, or blocks of a transformer."""
    batch = r.choice((1, 1, 1, 4))
    if i % 3 == 0:
        heads, tokens = _log(r, 2, 12), r.choice((1, 8, 50, 64, 128, 197))
        width = heads * r.choice((32, 64))
        blocks: list[nn.Module] = [Block(width, heads, 4 * width) for _ in range(6)]
        return [*blocks, nn.LayerNorm(width)], _input(batch, tokens, width)
    side, channels = r.choice((28, 48, 56)), _width(r, 16, 48)
    layers: list[nn.Module] = []
    act = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.ReLU6)[i % 4]
    for stage in range(3):
        layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)] if stage else []
        channels *= 2 if stage else 1
        layers += [nn.BatchNorm2d(channels), act()]
        for _ in range(3):
            one = Inverted(channels, 4, r.choice((3, 5)), act) if i % 3 == 1 else Residual(channels)
            layers.append(one)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return [*layers, *tail], _input(batch, channels // 4, side, side)


_DRAW: dict[str, Callable[[Random, int], Drawn]] = {
    "pointwise": _pointwise,
    "norm": _norm,
    "copy": _copy,
    "reduction": _reduction,
    "conv": _conv,
    "depthwise": _depthwise,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
    "pool": _pool,
    "deconv": _deconv,
    "recurrent": _recurrent,
    "head": _head,
    "mixed": _mixed,
}
