"""Attention inside windows, plain and shifted (Swin, Liu et al. 2021, arXiv:2103.14030)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.embed import RelativePositionBias


def to_windows(x: Tensor, window: int) -> Tensor:
    """``(batch, h, w, channels)`` to ``(batch * windows, window * window, channels)``."""
    batch, h, w, channels = x.shape
    x = x.reshape(batch, h // window, window, w // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x: Tensor, window: int, h: int, w: int) -> Tensor:
    """The inverse of :func:`to_windows`: back to ``(batch, h, w, channels)``."""
    channels = x.shape[-1]
    x = x.reshape(-1, h // window, w // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, h, w, channels)


def shift_mask(h: int, w: int, window: int, shift_h: int, shift_w: int) -> Tensor:
    """What shifted windows may attend to: ``(windows, tokens, tokens)`` of 0 and -inf.

    After a cyclic shift a window at the border holds tokens from opposite ends of the map; only
    tokens of the same region see each other (section 3.2, figure 4).
    """
    row = _regions(h, window, shift_h)
    column = _regions(w, window, shift_w)
    region = (3 * row[:, None] + column[None, :]).reshape(1, h, w, 1)
    region = to_windows(region, window).squeeze(-1)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf"))


def _regions(length: int, window: int, shift: int) -> Tensor:
    at = torch.arange(length)
    return (at >= length - window).long() + (at >= length - shift).long()


class WindowAttention(nn.Module):
    """Multi-head attention with relative position bias inside windows of a map.

    Maps ``(batch, h, w, channels)`` to the same shape. ``shift`` rolls the map by that many pixels
    before the windows are cut; a map no larger than one window is not shifted. Maps that the window
    does not divide are padded with zeros on the right and below. The mask of shifted windows is
    made once for maps of ``size`` (height, width), anew for others. Raises ``InputError`` where
    the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: int = 7,
        *,
        shift: int = 0,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.window, self.shift = window, shift
        self.bias = RelativePositionBias((window, window), num_heads)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.size = size
        tall, wide, shift_h, shift_w = self._laid(*size) if size is not None else (0, 0, 0, 0)
        mask = shift_mask(tall, wide, window, shift_h, shift_w) if shift_h or shift_w else None
        self.register_buffer("mask", mask, persistent=False)

    mask: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        _, h, w, _ = x.shape
        tall, wide, shift_h, shift_w = self._laid(h, w)
        padded = (tall, wide) != (h, w)
        if padded:
            x = F.pad(x, (0, 0, 0, wide - w, 0, tall - h))
        bias = self.bias()
        if shift_h or shift_w:
            x = x.roll((-shift_h, -shift_w), (1, 2))
            mask = self.mask if self.mask is not None and self.size == (h, w) else None
            if mask is None:
                mask = shift_mask(tall, wide, self.window, shift_h, shift_w).to(x)
            bias = bias + mask.repeat(x.shape[0], 1, 1).unsqueeze(1)
        x = from_windows(self._attend(to_windows(x, self.window), bias), self.window, tall, wide)
        if shift_h or shift_w:
            x = x.roll((shift_h, shift_w), (1, 2))
        return x[:, :h, :w] if padded else x

    def _laid(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Height and width after padding, and the shift along each: none within one window."""
        tall, wide = h + -h % self.window, w + -w % self.window
        return (
            tall,
            wide,
            self.shift if tall > self.window else 0,
            self.shift if wide > self.window else 0,
        )

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(count, tokens, -1))
