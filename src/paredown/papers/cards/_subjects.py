"""What the architectures' cards time: networks side by side, to run or to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown import zoo
from paredown.papers.cards._parts import Subject


def timed_runs(
    made: Callable[..., Sequence[Subject]], args: tuple[Any, ...], train: bool
) -> list[tuple[str, Callable[[], Any]]]:
    """The subjects ready to run (built in the timing child); the first is the baseline."""
    # The timing child is in inference mode, where nothing can be trained.
    with torch.inference_mode(not train):
        subjects = made(*args)
    return [(n, stepping(m.train(), x) if train else running(m.eval(), x)) for n, m, x in subjects]


def running(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """One run."""
    return lambda: model(*inputs)


def stepping(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    """One forward and backward pass, gradients dropped."""

    def run() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            model(*inputs).square().mean().backward()
            model.zero_grad(set_to_none=True)

    return run


def zoo_pair(
    theirs: tuple[str, str], ours: tuple[str, str], size: int, batch: int = 1
) -> list[Subject]:
    """Two networks of the zoo, (name shown, row), at one image size; the baseline first."""
    made: list[Subject] = []
    for shown, row in (theirs, ours):
        x = zoo.example(row, image_size=size, batch=batch)
        # Networks that are built for one size take it.
        settings = {"image_size": size} if zoo.variant(row).fixed_size else {}
        made.append((shown, zoo.create(row, **settings), x))
    return made
