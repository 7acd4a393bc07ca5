"""Small models for the tests of runs (a decoder, a filter, a denoiser), and a run recorded."""

import torch
from torch import nn

from paredown.graph import rules
from paredown.graph.record import Recorder


class Decoder(nn.Module):
    """A one-layer decoder with a growing cache: ``forward(tokens, state=None)``."""

    def __init__(self, vocabulary=32, width=16, heads=2, whole=True):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)
        self.heads, self.whole = heads, whole

    def forward(self, tokens, state=None):
        x = self.embed(tokens)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=tokens.shape[1] > 1)
        y = self.head(x + self.out(y.transpose(1, 2).flatten(2)))
        return (y if self.whole else y[:, -1]), (k, v)


class Filter(nn.Module):
    """A causal convolution over chunks ``(batch, channels, length)``; its state is the tail."""

    def __init__(self, channels=4, taps=5):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, taps)
        self.tail = taps - 1

    def forward(self, chunk, state=None):
        before = chunk.new_zeros((*chunk.shape[:2], self.tail)) if state is None else state
        x = torch.cat([before, chunk], -1)
        return self.conv(x), x[..., -self.tail :]


class Denoiser(nn.Module):
    """Predicts noise ``(batch, 8)`` from the sample and the time step."""

    def __init__(self):
        super().__init__()
        self.time = nn.Embedding(1000, 8)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))

    def forward(self, x, t):
        return self.net(x + self.time(t))


def ran(w):
    """The graph of a workload recorded while it really runs, priced: what a capture must equal."""
    recorder = Recorder(w.model)
    recorder.declare(w)
    with recorder, torch.no_grad():
        out = w.once()
    return rules.annotate(recorder.finish(out))
