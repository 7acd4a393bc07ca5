"""N2N learning: students of any actions run, the reward rises with what is saved, the cache."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError, NotApplicable
from paredown.search.n2n import (
    Compression,
    Found,
    Removal,
    RemovalStage,
    Shrinkage,
    ShrinkageStage,
    latency,
    parameters,
    reward,
)
from paredown.search.n2n.policies import FEATURES, Uniform
from paredown.search.n2n.stages import FLOOR, SHARES
from paredown.techniques.recover import Plan
from paredown.workload import TrainingData, Workload


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.norm(self.a(x)).relu())


class Net(nn.Module):
    """A stem, a plain convolution that may go, two residual blocks, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, 2, 1)
        self.extra = nn.Conv2d(12, 12, 3, padding=1)
        self.blocks = nn.Sequential(Residual(12), Residual(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.extra(self.stem(x).relu()).relu()
        return self.head(self.blocks(x).mean((2, 3)))


@pytest.fixture
def workload():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    labels = torch.arange(32) % 4
    x = torch.randn(32, 1, 8, 8, generator=g) + labels[:, None, None, None]
    data = TrainingData(lambda: [((x,), labels)], F.cross_entropy)
    return Workload(
        Net().eval(),
        (x[:2],),
        training=data,
        evaluate=lambda m: (m(x).argmax(1) == labels).float(),
    )


def test_units_are_those_whose_output_is_shaped_as_their_input(workload):
    assert RemovalStage(workload).paths == ["extra", "blocks.0", "blocks.1"]
    with pytest.raises(NotApplicable):
        RemovalStage(Workload(nn.Sequential(nn.Linear(3, 2)), (torch.ones(1, 3),)))


def test_students_of_all_removals_and_of_random_shrinkages_run(workload):
    stage = RemovalStage(workload)
    want = workload.call()
    for actions in ((0, 0, 0), (1, 0, 1), (0, 1, 1)):
        student = stage.student(actions)
        assert student.call().shape == want.shape
        kept = sum(a == 0 for a in actions)
        assert kept == sum(isinstance(m, nn.Identity) for m in student.model.modules())
    assert torch.equal(stage.student((1, 1, 1)).call(), want)
    assert torch.equal(workload.call(), want)
    shrink = ShrinkageStage(stage.student((1, 0, 1)))
    g = torch.Generator().manual_seed(0)
    n = len(shrink.features)
    for _ in range(2):
        actions = torch.randint(len(SHARES), (n,), generator=g).tolist()
        student = shrink.student(actions)
        assert student.call().shape == want.shape
        assert torch.isfinite(student.call()).all()
        widths = [m.out_channels for m in student.model.modules() if isinstance(m, nn.Conv2d)]
        assert min(widths) >= FLOOR
    least = shrink.student([SHARES.index(0.25)] * n)
    assert parameters(least) < 0.4 * parameters(shrink.workload)
    assert parameters(shrink.student([0] * n)) == parameters(shrink.workload)


def test_the_reward_rises_with_what_is_saved_and_with_the_score():
    saved = [reward(0.9, 0.9, cost, 100.0) for cost in (100, 80, 50, 20, 5)]
    assert saved == sorted(saved)
    assert saved[0] == 0
    assert saved[2] == pytest.approx(0.5 * 1.5)
    assert reward(0.8, 0.9, 50, 100) < saved[2]


@pytest.mark.parametrize("policy", [Removal(), Shrinkage(7), Uniform(3)])
def test_a_policy_repeats_the_probability_of_its_own_actions(policy):
    torch.manual_seed(0)
    seen = torch.randn(5, FEATURES)
    actions, log = policy(seen)
    again, same = policy(seen, actions)
    assert torch.equal(actions, again)
    torch.testing.assert_close(log, same)
    assert log <= 0


def test_probabilities_of_all_action_sequences_sum_to_one():
    torch.manual_seed(0)
    seen = torch.randn(3, FEATURES)
    for policy, options in ((Removal(), 2), (Shrinkage(3), 3)):
        every = itertools.product(range(options), repeat=3)
        total = sum(policy(seen, torch.tensor(a))[1].exp() for a in every)
        assert float(total.detach()) == pytest.approx(1, abs=1e-5)


class Bits(RemovalStage):
    """Four units, of which the second and the fourth pay."""

    def __init__(self, workload):
        self.workload, self.features = workload, torch.eye(4, FEATURES)


def test_a_policy_learns_which_units_pay(workload, monkeypatch):
    def paid(self, stage, actions, start):
        return Found(actions, 1 - sum(abs(a - i % 2) for i, a in enumerate(actions)) / 4, 1, 1)

    monkeypatch.setattr(Compression, "_reward", paid)
    policy = Removal()
    policy.rate = 0.01
    done = Compression(workload, Plan(0)).search(Bits(workload), policy, 300)
    early, late = (sum(f.reward for f in part) / 50 for part in (done.seen[:50], done.seen[-50:]))
    assert late > early + 0.15
    assert done.best.actions == (0, 1, 0, 1)


def test_equal_actions_are_trained_once_and_rewarded_alike(workload):
    env = Compression(workload, Plan(2))
    done = env.search(RemovalStage(workload), Uniform(2), 8, seed=3)
    assert len(done.seen) == 8
    by = {}
    for found in done.seen:
        assert by.setdefault(found.actions, found.reward) == found.reward
    invalid = sum(r == -1 for r in by.values())
    assert done.trained == len(by) - invalid
    assert invalid == ((1, 1, 1) in by)
    fresh = env.search(RemovalStage(workload), Uniform(2), 8, seed=3)
    assert [f.reward for f in fresh.seen] == [f.reward for f in done.seen]
    assert done.calls_to(done.best.reward) is not None
    assert done.calls_to(2.0) is None


def test_the_cost_may_be_measured_time(workload):
    cost = latency(workload, seconds=0.02)
    small = RemovalStage(workload).student((0, 0, 0))
    assert 0 < cost(small) < cost(workload)


def test_refusals(workload):
    workload.training = None
    with pytest.raises(InputError):
        Compression(workload, Plan(2))
