"""Pairs of small networks that err on different inputs (Kinnas et al. 2024, arXiv:2412.01039).

The first answers; where the gap between its two largest probabilities is below a threshold the
second is run as well, and the surer of the two answers. Of a pool of trained networks the pair of
the largest complementarity is chosen, and the threshold that is most often right, both on
validation data.

Cost law: the first network, and the second times the share of inputs that the first is unsure of:
a distribution over inputs with two values.

Deviations: the threshold is searched over the values that the first network's own confidences take
(every partition of the inputs there is) instead of 2000 even ones; ties go to the fewest second
runs. Which of a pair goes first is the cheaper one. Limits: classifiers of the same inputs and
classes; eager alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.varying import run_for, shapes_alone

VARIES = "a second network runs where the first is unsure"


def confidence(logits: Tensor) -> Tensor:
    """Gap between the two largest probabilities, ``(batch,)``."""
    top = logits.float().softmax(-1).topk(2, -1).values
    return top[:, 0] - top[:, 1]


def complementarity(a: Tensor, b: Tensor) -> float:
    """``(n(a or b) - n(a and b) - |n(a) - n(b)|) / N`` of who is right, ``(inputs,)`` bool each."""
    either, both = int((a | b).sum()), int((a & b).sum())
    return (either - both - abs(int(a.sum()) - int(b.sum()))) / len(a)


def best_pair(right: Mapping[str, Tensor]) -> tuple[str, str]:
    """The two names of the largest complementarity, ties to the more often right at best.

    Raises ``InputError`` for fewer than two networks.
    """
    if len(right) < 2:
        raise InputError(f"a pair needs at least two networks, got {len(right)}")

    def worth(pair: tuple[str, str]) -> tuple[float, int]:
        a, b = right[pair[0]], right[pair[1]]
        return complementarity(a, b), int((a | b).sum())

    return max(itertools.combinations(right, 2), key=worth)


def best_threshold(first: Tensor, second: Tensor, labels: Tensor) -> tuple[float, float]:
    """The threshold most often right on logits ``(inputs, classes)``, and the share below it."""
    sure, other = confidence(first), confidence(second)
    one, two = (x.argmax(-1) == labels for x in (first, second))
    surer = torch.where(other > sure, two, one)
    order = sure.argsort()
    gains = (surer.int() - one.int())[order].cumsum(0)
    # After the k least sure inputs the second was run k times; equal confidences go together.
    last = torch.cat([sure[order][1:] > sure[order][:-1], torch.tensor([True])])
    scores = torch.cat([torch.zeros(1, dtype=gains.dtype), gains.masked_fill(~last, -len(labels))])
    count = int(scores.argmax())
    if count == 0:
        return 0.0, 0.0
    edge = float(sure[order[count - 1]])
    following = float(sure[order[count]]) if count < len(order) else edge + 1.0
    return (edge + following) / 2, count / len(labels)


class DualNet(nn.Module):
    """Two classifiers in turn: ``threshold`` 0 is the first alone, above 1 both are always run.

    ``unsure`` is the share of inputs that the second is expected to run for.
    """

    varies = VARIES

    def __init__(
        self, first: nn.Module, second: nn.Module, threshold: float, unsure: float = 0.5
    ) -> None:
        super().__init__()
        if threshold < 0 or not 0 <= unsure <= 1:
            raise InputError("threshold must be at least 0, unsure in [0, 1]")
        self.first, self.second = first, second
        self.threshold, self.unsure = threshold, unsure

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the network that is surer of each input, among those that were run for it."""
        one = self.first(x)
        sure = confidence(one)
        if shapes_alone(x):
            with run_for(self.unsure):
                two = self.second(x)
            better = (sure < self.threshold) & (confidence(two) > sure)
            return torch.where(better[:, None], two, one)
        low = sure < self.threshold
        count = int(low.sum())
        if count == 0:
            return one
        two = self.second(x if count == len(x) else x[low])
        better = confidence(two) > sure[low]
        out = one.clone()
        out[low] = torch.where(better[:, None], two, one[low])
        return out


@dataclass(frozen=True)
class Pair:
    """What was chosen of a pool: names in the order they run, complementarity, the network."""

    names: tuple[str, str]
    complementarity: float
    net: DualNet


def paired(
    pool: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    costs: Mapping[str, float],
    *,
    names: Sequence[str] | None = None,
    batch: int = 128,
) -> Pair:
    """The best pair of a pool of trained classifiers, judged on validation data.

    ``costs`` say which of two runs first (any unit). With ``names`` the pair is given.
    """
    logits = {name: _logits(net, images, batch) for name, net in pool.items()}
    right = {name: x.argmax(-1) == labels for name, x in logits.items()}
    chosen = best_pair(right) if names is None else (names[0], names[1])
    a, b = sorted(chosen, key=lambda name: costs[name])
    threshold, unsure = best_threshold(logits[a], logits[b], labels)
    net = DualNet(pool[a], pool[b], threshold, unsure).eval()
    return Pair((a, b), complementarity(right[a], right[b]), net)


def _logits(net: nn.Module, images: Tensor, batch: int) -> Tensor:
    net.eval()
    with torch.inference_mode():
        return torch.cat([net(part) for part in images.split(batch)]).clone()
