"""How much each unit of a dependency group matters: by magnitude, by gradient, by activation.

- ``magnitude``: squared weights that produce the unit (Li et al. 2017, arXiv:1608.08710, with
  squares) times those that read it, over the whole group as in Fang et al. 2023
  (arXiv:2301.12900, which adds them). A batch norm's scale stands for the weights before
  it, whose size it takes away. So moving a factor from a layer to the next moves no rank;
- ``taylor``: squared first-order change of the loss, (sum of g w over the unit)^2 (Molchanov et al.
  2019, arXiv:1906.10771, eq. 8 over a unit's parameters); without a loss, of the mean squared
  output;
- ``activation``: what the unit contributes to the layers that read it, the mean square of each
  input channel times the squared weights on it (Wanda's score, Sun et al. 2023, arXiv:2306.11695,
  over units).

Scores of a group are divided by their mean, so groups can be ranked against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.dependency import CONV, Group, Member
from paredown.workload import Workload

BATCHES = 16
"""Batches of data that a data-driven score reads at most."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def scores(workload: Workload, groups: list[Group], kind: str) -> dict[str, np.ndarray]:
    """Per site one non-negative score per unit, mean 1 (zeros where the unit does nothing)."""
    if kind == "magnitude":
        raw = {g.site: _magnitude(workload.model, g) for g in groups}
    elif kind == "taylor":
        raw = _taylor(workload, groups)
    elif kind == "activation":
        raw = _activation(workload, groups)
    else:
        raise InputError(f"importance {kind!r} is unknown: magnitude, taylor or activation")
    return {s: r / r.mean() if r.mean() > 0 else r for s, r in raw.items()}


def producers(group: Group) -> list[Member]:
    """What makes the units: producing weights and the scales after them, running statistics left
    out.
    """
    own = [m for m in group.members if m.role in ("out", "scale") and "running_" not in m.name]
    return own or group.members


def _per_unit(group: Group, member: Member, values: Tensor) -> np.ndarray:
    """Sum of a tensor's values over the positions of each unit."""
    other = [d for d in range(values.ndim) if d != member.dim]
    per_position = (values.sum(dim=other) if other else values).double().cpu().numpy()
    units = group.units(member)
    known = units >= 0
    return np.bincount(units[known], weights=per_position[known], minlength=group.size)


def _magnitude(model: nn.Module, group: Group) -> np.ndarray:
    makers = [m for m in group.members if _batch_scale(model, m)] or producers(group)
    readers = [m for m in group.members if reader(model, m)]
    made, read = (_squares(model, group, part) for part in (makers, readers))
    return made * read if readers else made


def _squares(model: nn.Module, group: Group, members: list[Member]) -> np.ndarray:
    """Each unit's squared weights in several tensors, every tensor counting alike."""
    total = np.zeros(group.size)
    for m in members:
        part = _per_unit(group, m, _tensor(model, m.name).detach().float().square())
        if part.mean() > 0:
            total += part / part.mean()
    return total


def _batch_scale(model: nn.Module, m: Member) -> bool:
    """Whether a member is the scale of a batch norm."""
    norm = m.role == "scale" and isinstance(model.get_submodule(m.module), NORMS)
    return norm and m.name.endswith(".weight")


def _taylor(workload: Workload, groups: list[Group]) -> dict[str, np.ndarray]:
    work = workload.own()
    model = work.model.eval()
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    totals = {g.site: np.zeros(g.size) for g in groups}
    for loss in _losses(work, model):
        model.zero_grad(set_to_none=True)
        loss.backward()
        for g in groups:
            change = np.zeros(g.size)
            for m in producers(g):
                w = _tensor(model, m.name)
                if w.grad is not None:
                    change += _per_unit(g, m, (w.detach() * w.grad).float())
            totals[g.site] += change**2
    return totals


def _losses(workload: Workload, model: nn.Module) -> Iterator[Tensor]:
    data = workload.training
    if data is not None and data.loss is not None:
        for k, (inputs, target) in enumerate(data.batches()):
            if k >= BATCHES:
                return
            yield data.loss(model(*inputs), target)
        return
    for k, (args, kwargs) in enumerate(workload.calibration_inputs()):
        if k >= BATCHES:
            return
        yield first_tensor(model(*args, **kwargs)).float().square().mean()


def first_tensor(out: Any) -> Tensor:
    """The first floating tensor of a model's output."""
    from paredown.graph.tensors import walk

    for _, t in walk(out):
        if t.is_floating_point():
            return t
    raise InputError("the model returns no floating tensor to judge by")


def _activation(workload: Workload, groups: list[Group]) -> dict[str, np.ndarray]:
    model = workload.model
    readers = {m.module for g in groups for m in g.members if reader(model, m)}
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(path: str) -> Any:
        channel = 1 if isinstance(model.get_submodule(path), CONV) else -1

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach().float().movedim(channel, -1).flatten(0, -2)
            squares[path] = squares.get(path, torch.zeros(())) + x.square().sum(0)
            counts[path] = counts.get(path, 0) + x.shape[0]

        return hook

    hooks = [model.get_submodule(p).register_forward_pre_hook(watch(p)) for p in sorted(readers)]
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            for k, (args, kwargs) in enumerate(workload.calibration_inputs()):
                if k >= BATCHES:
                    break
                model(*args, **kwargs)
    finally:
        for h in hooks:
            h.remove()
        for m, was in modes.items():
            m.training = was
    out: dict[str, np.ndarray] = {}
    for g in groups:
        total = np.zeros(g.size)
        for m in g.members:
            if m.module not in squares or not reader(model, m):
                continue
            w = _tensor(model, m.name).detach().float().square()
            shape = [1] * w.ndim
            shape[m.dim] = -1
            x = squares[m.module] / counts[m.module]
            total += _per_unit(g, m, w * x.reshape(shape))
        out[g.site] = total if total.any() else _magnitude(model, g)
    return out


def reader(model: nn.Module, m: Member) -> bool:
    """Whether a member is the weight of a layer that reads the units as its whole input."""
    if m.role != "in" or not m.name.endswith(".weight"):
        return False
    module = model.get_submodule(m.module)
    if isinstance(module, CONV):
        return module.groups == 1
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)
