"""TopKLD: a divergence that looks both ways (Ding et al. 2025, arXiv:2501.06218).

On the teacher's ``k`` most probable outputs the student's divergence from the teacher is measured
(reverse, mode seeking: "explicit knowledge"), on the others the teacher's from the student
(forward, mean seeking: "implicit knowledge").

Deviation: a sum of parts of two Kullback-Leibler divergences can fall below zero when mass moves
between the two sets of outputs. Each part therefore has its mass term, ``a log(a / b) - a + b``,
which is zero only where both agree; over all outputs these terms cancel. So the whole is zero only
for equal distributions, ``k = 0`` is the forward and ``k`` = all outputs the reverse divergence.
Which direction goes where, and ``k``, could not be read in the paper's public summaries: ours
follow its words on modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.workload import TrainingData


def topkld(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """Mean over all positions of logits ``(..., outputs)`` of both; no gradient for the teacher.

    Raises ``InputError`` where there are fewer outputs than ``k``.
    """
    outputs = teacher.shape[-1]
    if not 0 <= k <= outputs or student.shape != teacher.shape:
        raise InputError(
            f"TopKLD of logits {tuple(student.shape)} and {tuple(teacher.shape)}: shapes must be "
            f"equal and k, here {k}, at most the outputs"
        )
    log_q = F.log_softmax(student.float(), -1)
    log_p = F.log_softmax(teacher.detach().float(), -1)
    q, p = log_q.exp(), log_p.exp()
    top = torch.zeros_like(p, dtype=torch.bool)
    top.scatter_(-1, log_p.topk(k, -1).indices, True)
    reverse = q * (log_q - log_p) - q + p
    forward = p * (log_p - log_q) - p + q
    return torch.where(top, reverse, forward).sum(-1).mean()


def towards(data: TrainingData, teacher: nn.Module, k: int, task: float = 0.0) -> TrainingData:
    """The same batches with a loss of their own: TopKLD from ``teacher``, and ``task`` of theirs.

    For `recover.train` without a teacher: every batch carries what the teacher made of it. Raises
    ``InputError`` where ``task`` asks for a loss that the data do not have.
    """
    own = data.loss
    if task and own is None:
        raise InputError(f"task {task}: the training data have no loss of their own")
    teacher.eval()

    def batches() -> Iterator[tuple[tuple[Any, ...], Any]]:
        for inputs, target in data.batches():
            with torch.no_grad():
                wanted = teacher(*inputs)
            yield inputs, (target, wanted)

    def loss(out: Tensor, target: tuple[Any, Tensor]) -> Tensor:
        value = (1 - task) * topkld(out, target[1], k)
        return value if own is None or not task else value + task * own(out, target[0])

    return TrainingData(batches, loss)
