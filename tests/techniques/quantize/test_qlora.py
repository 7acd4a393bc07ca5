"""Adapters trained through NormalFloat weights: the base stays, the network gets better."""

import pytest
import torch

from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.papers.cards import _text
from paredown.runtime.nf4 import NF4Linear
from paredown.techniques.quantize.nf4 import NF4
from paredown.techniques.quantize.qlora import QLoRA
from paredown.workload import TrainingData, Workload


def decoder():
    torch.manual_seed(0)
    model = _text.Decoder(48).eval()
    some = _text.windows("reference", "train")[:16]
    data = TrainingData(lambda: [((p[:, :-1],), p[:, 1:]) for p in some.split(8)], _text.nats)
    return Workload(model, (some[:2, :-1],), training=data, original=model)


def done(technique, workload):
    return technique.apply(workload, technique.sites(workload, capture(workload)))


def test_training_moves_the_adapters_alone_towards_the_original():
    workload = decoder()
    plain = done(NF4(), workload).workload
    first = done(QLoRA(rank=4, steps=0), workload)
    change = done(QLoRA(rank=4, steps=24, lr=3e-3, task=0.0), workload)
    want = workload.call()
    off = {
        name: float((w.call() - want).norm())
        for name, w in {"plain": plain, "start": first.workload, "end": change.workload}.items()
    }
    assert off["start"] == off["plain"], "adapters start at nothing"
    assert off["end"] < 0.9 * off["start"]
    before, after = first.workload.model.state_dict(), change.workload.model.state_dict()
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert {k.rpartition(".")[2] for k in after.keys() - same} == {"down", "up"}
    assert change.decisions.values["steps"] == 24
    assert "24 steps" in change.notes[0]
    forms = [m for m in change.workload.model.modules() if isinstance(m, NF4Linear)]
    assert len(forms) == 9
    for name, p in workload.model.named_parameters():
        assert p.requires_grad, name


def test_recorded_factors_replay_without_data():
    workload = decoder()
    change = done(QLoRA(rank=2, steps=4), workload)
    sites = QLoRA(rank=2).sites(workload, capture(workload))
    workload.training = None
    again = QLoRA(rank=2).rewrite(workload, sites, change.decisions)
    assert torch.equal(again.workload.call(), change.workload.call())
    assert len(change.decisions.tensors) == 18


def test_it_says_where_it_cannot():
    workload = decoder()
    wide = QLoRA(rank=40).sites(workload, capture(workload))
    assert "rank 40" in wide.refused["blocks.0.attn.proj:weight"]
    workload.training = None
    refused = QLoRA().sites(workload, capture(workload))
    assert not refused.ok
    assert "training data" in refused.refused["head:weight"]
    packed = done(NF4(), decoder()).workload
    assert not QLoRA().sites(packed, capture(packed)).ok
    for wrong in ({"rank": 0}, {"lr": 0.0}, {"task": 2.0}):
        with pytest.raises(InputError):
            QLoRA(**wrong)
