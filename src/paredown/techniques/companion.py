"""What trains beside a student and is thrown away afterwards: further losses, own parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Companion(nn.Module, ABC):
    """Takes part in `recover.train`; its parameters are trained, saved and resumed along.

    Whatever it must remember between steps stands in its own or the student's buffers.
    """

    @abstractmethod
    def loss(self, student: nn.Module, inputs: tuple[Any, ...], target: Any, out: Any) -> Tensor:
        """A scalar added to a step's loss; ``out`` is what the student made of ``inputs``."""

    def stepped(self, rate: float) -> None:
        """Called after every step of the optimizer, with the rate it had."""

    def judging(self, student: nn.Module) -> None:
        """Called before the student is scored."""
