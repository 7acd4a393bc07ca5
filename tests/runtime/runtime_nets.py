"""Small networks for the runtime tests: convolutions, attention, Hugging Face, nested calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from paredown.runtime import ops
from paredown.workload import Workload

Q = torch.ops.paredown


class ConvNet(nn.Module):
    """Convolution, batch norm, ReLU6 and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = F.relu6(self.point(F.relu6(self.depth(x))))
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    """A patch embedding and one attention block with scaled-dot-product attention."""

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, dim, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .view(b, n, 3, self.heads, c // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class TiedDict(nn.Module):
    """Two inputs, one of them nested; a dict output; the output layer is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("shift", torch.randn(16), persistent=False)

    def forward(
        self, tokens: torch.Tensor, extra: dict[str, torch.Tensor], scale: float = 1.0
    ) -> dict[str, Any]:
        h = self.embed(tokens) * extra["gain"] + self.shift
        return {"logits": self.out(h) * scale, "hidden": (h, h.mean(1)), "none": None}


class QConv(nn.Module):
    """A convolution with explicit static int8 on both sides, built from a float one."""

    def __init__(self, conv: nn.Conv2d, scale: float = 0.03, zero: int = 128) -> None:
        super().__init__()
        self.args = (conv.stride, conv.padding, conv.dilation, conv.groups)
        _weight(self, conv.weight)
        self.bias = conv.bias
        self.register_buffer("x_scale", torch.tensor([scale]))
        self.register_buffer("x_zero", torch.tensor([zero], dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = Q.quantize(x, self.x_scale, self.x_zero, 0, 255, -1)
        x = Q.dequantize(q, self.x_scale, self.x_zero, -1, torch.float32)
        w = Q.dequantize(self.q, self.scale, self.zero, 0, torch.float32)
        return F.conv2d(x, w, self.bias, *self.args)


class QLinear(nn.Module):
    """A linear layer with int8 weights; activations static, dynamic or float."""

    def __init__(
        self, linear: nn.Linear, activation: str | None = "static", scale: float = 0.03
    ) -> None:
        super().__init__()
        self.activation = activation
        _weight(self, linear.weight)
        self.bias = linear.bias
        self.register_buffer("x_scale", torch.tensor([scale]))
        self.register_buffer("x_zero", torch.tensor([128], dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation == "static":
            q = Q.quantize(x, self.x_scale, self.x_zero, 0, 255, -1)
            x = Q.dequantize(q, self.x_scale, self.x_zero, -1, torch.float32)
        elif self.activation == "dynamic":
            q, s, z = Q.dynamic_quantize(x)
            x = Q.dequantize(q, s, z, -1, torch.float32)
        return F.linear(x, Q.dequantize(self.q, self.scale, self.zero, 0, torch.float32), self.bias)


class GroupLinear(nn.Module):
    """A linear layer with grouped weight-only int4 or int8, asymmetric."""

    def __init__(self, linear: nn.Linear, bits: int, group: int) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.bits, self.columns = bits, columns
        top = 2**bits - 1
        w = linear.weight.detach().reshape(rows, -1, group)
        low, high = w.amin(-1), w.amax(-1)
        scale = (high - low) / top
        zero = torch.round(-low / scale).clamp(0, top)
        q = torch.clamp(torch.round(w / scale[..., None]) + zero[..., None], 0, top)
        q = q.reshape(rows, columns).to(torch.uint8)
        self.register_buffer("q", ops.pack_int4(q) if bits == 4 else q)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.to(torch.int32))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = Q.dequantize_groups(self.q, self.scale, self.zero, self.bits, self.columns, x.dtype)
        return F.linear(x, w, self.bias)


def _weight(module: nn.Module, weight: torch.Tensor) -> None:
    w = weight.detach()
    scale = w.flatten(1).abs().amax(1) / 127
    shape = [-1] + [1] * (w.ndim - 1)
    q = torch.clamp(torch.round(w / scale.reshape(shape)), -127, 127).to(torch.int8)
    module.register_buffer("q", q)
    module.register_buffer("scale", scale)
    module.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int32))


def convnet(batch: int = 2) -> Workload:
    """The convolution net on seeded images."""
    torch.manual_seed(0)
    net = ConvNet().eval()
    net.norm.running_mean.normal_()
    return Workload(net, (torch.randn(batch, 3, 16, 16),), name="convnet")


def encoder(batch: int = 2) -> Workload:
    """The attention net on seeded images."""
    torch.manual_seed(0)
    return Workload(Encoder().eval(), (torch.randn(batch, 3, 16, 16),), name="encoder")


def tied(batch: int = 2) -> Workload:
    """Tied weights, nested inputs, a plain argument, a dict output."""
    torch.manual_seed(0)
    kwargs = {"extra": {"gain": torch.randn(batch, 6, 16)}, "scale": 2.0}
    return Workload(TiedDict().eval(), (torch.randint(0, 20, (batch, 6)),), kwargs, name="tied")


def bert(batch: int = 2) -> Workload:
    """A two-layer BERT classifier with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    mask = torch.ones(batch, 8, dtype=torch.long)
    mask[:, 6:] = 0
    kwargs = {"input_ids": torch.randint(0, 50, (batch, 8)), "attention_mask": mask}
    return Workload(BertForSequenceClassification(config).eval(), (), kwargs, name="bert")


def gpt2(batch: int = 2) -> Workload:
    """A two-layer GPT-2 with random weights, its cache among the outputs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    kwargs = {"input_ids": torch.randint(0, 50, (batch, 8))}
    return Workload(GPT2LMHeadModel(config).eval(), (), kwargs, name="gpt2")


NETS = {f.__name__: f for f in (convnet, encoder, tied, bert, gpt2)}
