"""Consensus sub-networks: gates by formula, the cut network is the gated one, gates agree."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.graph.dependency import Dependencies
from paredown.technique import Sites
from paredown.techniques.recover import Plan, train
from paredown.techniques.sparsify.consensus import Consensus
from paredown.techniques.sparsify.gates import Gates
from paredown.workload import TrainingData, Workload


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.na = nn.Conv2d(c, 2 * c, 3, padding=1, bias=False), nn.BatchNorm2d(2 * c)
        self.d = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.b, self.nb = nn.Conv2d(2 * c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        return x + self.nb(self.b(self.d(self.na(self.a(x)).relu())))


class Net(nn.Module):
    """Residual blocks with a depthwise layer inside, then a perceptron."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block(8) for _ in range(2))
        self.up, self.head = nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.up(x.mean((2, 3))).relu())


@pytest.fixture
def workload():
    torch.manual_seed(0)
    data = [((torch.randn(16, 3, 6, 6),), torch.randint(0, 4, (16,))) for _ in range(3)]
    return Workload(
        Net().eval(), (data[0][0][0][:2],), training=TrainingData(lambda: data, F.cross_entropy)
    )


def gated(workload, model, **settings):
    graph = capture(workload)
    deps = Dependencies.of(graph)
    names = Consensus().sites(workload, graph).ok
    groups = [g for g in deps.groups if g.site in names]
    assert len(groups) == 3
    return Gates(model, groups, [1.0] * len(groups), share=0.5, **settings).put_on(model)


def applied(workload, **settings):
    technique = Consensus(**{"steps": 6, "lr": 1e-2, **settings})
    return technique, technique.apply(workload, technique.sites(workload, capture(workload)))


def test_open_gates_are_the_network_itself(workload):
    model = copy.deepcopy(workload.model)
    gates = gated(workload, model)
    for look in gates.looks:
        nn.init.zeros_(look.weight)
        nn.init.ones_(look.bias)
    x = torch.randn(8, 3, 6, 6)
    plain = copy.deepcopy(workload.model).train()
    torch.testing.assert_close(model.train()(x), plain(x))
    assert all((gates.mean(i) == 1).all() for i in range(3))
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    gates.take_off()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_every_input_has_gates_of_its_own_and_they_learn(workload):
    model = copy.deepcopy(workload.model).train()
    gates = gated(workload, model)
    look = gates.looks[0]
    nn.init.normal_(look.weight, std=3.0)
    x = torch.randn(8, 3, 6, 6)
    seen = []
    model.blocks[0].d.register_forward_pre_hook(lambda m, a: seen.append(model.stem(x)))
    read = []
    model.blocks[0].b.register_forward_hook(lambda m, a, out: read.append(a[0]))
    out = model(x)
    want = torch.sigmoid(8.0 * look(seen[0].mean((2, 3)))) > 0.5
    assert 0 < want.float().mean() < 1
    assert torch.equal((read[0] != 0).flatten(2).any(2), want)
    (out.square().mean() + gates.loss(model, (x,), None, out)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates.parameters())


def test_the_loss_is_doubt_and_the_gap_to_the_budget(workload):
    model = copy.deepcopy(workload.model).train()
    gates = gated(workload, model, polarise=2.0, budget=3.0, steps=10)
    x = torch.randn(16, 3, 6, 6)
    for i, look in enumerate(gates.looks):
        nn.init.normal_(look.weight, std=2.0, generator=torch.Generator().manual_seed(i))
    model(x)
    means = [gates._now[i].mean(0) for i in range(3)]
    gap = (torch.stack([m.mean() for m in means]).mean() - 0.5) ** 2
    doubt = torch.stack([(m * (1 - m)).mean() for m in means]).mean()
    assert doubt.item() > 0.01
    torch.testing.assert_close(gates.loss(model, (x,), None, None), 3 * gap)  # not ramped yet
    gates.step.fill_(5)
    torch.testing.assert_close(gates.loss(model, (x,), None, None), 3 * gap + 2 * doubt)


@pytest.mark.parametrize("scope", ["group", "global"])
def test_the_cut_network_is_the_gated_one(workload, scope, monkeypatch):
    kept = {}
    off = Gates.take_off

    def look(self):
        kept["model"] = self.model_for_test
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(5))
        kept["x"], kept["out"] = x, self.model_for_test.eval()(x).detach()
        off(self)

    on = Gates.put_on

    def put_on(self, model):
        object.__setattr__(self, "model_for_test", model)
        return on(self, model)

    monkeypatch.setattr(Gates, "put_on", put_on)
    monkeypatch.setattr(Gates, "take_off", look)
    technique, change = applied(workload, scope=scope, share=0.5, steps=30)
    torch.testing.assert_close(
        change.workload.model.eval()(kept["x"]), kept["out"], rtol=1e-5, atol=1e-5
    )
    before, after = capture(workload), capture(change.workload)
    assert after.macs < before.macs
    assert after.params < before.params
    if scope == "group":
        left = {s: len(k) for s, k in change.decisions.values["kept"].items()}
        assert sorted(left.values()) == [8, 8, 12]
    redone = technique.rewrite(workload, Sites(()), change.decisions)
    assert torch.equal(redone.workload.call(), change.workload.call())


def test_polarised_gates_agree_and_others_do_not(workload):
    def doubt(polarise):
        torch.manual_seed(3)
        model = copy.deepcopy(workload.model)
        gates = gated(workload, model, polarise=polarise, budget=4.0, steps=80)
        for look in gates.looks:
            nn.init.normal_(look.weight, std=1.0)
        train(model, None, workload.training, Plan(80, 1e-2, task=1.0, checks=1), companion=gates)
        stays = sum(float(gates.mean(i).mean()) for i in range(3)) / 3
        assert abs(stays - 0.5) < 0.2
        return sum(float((g * (1 - g)).mean()) for g in map(gates.mean, range(3)))

    assert doubt(8.0) < 0.3 * doubt(0.0)


def test_refusals(workload):
    for wrong in ({"share": 1.0}, {"scope": "x"}, {"steps": 0}, {"polarise": -1.0}):
        with pytest.raises(InputError):
            Consensus(**wrong)
    workload.training = None
    sites = Consensus().sites(workload, capture(workload))
    assert "training data" in sites.refused[":units"]
