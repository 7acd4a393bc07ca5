"""A vision transformer that runs in integers alone, after I-ViT (Li and Gu 2023, arXiv:2207.01405).

Weights are 8-bit by output, activations 8-bit with one symmetric range, the residual stream 16-bit;
between them products sum in int64 and one dyadic product rescales (section 3.2). Softmax, GELU and
layer norm are `analysis.integer`'s. Ranges are the largest values of calibration data, where I-ViT
trains on them afterwards. It shows what integer hardware would compute; on a CPU it is slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from paredown.analysis import integer as ints

STREAM = 16
"""Bits of the residual stream."""


class IntegerViT:
    """``(batch, in_channels, size, size)`` float images, coded once, to logits.

    ``model`` is a plain `zoo.vit.ViT` (class token, pre-norm blocks); ``images`` are the batches
    that ranges are read from. `run` takes and gives integers and makes no float in between.
    """

    def __init__(self, model: nn.Module, images: Iterable[Tensor], *, exp: str = "shift") -> None:
        net: Any = model
        self.exp, self.patch = exp, int(net.embed.kernel_size[0])
        self.heads = int(net.blocks[0].attn.num_heads)
        self.peaks: dict[str, float] = {}
        self._look(net, images)
        self.image_scale = self.peaks["image"] / 127
        stream = max(v for k, v in self.peaks.items() if k.startswith("stream"))
        self.stream_scale = stream / (2 ** (STREAM - 1) - 1)
        embed = net.embed.weight.detach().flatten(1)
        self.embed = _Linear(embed, net.embed.bias, self.image_scale, self.stream_scale, STREAM)
        place = torch.cat([net.cls[0] + net.position[0, :1], net.position[0, 1:]]).detach()
        self.place = torch.round(place / self.stream_scale).long()
        self.blocks = [self._block(f"blocks.{i}", b) for i, b in enumerate(net.blocks)]
        self.norm = _Norm(net.norm, self.peaks["head"] / 127)
        self.head = _Linear(net.head.weight, net.head.bias, self.norm.scale, None, 0)

    def __call__(self, images: Tensor) -> Tensor:
        """Float logits of float images: `run` between one coding and one scaling."""
        codes = torch.clamp(torch.round(images / self.image_scale), -127, 127).long()
        return self.run(codes) * self.head.out_scale

    def run(self, codes: Tensor) -> Tensor:
        """Integer logits ``(batch, classes)`` of int64 image codes, in integers throughout."""
        n, channels, height, width = codes.shape
        p = self.patch
        tiles = codes.reshape(n, channels, height // p, p, width // p, p)
        patches = tiles.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * p * p)
        x = torch.cat([self.place[:1].expand(n, 1, -1), self.embed(patches) + self.place[1:]], 1)
        for block in self.blocks:
            x = x + self._attention(block, block["norm1"](x))
            y = block["fc1"](block["norm2"](x))
            y, scale = ints.shift_gelu(y, block["fc1"].out_scale)
            y = ints.rescaled(y, scale / block["fc2"].in_scale, 8)
            x = x + block["fc2"](y)
        return self.head(self.norm(x[:, 0]))

    def _attention(self, block: dict[str, Any], x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        size = width // self.heads
        q, k, v = block["qkv"](x).reshape(n, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        scale = block["qkv"].out_scale
        logits = q @ k.transpose(-1, -2)
        weights, step = ints.softmax(logits, scale**2 * size**-0.5, exp=self.exp)
        y = ints.rescaled(weights @ v, step * scale / block["proj"].in_scale, 8)
        return block["proj"](y.transpose(1, 2).reshape(n, tokens, width))

    def _block(self, path: str, block: Any) -> dict[str, Any]:
        p = {k.removeprefix(f"{path}."): v / 127 for k, v in self.peaks.items()}
        first, second = _Norm(block.norm1, p["qkv"]), _Norm(block.norm2, p["fc1"])
        attn, mlp, stream = block.attn, block.mlp, self.stream_scale
        return {
            "norm1": first,
            "qkv": _Linear(attn.qkv.weight, attn.qkv.bias, first.scale, p["qkv out"], 8),
            "proj": _Linear(attn.proj.weight, attn.proj.bias, p["proj"], stream, STREAM),
            "norm2": second,
            "fc1": _Linear(mlp.fc1.weight, mlp.fc1.bias, second.scale, p["fc1 out"], 8),
            "fc2": _Linear(mlp.fc2.weight, mlp.fc2.bias, p["fc2"], stream, STREAM),
        }

    def _look(self, net: Any, images: Iterable[Tensor]) -> None:
        """The largest values of what each layer reads, makes, and of the stream."""

        def note(name: str, x: Tensor) -> None:
            self.peaks[name] = max(self.peaks.get(name, 1e-9), float(x.detach().abs().max()))

        handles: list[Any] = []

        def watch(module: nn.Module, read: str, made: str = "") -> None:
            def hook(_m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
                note(read, args[0])
                if made:
                    note(made, out)

            handles.append(module.register_forward_hook(hook))

        watch(net.embed, "image")
        watch(net.head, "head")
        for i, block in enumerate(net.blocks):
            path = f"blocks.{i}"
            watch(block, f"stream {i}", f"stream {i + 1}")
            watch(block.norm2, f"stream mid {i}")
            watch(block.attn.qkv, f"{path}.qkv", f"{path}.qkv out")
            watch(block.attn.proj, f"{path}.proj")
            watch(block.mlp.fc1, f"{path}.fc1", f"{path}.fc1 out")
            watch(block.mlp.fc2, f"{path}.fc2")
        with torch.no_grad():
            for batch in images:
                net(batch)
        for handle in handles:
            handle.remove()


class _Linear:
    """8-bit weights by output, a bias on the sums' grid, one dyadic rescale a row (or none)."""

    def __init__(
        self, weight: Tensor, bias: Tensor, in_scale: float, out_scale: float | None, bits: int
    ) -> None:
        w = weight.detach().double()
        step = (w.abs().amax(1) / 127).clamp(min=1e-12)
        self.weight = torch.round(w / step[:, None]).long()
        self.bias = torch.round(bias.detach().double() / (step * in_scale)).long()
        self.in_scale = in_scale
        # Without a rescale, as for logits, rows must share a grid: the coarsest.
        self.out_scale = out_scale or float(step.max()) * in_scale
        self.top = (1 << (bits - 1)) - 1 if bits else None
        pairs = [ints.dyadic(float(s) * in_scale / self.out_scale) for s in step]
        self.factor = torch.tensor([m for m, _ in pairs])
        self.shift = torch.tensor([min(s, 62) for _, s in pairs])

    def __call__(self, x: Tensor) -> Tensor:
        total = x @ self.weight.T + self.bias
        half = (torch.ones_like(self.shift) << self.shift) >> 1
        out = (total * self.factor + half) >> self.shift
        return out if self.top is None else out.clamp(-self.top, self.top)


class _Norm:
    """A layer norm whose affine map is one dyadic product and one addition by channel."""

    def __init__(self, norm: Any, scale: float) -> None:
        self.scale = scale
        _, step = ints.normalised(torch.ones(1, 2, dtype=torch.int64))
        self.shift = 20
        unit = 1 << self.shift
        self.gain = torch.round(norm.weight.detach().double() * step / scale * unit).long()
        self.offset = torch.round(norm.bias.detach().double() / scale * unit).long()

    def __call__(self, x: Tensor) -> Tensor:
        value, _ = ints.normalised(x)
        out = (value * self.gain + self.offset + (1 << (self.shift - 1))) >> self.shift
        return out.clamp(-127, 127)
