"""Tune mode for a whole model: fine-tuning with frozen batch norms in less memory.

You et al. 2024, "Efficient ConvBN Blocks for Transfer Learning and Beyond" (arXiv:2305.11624).
Which norm follows which layer is read from a captured run, as when folding for inference. In
PyTorch the same is an inductor pass that is off by default (``efficient_conv_bn_eval_fx_passes``).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from paredown.errors import InputError
from paredown.nn.tuned import TunedConvNorm
from paredown.techniques.quantize.fold_norm import FoldNorm
from paredown.workload import Workload


@dataclass(frozen=True)
class Tuned:
    """The model to fine-tune; it shares parameters and statistics with the caller's.

    Training ``model`` trains the original: nothing has to be copied back. ``pairs`` maps each norm
    to its layer, ``refused`` says of the other norms why they stay as they are.
    """

    model: nn.Module
    pairs: dict[str, str]
    refused: dict[str, str] = field(default_factory=dict[str, str])


def tune_mode(workload: Workload) -> Tuned:
    """The workload's model with every foldable (layer, batch norm) pair in tune mode.

    All batch norms are in evaluation mode; calling ``train()`` on a norm puts its pair back to
    plain training. Raises ``InputError`` where no batch norm can be paired.
    """
    from paredown.graph.capture import capture

    fold = FoldNorm()
    graph = capture(workload)
    sites = fold.sites(workload, graph)
    pairs: dict[str, str] = fold.assume(workload, graph, sites).values["into"]
    refused = dict(sites.refused)
    model = shared_copy(workload.model)
    done: dict[str, str] = {}
    for norm_path, path in pairs.items():
        norm: Any = model.get_submodule(norm_path)
        try:
            new = TunedConvNorm(model.get_submodule(path), norm)
        except InputError as e:
            refused[norm_path] = str(e)
            continue
        _put(model, path, new)
        _put(model, norm_path, nn.Identity())
        done[norm_path] = path
    if not done:
        raise InputError(f"no batch norm can be tuned: {refused or 'the model has none'}")
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.eval()
    return Tuned(model, done, refused)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules around the very same parameters and buffers."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
