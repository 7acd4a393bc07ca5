"""The hook ``fewer_tokens``: transformer blocks that hand fewer tokens on than they were given.

Between its attention and its feed-forward a block gives some tokens up, in one of two ways: merging
(`runtime.token_merging`) or propagation (`runtime.token_propagation`). The module keeps its
children and their names, so other rewrites find their layers where they were; what goes from block
to block beside the tokens (how many patches a token stands for) is held in a `Flow` that all blocks
of one model share for the length of a run.

Attention is not rewritten: while a block runs, its call of torch's scaled dot product attention is
answered by the method, which adds the logarithm of the tokens' sizes to the logits (proportional
attention; Bolya et al. 2023, arXiv:2210.09461, eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paredown.errors import InputError
from paredown.runtime.forms import hook


@dataclass
class Flow:
    """What goes with the tokens through one run; emptied by the first block and after the last."""

    sizes: Tensor | None = None
    """``(batch, tokens)``: how many of the first tokens each stands for; None: one each."""
    places: Tensor | None = None
    """``(batch, patches)``: where in the image's grid the patches that are left came from."""
    links: Tensor | None = None
    """``(batch, patches, patches)``: the normalised graph over all first patches."""

    def clear(self) -> None:
        """Forget the run."""
        self.sizes = self.places = self.links = None

    def sizes_of(self, x: Tensor) -> Tensor:
        """``sizes`` of the tokens ``(batch, tokens, channels)``: ones before anything went."""
        if self.sizes is not None:
            return self.sizes
        return torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)

    def bias(self, like: Tensor) -> Tensor | None:
        """``log(size)`` of each key for logits ``(batch, heads, tokens, tokens)``, or None."""
        return None if self.sizes is None else self.sizes.log()[:, None, None, :].to(like.dtype)


class Method(Protocol):
    """How a block gives tokens up. Plain data: it is copied with the model."""

    def begin(self, flow: Flow, x: Tensor) -> None:
        """Look at the first block's input ``(batch, tokens, channels)``."""
        ...

    def attends(self, removed: int) -> bool:
        """Whether a block that gives up ``removed`` tokens needs another attention at all."""
        ...

    def attend(
        self, flow: Flow, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], removed: int
    ) -> tuple[Tensor, Tensor]:
        """Attention's output, and what `reduce` chooses by; ``(batch, heads, tokens, dim)``."""
        ...

    def reduce(self, flow: Flow, x: Tensor, chosen_by: Tensor, removed: int) -> Tensor:
        """``(batch, tokens, channels)`` with ``removed`` tokens fewer."""
        ...


METHODS: dict[str, Callable[[dict[str, Any]], Method]] = {}
"""Name -> how to build a method from its plain settings; filled by the methods' modules."""


@dataclass
class Step:
    """One block's part: its children before and after the cut, and how many tokens it gives up."""

    flow: Flow
    method: Method
    first: tuple[str, ...]
    attention: str
    second: tuple[str, ...]
    remove: int
    starts: bool
    ends: bool


class ReducedBlock(nn.Module):
    """Mixed in before a block's own class: the same children, fewer tokens out."""

    fewer: Step

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``(batch, tokens, channels)`` to ``(batch, tokens - remove, channels)``."""
        step = self.fewer
        flow, method = step.flow, step.method
        if step.starts:
            flow.clear()
            method.begin(flow, hidden)
        if method.attends(step.remove):
            out = self._cut(step, hidden, args, kwargs)
        elif flow.sizes is not None:
            with _Watch(flow, None, 0):
                out = super().forward(hidden, *args, **kwargs)
        else:
            out = super().forward(hidden, *args, **kwargs)
        if step.ends:
            flow.clear()
        return out

    def _cut(self, step: Step, hidden: Tensor, args: Any, kwargs: Any) -> Tensor:
        y = hidden
        watch = _Watch(step.flow, step.method, step.remove)
        with watch:
            for name in step.first:
                child = self.get_submodule(name)
                y = child(y, *args, **kwargs) if name == step.attention else child(y)
                y = y[0] if isinstance(y, tuple) else y
        x = hidden + y
        if watch.chosen_by is None:
            raise InputError(f"{type(self).__name__} no longer calls scaled_dot_product_attention")
        if step.remove:
            x = step.method.reduce(step.flow, x, watch.chosen_by, step.remove)
        y = x
        for name in step.second:
            y = self.get_submodule(name)(y)
        return x + y


class _Watch(TorchFunctionMode):
    """Answers scaled dot product attention while entered: by a method, or with sizes alone."""

    def __init__(self, flow: Flow, method: Method | None, removed: int) -> None:
        super().__init__()
        self.flow, self.method, self.removed = flow, method, removed
        self.chosen_by: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Pass every other function on."""
        options: dict[str, Any] = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        options |= dict(zip(_ARGUMENTS, args, strict=False))
        q, k, v = (options.pop(name) for name in _ARGUMENTS[:3])
        if options.get("attn_mask") is not None or options.get("is_causal"):
            raise InputError("attention with a mask cannot be given fewer tokens")
        if self.method is None:
            return weighed(self.flow, q, k, v, options)
        out, self.chosen_by = self.method.attend(self.flow, q, k, v, options, self.removed)
        return out


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def weighed(flow: Flow, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """Scaled dot product attention with the tokens' sizes in its logits."""
    given: dict[str, Any] = {**options, "attn_mask": flow.bias(q)}
    return F.scaled_dot_product_attention(q, k, v, **given)


@cache
def _reduced(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Reduced{cls.__name__}", (ReducedBlock, cls), {})


@hook
def fewer_tokens(module: nn.Module, config: dict[str, Any]) -> None:
    """Make blocks below ``module`` give up tokens.

    ``config``: ``method`` and its ``settings``; ``blocks``, in the order they run, each with its
    ``path``, the names of the children before (``first``, of which ``attention`` takes the block's
    further arguments) and after the cut (``second``), and ``remove``, the tokens given up there.
    """
    flow, method = Flow(), METHODS[config["method"]](config["settings"])
    blocks = config["blocks"]
    for i, block in enumerate(blocks):
        at: Any = module.get_submodule(block["path"])
        step = Step(
            flow,
            method,
            tuple(block["first"]),
            block["attention"],
            tuple(block["second"]),
            int(block["remove"]),
            starts=i == 0,
            ends=i == len(blocks) - 1,
        )
        at.__class__ = _reduced(type(at))
        at.fewer = step


def rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[b, index[b]]``: ``(batch, n, ...)`` and ``(batch, m)`` to ``(batch, m, ...)``.

    One gather of whole rows, which every runtime copies at memory speed.
    """
    batch, n = x.shape[:2]
    if batch > 1:
        index = index + torch.arange(batch, device=x.device).unsqueeze(1) * n
    flat = x.reshape(batch * n, *x.shape[2:]).index_select(0, index.reshape(-1))
    return flat.reshape(batch, -1, *x.shape[2:])
