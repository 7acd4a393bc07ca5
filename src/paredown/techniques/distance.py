"""How far a network is from the original: the loss of distillation, over outputs and over blocks.

Hinton et al. 2015 (arXiv:1503.02531), section 2: Kullback-Leibler divergence of softened outputs
times the squared temperature; outputs that are no logits are compared by mean squared error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.errors import InputError


def distillation(out: Any, wanted: Any, target: Any, temperature: float) -> Tensor:
    """Distance of two model outputs: softened divergence for logits, else squared error.

    Logits are float outputs with several classes last, with integer targets or no target at all.
    The squared error is relative to the teacher's variance, so that its scale does not matter.
    No gradient reaches ``wanted``.
    """
    from paredown.graph.tensors import walk

    pairs = [
        (a, b)
        for (_, a), (_, b) in zip(walk(out), walk(wanted), strict=True)
        if a.is_floating_point() and a.shape == b.shape
    ]
    if not pairs:
        raise InputError("the original and the pared model return no tensors of equal shape")
    a, b = pairs[0][0].float(), pairs[0][1].detach().float()
    labels = target is None or (isinstance(target, Tensor) and not target.is_floating_point())
    if labels and a.ndim >= 2 and a.shape[-1] > 1:
        p = F.log_softmax(a.flatten(0, -2) / temperature, -1)
        q = F.log_softmax(b.flatten(0, -2) / temperature, -1)
        return F.kl_div(p, q, reduction="batchmean", log_target=True) * temperature**2
    return F.mse_loss(a, b) / b.var().clamp_min(1e-12)


class Taps:
    """Outputs of blocks that both networks have, compared where their shapes agree.

    A block is a child with children of its own inside a ``ModuleList`` or ``Sequential``.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        theirs = dict(teacher.named_modules())
        self._seen: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        for path in blocks(student):
            if path in theirs:
                student.get_submodule(path).register_forward_hook(self._note("student", path))
                theirs[path].register_forward_hook(self._note("teacher", path))

    def _note(self, side: str, path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor) and out.is_floating_point():
                self._seen[side][path] = out

        return hook

    def difference(self) -> Tensor:
        """Mean over blocks of the squared error relative to the teacher's mean square."""
        mine, theirs = self._seen["student"], self._seen["teacher"]
        terms = [
            F.mse_loss(mine[p].float(), t.float()) / t.float().square().mean().clamp_min(1e-12)
            for p, t in theirs.items()
            if p in mine and mine[p].shape == t.shape
        ]
        if not terms:
            raise InputError("no blocks of equal shape: features cannot be distilled here, set 0")
        return torch.stack(terms).mean()


def blocks(model: nn.Module) -> list[str]:
    """Paths of all blocks, outer ones before those inside."""
    out: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            for name, child in module.named_children():
                if any(True for _ in child.children()):
                    out.append(f"{path}.{name}" if path else name)
    return out
