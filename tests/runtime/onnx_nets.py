"""A small CNN and a small transformer, and their export as ONNX files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from paredown.runtime._quiet import quiet


class Cnn(nn.Module):
    """Strided, depthwise, pointwise and dense convolutions, a residual, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depth = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.dense = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.depth(torch.relu(self.stem(x))))
        x = torch.relu(self.point(x))
        x = x + torch.relu(self.dense(x))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """One pre-norm block over embedded tokens, and a head without a bias."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 10, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 6, -1) @ v)
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def exported(name: str, folder: Path) -> tuple[Path, nn.Module, tuple[torch.Tensor, ...]]:
    """The file of ``cnn`` or ``transformer``, the module it came from and example inputs."""
    torch.manual_seed(0)
    if name == "cnn":
        model, inputs = Cnn().eval(), (torch.randn(1, 3, 32, 32),)
    else:
        model, inputs = Transformer().eval(), (torch.randint(0, 50, (2, 12)),)
    path = folder / f"{name}.onnx"
    with quiet():
        torch.onnx.export(model, inputs, str(path), dynamo=True, verbose=False, external_data=False)
    return path, model, inputs
