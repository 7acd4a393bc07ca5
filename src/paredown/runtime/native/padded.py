"""Padding around a map that a convolution or a maximum over windows does itself.

Patches of an image (MCUNetV2, arXiv:2110.15352) are padded on the sides where the image ends and on
no other: what torch writes as a padding of its own is two fields of the operator behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from paredown.runtime.native.builder import Builder, Dequantized
from paredown.runtime.native.plan import Tensor
from paredown.runtime.native.rules import argument, pair
from paredown.runtime.native.torch_steps import by_torch

CONVOLUTIONS = ("aten.conv2d.default", "aten.convolution.default")


@dataclass(frozen=True, eq=False)
class Padded:
    """``base`` with ``top`` rows and ``left`` columns in front, and as many behind as are read."""

    base: Tensor | Dequantized
    top: int
    left: int
    node: torch.fx.Node


def start(b: Builder, node: torch.fx.Node) -> Padded | None:
    """A padding node as fields of everything that reads it; None where one of them cannot."""
    source: Any = node.args[0]
    sides: Any = node.args[1]
    at = 3 if "aten.pad." in str(node.target) else 2
    if at == 3 and argument(node, 2, "mode", "constant") != "constant":
        return None
    fill = argument(node, at, "value", 0) or 0
    value = b.env[source]
    if not isinstance(value, (Tensor, Dequantized)) or len(node.meta["val"].shape) != 4:
        return None
    if isinstance(value, Dequantized) and not isinstance(value.q, Tensor):
        return None
    if any(sides[4:]) or min(sides) < 0 or not node.users:
        return None
    readers = [u for u in node.users if _pads_itself(b, u, node, fill, value)]
    left, top = sides[0], sides[2] if len(sides) > 2 else 0
    return Padded(value, top, left, node) if len(readers) == len(node.users) else None


def _pads_itself(
    b: Builder, user: torch.fx.Node, node: torch.fx.Node, fill: float, value: Any
) -> bool:
    name = str(user.target)
    if user.args[0] is not node or node in user.all_input_nodes[1:]:
        return False
    if name in CONVOLUTIONS:
        weight: Any = user.args[1]
        transposed = "convolution" in name and argument(user, 6, "transposed", False)
        constant = isinstance(b.env.get(weight), (torch.Tensor, Dequantized))
        pads = any(pair(argument(user, 4, "padding", 0)))
        return fill == 0 and constant and not transposed and not pads
    plain = isinstance(value, Tensor)
    pads = any(pair(argument(user, 3, "padding", 0)))
    return name == "aten.max_pool2d.default" and fill == float("-inf") and plain and not pads


def settle(b: Builder, value: Padded) -> Any:
    """The padded map in memory, for a reader that torch runs after all."""
    node: Any = value.node
    why = "padding that its reader cannot do itself"
    base = b.tensor(value.base)
    return by_torch(b, node.target, (base, *node.args[1:]), node.kwargs, node.meta["val"], why)


def unpadded(b: Builder, node: Any) -> tuple[Any, int, int]:
    """What a reader of ``node`` reads in memory, and the padding it does itself."""
    value = b.env[node]
    return (value.base, value.top, value.left) if isinstance(value, Padded) else (value, 0, 0)
