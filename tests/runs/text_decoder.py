"""A target for `down`: the small decoder on bytes of real text, judged by bits per byte."""

import math
from pathlib import Path

import torch
from loop_nets import Decoder
from torch import nn

from paredown import Workload
from paredown.runs import Generate

TEXT = Path(__file__).parents[2] / "docs" / "quickstart.md"


class BitsPerByte:
    """Minus the bits per byte of each window: higher is better."""

    def __init__(self, windows):
        self.windows = windows

    def __call__(self, model):
        logits, _ = model(self.windows[:, :-1])
        loss = nn.functional.cross_entropy(
            logits.transpose(1, 2), self.windows[:, 1:], reduction="none"
        )
        return -loss.mean(1) / math.log(2)


def target():
    torch.manual_seed(0)
    model = Decoder(vocabulary=256, width=64).eval()
    text = torch.tensor(list(TEXT.read_bytes()[: 24 * 65])).unflatten(0, (24, 65))
    return Workload(
        model,
        (text[:1, :32],),
        calibration=[t[None, :32] for t in text[:4]],
        evaluate=BitsPerByte(text),
        loop=Generate(6),
        name="decoder",
    )
