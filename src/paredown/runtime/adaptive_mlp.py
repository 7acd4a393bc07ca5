"""The form of an adaptive computation module: learners in order, and a gate that says how many run.

Wojcik et al. 2023, arXiv:2312.10193: ``out = sum over n <= k(x) of down_n act(up_n x + b_n) + c``,
``k`` the gate's choice for each token. Tokens are taken in the order of ``k``, so that learner n is
one product over the first rows, those with ``k >= n``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.varying import run_for, shapes_alone
from paredown.runtime.forms import form

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
GATE = 16
"""Hidden width of the gate."""
TEMPERATURE = 0.8
"""Of the Gumbel-softmax while training."""
VARIES = "each token runs as many learners as its gate says"


@form
class AdaptiveMlp(nn.Module):
    """``(..., inputs)`` to ``(..., outputs)`` by 0 to ``learners`` MLPs of ``hidden`` units each.

    ``loads[n]`` is the share of tokens that learner n + 1 is expected to run for.
    """

    varies = VARIES

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        learners: int,
        act: str,
        loads: list[float],
        dtype: str = "float32",
        device: Any = None,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS or len(loads) != learners:
            raise InputError(f"act {act!r}, {len(loads)} loads of {learners} learners")
        self.inputs, self.outputs, self.hidden = inputs, outputs, hidden
        self.learners, self.act, self.loads, self.dtype = learners, act, list(loads), dtype
        kind = {"dtype": getattr(torch, dtype), "device": device}
        self.up = nn.Linear(inputs, learners * hidden, **kind)
        # Rows are units: those of the first n learners stand together.
        self.down = nn.Parameter(torch.empty(learners * hidden, outputs, **kind))
        self.bias = nn.Parameter(torch.zeros(outputs, **kind))
        self.gate = nn.Sequential(
            nn.Linear(inputs, GATE, **kind),
            nn.ReLU(),
            nn.Linear(GATE, GATE, **kind),
            nn.ReLU(),
            nn.Linear(GATE, learners + 1, **kind),
        )
        self.forced: int | None = None
        self.watched = False
        """Whether ``choices`` are kept while training."""
        self.choices: Tensor | None = None
        """One-hot choices ``(..., learners + 1)`` of the last call, with their gradient."""
        self.counts: list[int] | None = None
        """Tokens by their choice since it was made a list of zeros; None: not counted."""

    def config(self) -> dict[str, Any]:
        """What rebuilds it."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "hidden": self.hidden,
            "learners": self.learners,
            "act": self.act,
            "loads": self.loads,
            "dtype": self.dtype,
        }

    def forward(self, x: Tensor) -> Tensor:
        """As many learners for each token as the gate says; ``forced`` sets it for all."""
        if self.training:
            return self._soft(x)
        rows = x.reshape(-1, self.inputs)
        if shapes_alone(x):
            out = self._expected(rows)
        elif self.forced is not None:
            out = self._first(rows, [len(rows)] * self.forced)
        else:
            out = self._chosen(rows)
        return out.reshape(*x.shape[:-1], self.outputs)

    def learner(self, n: int, rows: Tensor) -> Tensor:
        """What learner ``n`` (from 0) makes of ``(rows, inputs)``."""
        at = slice(n * self.hidden, (n + 1) * self.hidden)
        inside = ACTIVATIONS[self.act](F.linear(rows, self.up.weight[at], self.up.bias[at]))
        return inside @ self.down[at]

    def prefixes(self, x: Tensor) -> list[Tensor]:
        """Outputs of the first 0 to ``learners`` learners; each is trained on what the ones before
        it leave: they are detached.
        """
        out = self.bias.expand(*x.shape[:-1], self.outputs)
        found = [out]
        for n in range(self.learners):
            out = out.detach() + self.learner(n, x)
            found.append(out)
        return found

    def _chosen(self, rows: Tensor) -> Tensor:
        choice = self.gate(rows).argmax(-1)
        if self.counts is not None:
            here = torch.bincount(choice, minlength=self.learners + 1).tolist()
            self.counts = [a + b for a, b in zip(self.counts, here, strict=True)]
        if len(rows) == 1:
            return self._first(rows, [1] * int(choice))
        order = choice.argsort(descending=True)
        at_least = (choice.unsqueeze(0) > torch.arange(self.learners).unsqueeze(1)).sum(1).tolist()
        out = torch.empty(len(rows), self.outputs, dtype=rows.dtype)
        out[order] = self._first(rows[order], [n for n in at_least if n])
        return out

    def _first(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Learner n over the first ``counts[n]`` rows, summed."""
        out = self.bias.expand(len(rows), -1).clone()
        for n, count in enumerate(counts):
            out[:count] += self.learner(n, rows[:count])
        return out

    def _expected(self, rows: Tensor) -> Tensor:
        choice = self.gate(rows).argmax(-1)
        out = self.bias.expand(len(rows), -1)
        for n, load in enumerate(self.loads):
            with run_for(load):
                made = self.learner(n, rows)
            out = torch.where((choice > n).unsqueeze(-1), out + made, out)
        return out

    def _soft(self, x: Tensor) -> Tensor:
        """Every learner, weighed by whether the gate's hard choice reaches it, straight through."""
        if self.forced is None:
            choices = F.gumbel_softmax(self.gate(x), TEMPERATURE, hard=True)
        else:
            only = torch.full(x.shape[:-1], self.forced)
            choices = F.one_hot(only, self.learners + 1).to(x.dtype)
        self.choices = choices if self.watched else None
        reached = choices.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        inside = ACTIVATIONS[self.act](self.up(x))
        weight = reached.repeat_interleave(self.hidden, -1)
        return (inside * weight) @ self.down + self.bias
