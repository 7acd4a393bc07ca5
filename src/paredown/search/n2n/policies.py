"""The two policies of N2N learning: LSTMs over the sequence of layers (Ashok et al. 2018).

arXiv:1709.06030, section 3.2. Both take features ``(layers, FEATURES)`` and return one action per
layer with the logarithm of their joint probability.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 6
"""Kind, kernel, stride, padding, output channels, and whether a shortcut ends behind a layer."""
HIDDEN, DEPTH = 30, 2


class Removal(nn.Module):
    """A bidirectional LSTM reads all layers, then each is kept (1) or removed (0)."""

    rate = 0.003

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.LSTM(FEATURES, HIDDEN, DEPTH, bidirectional=True)
        self.answer = nn.Linear(2 * HIDDEN, 2)

    def forward(self, features: Tensor, taken: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions ``(layers,)``, drawn unless ``taken`` are given, and their log probability."""
        logits = F.log_softmax(self.answer(self.read(features)[0]), -1)
        actions = torch.multinomial(logits.exp(), 1)[:, 0] if taken is None else taken
        return actions, logits.gather(1, actions[:, None]).sum()


class Shrinkage(nn.Module):
    """An LSTM goes from layer to layer; each choice among ``options`` is read with the next."""

    rate = 0.03

    def __init__(self, options: int) -> None:
        super().__init__()
        self.options = options
        self.read = nn.LSTM(FEATURES + options, HIDDEN, DEPTH)
        self.answer = nn.Linear(HIDDEN, options)

    def forward(self, features: Tensor, taken: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions ``(layers,)``, drawn unless ``taken`` are given, and their log probability."""
        state, before = None, torch.zeros(self.options)
        total, actions = torch.zeros(()), []
        for i, layer in enumerate(features):
            out, state = self.read(torch.cat([layer, before])[None], state)
            logits = F.log_softmax(self.answer(out[0]), -1)
            action = torch.multinomial(logits.exp(), 1)[0] if taken is None else taken[i]
            before = F.one_hot(action, self.options).float()
            total = total + logits[action]
            actions.append(action)
        return torch.stack(actions), total


class Uniform(nn.Module):
    """No policy at all: every action alike, nothing learned (random search)."""

    rate = 0.0

    def __init__(self, options: int) -> None:
        super().__init__()
        self.options = options

    def forward(self, features: Tensor, taken: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions ``(layers,)`` drawn evenly."""
        n = len(features)
        drawn = torch.randint(self.options, (n,)) if taken is None else taken
        return drawn, torch.zeros((), requires_grad=True)
