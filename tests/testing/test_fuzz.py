"""Generated networks: deterministic, JSON, valid, and equal to eager everywhere we look."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from paredown.errors import InputError
from paredown.graph import rules
from paredown.graph.rules.call import Work
from paredown.testing.fuzz import Campaign, Program, grow, minimal, network
from paredown.testing.fuzz.campaign import Settings
from paredown.testing.fuzz.minimal import without
from paredown.testing.fuzz.oracles import Witness, check
from paredown.workload import Workload

NETWORKS = 16


def test_a_short_run_finds_nothing_open():
    torch.set_num_threads(1)
    campaign = Campaign(Settings(backends=("native",), backends_every=6, rewrites_every=12))
    campaign.run(NETWORKS)
    counts = campaign.counts
    assert counts["valid"] >= 0.8 * NETWORKS, campaign.invalid
    assert counts["met backends"] or campaign.unsteady
    assert counts["met rewrites"]
    assert campaign.open() == {}


def test_the_same_seed_grows_the_same_network():
    first, second = grow(11), grow(11)
    assert first == second
    assert first != grow(12)
    again = Program.loads(first.dumps())
    assert again == first
    assert json.loads(first.dumps())["steps"]


def test_networks_hold_layers_with_weights():
    kinds = {type(m) for s in range(12) for m in network(grow(s), s).model.modules()}
    assert kinds & {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}


def test_a_network_is_cut_down_to_the_call_that_matters():
    program = grow(4, size=10)
    assert len(program.steps) > 3
    wanted = program.steps[len(program.steps) // 2].op
    small = minimal(program, lambda p: any(s.op == wanted for s in p.steps))
    assert [s.op for s in small.steps] == [wanted]
    assert minimal(program, lambda p: False) == program


def test_what_is_cut_away_becomes_an_input():
    program = grow(4, size=10)
    last = program.steps[-1]
    alone = without(program, [last])
    assert list(alone.inputs) == list(dict.fromkeys(last.reads()))
    network(alone).call()


def test_a_stopped_run_goes_on_where_it_stood(tmp_path):
    path = tmp_path / "fuzz.json"
    whole = Campaign(Settings(size=4))
    whole.run(6)
    half = Campaign(Settings(size=4))
    half.run(3, path=path)
    again = Campaign.load(path, Settings(size=4))
    assert again.done == 3
    again.run(6)
    assert again.counts == whole.counts
    assert again.functions == whole.functions
    with pytest.raises(InputError, match="was made with"):
        Campaign.load(path, Settings(size=5))


def test_an_interrupt_loses_only_the_network_it_fell_into(tmp_path):
    path = tmp_path / "fuzz.json"
    campaign = Campaign(Settings(size=3))

    def stop(done: int, found: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        campaign.run(9, path=path, say=stop)
    assert Campaign.load(path, Settings(size=3)).done == 2


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.linear(x).relu().clone(),)


def _kinds(workload: Workload) -> set[str]:
    return {d.kind for d in check(workload)[1]}


def test_each_oracle_sees_a_planted_fault(monkeypatch):
    workload = Workload(_Two().eval(), (torch.randn(3, 6),))
    assert _kinds(workload) == set()
    with monkeypatch.context() as m:
        m.setitem(rules.RULES, "aten::addmm", lambda c: Work(macs=7))
        assert "macs | aten::addmm" in _kinds(workload)
    with monkeypatch.context() as m:
        m.delitem(rules.RULES, "aten::relu")
        assert "unpriced | aten::relu" in _kinds(workload)
    with monkeypatch.context() as m:
        m.setattr(rules, "VIEWS", rules.VIEWS | {"aten::clone"})
        assert "views | aten::clone" in _kinds(workload)
    with monkeypatch.context() as m:
        m.setitem(rules.RULES, "aten::relu", lambda c: Work(elementwise=-1))
        assert "negative work | aten::relu" in _kinds(workload)
    with monkeypatch.context() as m:
        m.setattr(Witness, "_hold", lambda self, t: None)
        assert any(k.startswith("memory") for k in _kinds(workload))
