"""An operator task: a reference module, its random inputs, how near a kernel must come.

Categories are MultiKernelBench's (arXiv:2507.17773, table 1, and attention, added to its code
later). The tasks are our own, two to four of each category at sizes that run in milliseconds on a
CPU; the paper has 285.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName

CATEGORIES = (
    "activation",
    "architecture",
    "attention",
    "broadcast",
    "convolution",
    "fusion",
    "index",
    "loss",
    "math",
    "matmul",
    "normalization",
    "optimizer",
    "pooling",
    "reduce",
    "resize",
)
TOLERANCE = 1e-4
"""Absolute and relative, of float results; integers and booleans must be equal."""
SEED = 1024

Draw = Callable[[torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Task:
    """One operator: ``build()`` makes the reference, seeded; ``draw(generator)`` its inputs."""

    name: str
    category: str
    build: Callable[[], nn.Module]
    draw: Draw
    tolerance: float = TOLERANCE

    def reference(self) -> nn.Module:
        """The reference in evaluation mode, the same on every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.build().eval()

    def inputs(self, sets: int) -> list[tuple[Tensor, ...]]:
        """Different random inputs, the same on every call."""
        generator = torch.Generator().manual_seed(SEED)
        return [self.draw(generator) for _ in range(sets)]


TASKS: dict[str, Task] = {}


def add(task: Task) -> Task:
    """Put a task on the bench; raises ``InputError`` for a name taken or an unknown category."""
    if task.name in TASKS:
        raise InputError(f"the bench has a task {task.name!r} already")
    if task.category not in CATEGORIES:
        raise UnknownName("category", task.category, list(CATEGORIES))
    TASKS[task.name] = task
    return task


def tasks(only: Iterable[str] = ()) -> list[Task]:
    """All tasks, or those of the named categories or tasks; ``UnknownName`` for neither."""
    from paredown.testing.bench import tasks_layers, tasks_tensors

    for module in (tasks_layers, tasks_tensors):
        module.fill()
    wanted = list(only)
    for name in wanted:
        if name not in TASKS and name not in CATEGORIES:
            raise UnknownName("task or category", name, [*CATEGORIES, *TASKS])
    return [t for t in TASKS.values() if not wanted or t.name in wanted or t.category in wanted]


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        """``function(*inputs)``."""
        return self.function(*inputs)


def normal(*shapes: tuple[int, ...]) -> Draw:
    """Draws one standard normal tensor of each shape."""
    return lambda g: tuple(torch.randn(s, generator=g) for s in shapes)
