"""The training loop: it learns, it resumes bit-equal, it survives divergence and says so."""

import itertools
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from paredown.errors import ArtefactError, InputError
from paredown.techniques.distance import distillation
from paredown.techniques.recover import (
    BLOW_UP,
    Plan,
    recalibrate,
    schedule,
    session,
    snapshot,
    train,
)
from paredown.workload import TrainingData


def net(width=16, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 3))


def data(loss=None, n=5):
    gen = torch.Generator().manual_seed(3)
    batches = [torch.randn(32, 6, generator=gen) for _ in range(n)]
    return TrainingData(lambda: [((x,), torch.zeros(32, dtype=torch.long)) for x in batches], loss)


def test_a_student_moves_to_its_teacher():
    student, teacher = net(8, 1), net(16, 2)
    out = train(student, teacher, data(), Plan(80, lr=1e-2, task=0.0))
    assert out.best_score > 0.2 * out.first_score  # scores are minus the divergence
    assert out.best_score > out.first_score
    assert out.steps == 80
    assert out.ended == "all steps done"


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    runs = []
    for _ in range(2):
        student, teacher = net(8, 1), net(16, 2)
        torch.manual_seed(99)
        train(student, teacher, data(), Plan(12, task=0.0))
        runs.append(snapshot(student))
        assert torch.rand(()).item() == pytest.approx(_first_of(99), abs=0)
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def _first_of(seed):
    torch.manual_seed(seed)
    return torch.rand(()).item()


def test_a_run_cut_off_resumes_bit_equal(tmp_path):
    whole = net(8, 1)
    train(whole, net(16, 2), data(), Plan(24, task=0.0, checks=6, patience=99))

    class Cut(Exception):
        pass

    def stop(p):
        if p.step == 14:
            raise Cut

    cut = net(8, 1)
    with pytest.raises(Cut), session(progress=stop, folder=tmp_path):
        train(cut, net(16, 2), data(), Plan(24, task=0.0, checks=6, patience=99))
    fresh, seen = net(8, 1), []
    with session(progress=lambda p: seen.append(p.step), folder=tmp_path):
        train(fresh, net(16, 2), data(), Plan(24, task=0.0, checks=6, patience=99))
    assert seen[0] == 13
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True)
    )


def test_a_checkpoint_of_another_plan_is_not_resumed(tmp_path):
    with session(folder=tmp_path):
        train(net(8, 1), net(16, 2), data(), Plan(4, task=0.0))
    seen = []
    with session(progress=lambda p: seen.append(p.step), folder=tmp_path):
        train(net(8, 1), net(16, 2), data(), Plan(5, task=0.0))
    assert seen[0] == 1


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "recovery.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ArtefactError, match="damaged"), session(folder=tmp_path):
        train(net(8, 1), net(16, 2), data(), Plan(4, task=0.0))


def test_divergence_goes_back_to_the_best_state():
    student = net(8, 1)
    before = snapshot(student)
    calls = [0]

    def loss(out, _target):
        calls[0] += 1
        return out.sum() * 0 + (float("nan") if calls[0] > 4 else 1.0)

    worse = itertools.count(0.5, -0.01)
    out = train(student, None, data(loss), Plan(20, task=1.0), evaluate=lambda m: next(worse))
    assert "diverged at step 5" in out.ended
    assert all(torch.equal(v, before[k]) for k, v in snapshot(student).items())
    calls[0] = 0

    def jump(out, _target):
        calls[0] += 1
        return out.sum() * 0 + (2 * BLOW_UP if calls[0] > 2 else 1.0)

    assert "diverged" in train(student, None, data(jump), Plan(20), evaluate=lambda m: 0.5).ended


def test_no_better_score_ends_it_and_the_best_remains():
    student = net(8, 1)
    scores = iter([0.5, 0.9, 0.4, 0.3, 0.2, 0.1])
    kept = {}

    def evaluate(model):
        value = next(scores)
        kept[value] = snapshot(model)
        return value

    plan = Plan(20, checks=10, patience=3, task=0.0)
    out = train(student, net(16, 2), data(), plan, evaluate=evaluate)
    assert (out.best_step, out.best_score, out.steps) == (2, 0.9, 8)
    assert "no better score" in out.ended
    assert all(torch.equal(v, kept[0.9][k]) for k, v in snapshot(student).items())


def test_the_deadline_grants_fewer_steps():
    with session(deadline=time.monotonic() - 1):
        out = train(net(8, 1), net(16, 2), data(), Plan(20, task=0.0))
    assert (out.steps, out.ended) == (0, "out of time")


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(InputError, match="original model or a `loss`"):
        train(net(), None, data(), Plan(1))
    with pytest.raises(InputError, match="no batch"):
        train(net(), net(), TrainingData(lambda: []), Plan(1))


def test_features_pull_blocks_together():
    def blocks(seed):
        torch.manual_seed(seed)
        one = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]
        return nn.Sequential(*one, nn.Sequential(nn.Linear(6, 3)))

    student, teacher = blocks(1), blocks(2)

    def gap():
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float((student[1](student[0](x)) - teacher[1](teacher[0](x))).square().mean())

    before = gap()
    train(student, teacher, data(), Plan(60, lr=1e-2, task=0.0, features=1.0))
    assert gap() < 0.5 * before
    with pytest.raises(InputError, match="no blocks"):
        train(net(8), net(16), data(), Plan(1, task=0.0, features=1.0))


def test_distillation_by_hand():
    a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    p, q = torch.softmax(b / 2, -1), torch.softmax(a / 2, -1)
    kl = 4 * (p * (p / q).log()).sum()
    torch.testing.assert_close(distillation(a, b, torch.tensor([1]), 2.0), kl)
    mse = (a - b).square().mean() / b.var()
    torch.testing.assert_close(distillation(a, b, torch.zeros(1), 2.0), mse)


def test_fresh_statistics_are_the_datas_mean_and_variance():
    x = torch.randn(64, 4) * 3 + 2
    norm = nn.BatchNorm1d(4, momentum=0.3)
    model = nn.Sequential(norm).eval()
    norm.running_mean.fill_(9.0)
    assert recalibrate(model, [((x,), {})]) == 1
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, x.var(0))
    assert norm.momentum == 0.3
    assert not norm.training
    assert recalibrate(nn.Linear(2, 2), [((x,), {})]) == 0


def test_the_rate_warms_up_and_falls():
    rates = [schedule(s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02
    assert all(a >= b for a, b in pairwise(rates[5:]))
