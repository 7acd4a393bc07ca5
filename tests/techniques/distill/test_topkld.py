"""TopKLD: zero only for equal distributions, one divergence at either end, training towards it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.techniques.distill.topkld import topkld, towards
from paredown.techniques.quantize.quantized_distillation import QuantizedDistillation
from paredown.workload import TrainingData, Workload


def logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [0, 1, 3, 8, 9])
def test_it_is_zero_only_where_distributions_are_equal(k):
    teacher = logits(2, 5, 9)
    shifted = teacher + logits(2, 5, 1, seed=1)
    assert float(topkld(shifted, teacher, k)) == pytest.approx(0, abs=1e-6)
    for seed in range(20):
        assert float(topkld(logits(2, 5, 9, seed=seed + 2), teacher, k)) > 0.01
    # Mass moved between the two sets alone, either way: where sums of parts would fall below zero.
    for shift in (-0.5, 0.5):
        moved = teacher.clone()
        moved.scatter_add_(-1, teacher.topk(2, -1).indices, torch.full((2, 5, 2), shift))
        assert float(topkld(moved, teacher, k)) > 0


def test_either_end_is_one_divergence():
    student, teacher = logits(4, 9), logits(4, 9, seed=1)
    q, p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    forward = F.kl_div(q, p, reduction="batchmean", log_target=True)
    reverse = F.kl_div(p, q, reduction="batchmean", log_target=True)
    torch.testing.assert_close(topkld(student, teacher, 0), forward)
    torch.testing.assert_close(topkld(student, teacher, 9), reverse)


def test_it_is_what_the_formula_says_between_the_ends():
    student, teacher = logits(9), logits(9, seed=1)
    q, p = student.double().softmax(-1), teacher.double().softmax(-1)
    top = set(p.topk(3).indices.tolist())
    want = 0.0
    for i in range(9):
        a, b = (q[i], p[i]) if i in top else (p[i], q[i])
        want += float(a * (a / b).log() - a + b)
    assert float(topkld(student, teacher, 3)) == pytest.approx(want, rel=1e-5)


def test_gradients_reach_the_student_alone():
    student, teacher = logits(4, 9).requires_grad_(), logits(4, 9, seed=1).requires_grad_()
    topkld(student, teacher, 2).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    # A step against the gradient comes nearer.
    near = student.detach() - 0.1 * student.grad
    assert topkld(near, teacher, 2) < topkld(student, teacher, 2)


def test_what_it_cannot_compare_is_refused():
    with pytest.raises(InputError, match="TopKLD"):
        topkld(logits(4, 9), logits(4, 9), 10)
    with pytest.raises(InputError, match="TopKLD"):
        topkld(logits(4, 9), logits(4, 8), 2)
    with pytest.raises(InputError, match="no loss"):
        towards(TrainingData(lambda: []), nn.Linear(2, 2), 1, task=0.5)


def test_batches_carry_the_teachers_outputs():
    teacher, x, y = nn.Linear(6, 9), torch.randn(4, 6), torch.arange(4)
    data = TrainingData(lambda: [((x,), y)], F.cross_entropy)
    out = logits(4, 9)
    for task in (0.0, 0.3):
        made = towards(data, teacher, 2, task)
        ((inputs, target),) = made.batches()
        assert torch.equal(inputs[0], x)
        want = (1 - task) * topkld(out, teacher(x), 2) + task * F.cross_entropy(out, y)
        torch.testing.assert_close(made.loss(out, target), want)


def test_codes_are_trained_towards_the_original():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 9)).eval()
    for p in model.parameters():
        p.data *= 3
    x = torch.randn(128, 32)
    data = TrainingData(lambda: [((part,), None) for part in x.split(32)])
    work = Workload(model, (x,), training=data, original=model)
    off = {}
    for steps in (0, 40):
        way = QuantizedDistillation(
            3, bucket=64, steps=steps, lr=3e-3, task=0.0, distance="topkld", top=2
        )
        change = way.apply(work, way.sites(work, capture(work)))
        off[steps] = float(topkld(change.workload.call(), work.call(), 2))
    assert 0 < off[40] < 0.7 * off[0]
