"""The hook ``cast``: a module computes in another dtype than its surroundings."""

# torch keeps its modules' tables and base classes private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from paredown.runtime.forms import hook


def cast_tree(tree: Any, source: torch.dtype, to: torch.dtype) -> Any:
    """The same tree with tensors of dtype ``source`` cast ``to`` another; all else untouched."""

    def one(leaf: Any) -> Any:
        return leaf.to(to) if isinstance(leaf, torch.Tensor) and leaf.dtype == source else leaf

    return pytree.tree_map(one, tree)


@dataclass(frozen=True)
class _CastInputs:
    source: torch.dtype
    to: torch.dtype

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return cast_tree(args, self.source, self.to), cast_tree(kwargs, self.source, self.to)


@dataclass(frozen=True)
class _CastOutputs:
    source: torch.dtype
    to: torch.dtype

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return cast_tree(output, self.source, self.to)


@hook
def cast(module: nn.Module, config: dict[str, Any]) -> None:
    """Cast a module's tensors and its boundary.

    ``config``: ``inside`` and ``outside`` are dtype names; inputs of the outside dtype are cast to
    ``inside`` and outputs back. ``weights`` (names of tensors below the module) are turned to
    ``inside``; tied tensors stay tied.
    """
    inside, outside = getattr(torch, config["inside"]), getattr(torch, config["outside"])
    names = set(config.get("weights", ()))
    if names:
        _cast_weights(module, names, inside)
    module.register_forward_pre_hook(_CastInputs(outside, inside), with_kwargs=True)
    module.register_forward_hook(_CastOutputs(inside, outside))


def _cast_weights(root: nn.Module, names: set[str], to: torch.dtype) -> None:
    """Replace, never write into: the caller's model shares these storages."""
    done: dict[int, Any] = {}
    keep: list[torch.Tensor] = []
    for prefix, module in root.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for name, old in list(table.items()):
                full = f"{prefix}.{name}" if prefix else name
                if old is None or (full not in names and id(old) not in done):
                    continue
                if id(old) not in done:
                    keep.append(old)
                    new = old.detach().to(to)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    done[id(old)] = new
                table[name] = done[id(old)]
