"""Gates that come to agree: input-dependent ones on the units of dependency groups, polarised until
every input opens the same (Zhi et al. 2023, arXiv:2302.10798).

A unit's gate looks at the pooled input of the layer that makes the unit: one linear, a sigmoid,
open above a half, its gradient passed straight through. It stands where the unit is read, so that a
shut gate and a unit cut out are one and the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.graph.dependency import CONV, Group
from paredown.techniques.companion import Companion
from paredown.techniques.sparsify.importance import producers, reader

SHARPNESS = 8.0
"""Slope of the sigmoid before its linear: gates must be able to turn within a short training."""
MEMORY = 0.95
"""Of the running mean over batches."""


def why_not(model: nn.Module, group: Group) -> str | None:
    """Why no gates can stand on a group, or None."""
    odd = next((m for m in group.members if m.role == "other"), None)
    odd = odd or next((m for m in group.members if m.role == "in" and not reader(model, m)), None)
    if odd is not None:
        return f"{odd.name} uses its units in a way that no gate stands for"
    if not any(reader(model, m) for m in group.members):
        return "no linear layer or convolution reads its units"
    if maker(model, group) is None:
        return "no linear layer or convolution makes its units"
    return None


def maker(model: nn.Module, group: Group) -> str | None:
    """Path of the first linear or ungrouped convolution that makes the units."""
    for m in producers(group):
        module = model.get_submodule(m.module)
        wide = isinstance(module, CONV) and module.groups > 1
        if m.role == "out" and isinstance(module, (nn.Linear, *CONV)) and not wide:
            return m.module
    return None


class Gates(Companion):
    """Gates on groups of a network in training; out of it the consensus decides for all inputs.

    ``counts`` says how many units of a group stay (the most often open ones); a group without one
    keeps what is open more often than not. ``share`` of all units is to go, each weighed by the
    work of its group.
    """

    means: list[Tensor]

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        weights: Sequence[float],
        *,
        share: float,
        counts: dict[str, int] | None = None,
        polarise: float = 1.0,
        budget: float = 4.0,
        steps: int = 1,
    ) -> None:
        super().__init__()
        self.groups, self.share, self.counts = list(groups), share, counts or {}
        self.polarise, self.budget, self.steps = polarise, budget, steps
        self.weights = torch.tensor(weights) / sum(weights)
        self.looks = nn.ModuleList()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        for i, group in enumerate(self.groups):
            made: Any = model.get_submodule(maker(model, group) or "")
            look = nn.Linear(made.weight.shape[1], group.size)
            nn.init.normal_(look.weight, std=0.1 / made.weight.shape[1] ** 0.5)
            nn.init.normal_(look.bias, mean=0.1, std=0.02)
            self.looks.append(look)
            # Shut until a batch was seen: a network that was never gated is not judged as one.
            self.register_buffer(f"mean{i}", torch.zeros(group.size))
        self._now: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def put_on(self, model: nn.Module) -> Gates:
        """Hook the network's makers and readers; returns itself."""
        for i, group in enumerate(self.groups):
            path = maker(model, group) or ""
            made = model.get_submodule(path)
            self._handles.append(made.register_forward_pre_hook(self._looker(i)))
            for member in group.members:
                if reader(model, member):
                    units = torch.as_tensor(group.units(member))
                    hook = self._gate(i, units)
                    read = model.get_submodule(member.module)
                    self._handles.append(read.register_forward_pre_hook(hook))
        return self

    def take_off(self) -> None:
        """Leave the network without hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def mean(self, i: int) -> Tensor:
        """Running share of inputs that open each unit of a group."""
        return self.get_buffer(f"mean{i}")

    def kept(self, i: int) -> Tensor:
        """Units of a group that the consensus keeps, ascending; at least one."""
        mean, count = self.mean(i), self.counts.get(self.groups[i].site)
        if count is None:
            count = max(1, int((mean > 0.5).sum()))
        return mean.argsort(descending=True, stable=True)[:count].sort().values

    def doubt(self) -> float:
        """The largest ``g (1 - g)`` of a unit's running mean: 0 where all inputs agree."""
        return max(float((self.mean(i) * (1 - self.mean(i))).max()) for i in range(len(self.looks)))

    def loss(self, student: nn.Module, inputs: tuple[Any, ...], target: Any, out: Any) -> Tensor:
        """Polarisation of each unit's batch mean, and the squared gap to the share that stays."""
        means = {i: g.mean(0) for i, g in self._now.items()}
        doubts = torch.stack([(self.weights[i] * (m * (1 - m)).mean()) for i, m in means.items()])
        if self.counts:
            gaps = [
                self.weights[i] * (m.mean() - self.counts[self.groups[i].site] / len(m)) ** 2
                for i, m in means.items()
            ]
            gap = torch.stack(gaps).sum()
        else:
            stays = torch.stack([self.weights[i] * m.mean() for i, m in means.items()]).sum()
            gap = (stays - (1 - self.share)) ** 2
        done = float(self.step) / self.steps
        ramp = min(1.0, max(0.0, (done - 0.1) / 0.4))
        return self.budget * gap + self.polarise * ramp * doubts.sum()

    def stepped(self, rate: float) -> None:
        """Count the step."""
        self.step += 1

    def _looker(self, i: int) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not module.training:
                return
            x: Tensor = args[0]
            channel = 1 if isinstance(module, CONV) else -1
            over = [d for d in range(1, x.ndim) if d != channel % x.ndim]
            pooled = x.mean(over) if over else x
            p = torch.sigmoid(SHARPNESS * self.looks[i](pooled.float()))
            gates = p + ((p > 0.5).to(p.dtype) - p).detach()
            self._now[i] = gates
            with torch.no_grad():
                first = int(self.step) == 0
                self.mean(i).lerp_(gates.mean(0), 1.0 if first else 1 - MEMORY)

        return look

    def _gate(self, i: int, units: Tensor) -> Any:
        def gate(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x: Tensor = args[0]
            channel = 1 if isinstance(module, CONV) else x.ndim - 1
            if module.training:
                gates = self._now[i]
            else:
                gates = torch.zeros(1, self.groups[i].size, device=x.device)
                if bool(self.mean(i).any()):
                    gates[:, self.kept(i)] = 1.0
            if len(gates) not in (1, len(x)):  # windows of an image, say: each has its gates
                gates = gates.repeat_interleave(len(x) // len(gates), 0)
            # Positions that are of no unit of this group (-1) stay open.
            wide = torch.where(units >= 0, gates[:, units.clamp(min=0)], 1.0)
            shape = [len(wide), *([1] * (x.ndim - 1))]
            shape[channel] = wide.shape[1]
            return (x * wide.view(shape).to(x.dtype), *args[1:])

        return gate
