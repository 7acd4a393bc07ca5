"""Recover: a damaged network gets its score back, replays without training, keeps ties."""

import pytest
import torch
from torch import nn

from paredown.editing import replay
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.technique import Sites
from paredown.techniques.distill.recover import SITE, Recover
from paredown.workload import TrainingData, Workload


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.b = nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.norm(self.a(x)).tanh())


def workload(broken=True):
    torch.manual_seed(0)
    original = Tied().eval()
    w = Workload(original, (torch.randn(8, 6),)).own()
    w.original = original
    if broken:
        with torch.no_grad():
            w.model.a.weight.add_(0.3 * torch.randn(6, 6))
            w.model.norm.running_mean.fill_(1.0)
    gen = torch.Generator().manual_seed(1)
    batches = [torch.randn(64, 6, generator=gen) for _ in range(4)]
    w.training = TrainingData(lambda: [((x,), None) for x in batches])
    x = torch.randn(128, 6, generator=gen)

    def evaluate(model):
        with torch.no_grad():
            return -float((model(x) - original(x)).square().mean())

    w.evaluate = evaluate
    return w


def test_it_recovers_and_says_from_what_to_what():
    w = workload()
    before = w.evaluate(w.model)
    frozen = {k: v.clone() for k, v in w.model.state_dict().items()}
    change = Recover(steps=60, lr=1e-2).apply(w, Sites((SITE,)))
    after = w.evaluate(change.workload.model)
    assert after > 0.3 * before
    assert change.decisions.values["best_score"] == pytest.approx(after, rel=1e-4)
    assert change.decisions.values["steps"] == 60
    assert "score" in change.notes[0]
    assert all(torch.equal(v, frozen[k]) for k, v in w.model.state_dict().items())
    assert change.workload.model.b.weight is change.workload.model.a.weight


def test_replay_needs_no_training():
    w = workload()
    technique = Recover(steps=10)
    change = technique.apply(w, Sites((SITE,)))
    w.training = None
    again = technique.rewrite(w, Sites((SITE,)), change.decisions)
    assert torch.equal(again.workload.call(), change.workload.call())
    fresh = replay(Tied().eval(), change.edits)
    fresh.load_state_dict(change.workload.model.state_dict())
    assert torch.equal(fresh(*w.inputs), change.workload.call())


def test_only_statistics():
    w = workload()
    change = Recover(steps=0, norm_batches=4).apply(w, Sites((SITE,)))
    assert {k.rpartition(".")[2] for k in change.decisions.tensors} <= {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert w.evaluate(change.workload.model) > w.evaluate(w.model)


def test_refusals():
    w = workload()
    w.training = None
    sites = Recover().sites(w, capture(w))
    assert "needs training data" in sites.refused[SITE]
    w = workload()
    w.model.requires_grad_(False)
    assert "requires_grad" in Recover().sites(w, capture(w)).refused[SITE]
    for bad in ({"steps": -1}, {"lr": 0.0}, {"task": 2.0}, {"temperature": 0.0}):
        with pytest.raises(InputError):
            Recover(**bad)
