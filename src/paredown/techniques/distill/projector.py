"""The cross-attention projector: a student's map as the tokens of a teacher (ScaleKD, section 3.1).

Fan et al. 2024, arXiv:2411.06786, equation 2. It is trained with the student and then dropped.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.techniques.distill.features import Layout

SHARPNESS = 5.0
"""Factor on the attention logits."""
HEADS = (24, 16, 12, 8, 6, 4, 3, 2, 1)
"""Heads tried, of 8 channels or more."""


class Projector(nn.Module):
    """``(batch, channels, h, w)`` of a student to ``(batch, tokens, width)`` of a teacher.

    Keys and values are the map after a 3 x 3 convolution with learned positions; queries are a
    learned grid, or are handed over. Then a feed-forward layer of four times the width.
    """

    def __init__(self, student: Layout, tokens: int, width: int) -> None:
        super().__init__()
        # The paper has 16 and 24 heads at widths of 768 and 1536.
        self.heads = next(h for h in HEADS if width % (8 * h) == 0 or h == 1)
        self.conv = nn.Conv2d(student.width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.place = nn.Parameter(0.02 * torch.randn(1, width, *student.grid))
        self.place_mix = nn.Conv2d(width, width, 1)
        self.query = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out, self.after = nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """Tokens of the teacher's width; ``query`` (batch, tokens, width) replaces the grid."""
        x = F.relu(self.norm(self.conv(x)))
        x = x + F.relu(self.place_mix(self.place))
        held = x.flatten(2).transpose(1, 2)
        asked = self.query.expand(len(x), -1, -1) if query is None else query
        q = self._split(self.q(asked))
        k, v = (self._split(t) for t in self.kv(held).chunk(2, -1))
        y = F.scaled_dot_product_attention(q, k, v, scale=SHARPNESS / math.sqrt(q.shape[-1]))
        y = asked + self.out(y.transpose(1, 2).flatten(2))
        return y + self.down(F.gelu(self.up(self.after(y))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
