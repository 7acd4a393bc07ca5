"""Cross-architecture distillation: the views, the projector, the teacher's stage, what remains."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.technique import Sites
from paredown.techniques.distill.cross import CrossDistillation, Mimic
from paredown.techniques.distill.features import Layout, last_stage, student_maps
from paredown.techniques.distill.frequency import apart, dct, idct, without_mean
from paredown.techniques.distill.recover import SITE, Recover
from paredown.workload import TrainingData, Workload
from paredown.zoo.vit import ViT


def teacher():
    torch.manual_seed(1)
    net = ViT(24, 3, 3, 10, 1, image_size=16, patch=4, mlp_ratio=2).eval()
    nn.init.normal_(net.head.weight)
    return net


def cnn():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, 2, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    ).eval()


def workload(student=None):
    g = torch.Generator().manual_seed(3)
    batches = [torch.randn(24, 1, 16, 16, generator=g) for _ in range(3)]
    labels = torch.randint(10, (24,), generator=g)
    data = TrainingData(lambda: [((x,), labels) for x in batches], F.cross_entropy, teacher())
    return Workload(student or cnn(), (batches[0][:2],), training=data)


def test_the_transform_inverts_and_its_rest_has_no_mean():
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(idct(dct(x)), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(dct(x).square().sum(), x.square().sum(), atol=1e-3, rtol=1e-5)
    rest = without_mean(x)
    offset = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(without_mean(x + 10 * offset), rest, atol=1e-5, rtol=0)
    torch.testing.assert_close(rest, x - x.mean((2, 3), keepdim=True), atol=1e-5, rtol=0)
    assert float(apart(3 * x + 1, x)) < 1e-6
    assert float(apart(-x, x)) == pytest.approx(4, rel=1e-4)


def test_layouts_there_and_back():
    maps = torch.randn(2, 6, 3, 4)
    where = Layout.of(maps)
    assert where == Layout("maps", (3, 4), 6)
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(where.back(tokens, maps), maps)
    with_class = torch.randn(2, 17, 5)
    where = Layout.of(with_class)
    assert where == Layout("tokens", (4, 4), 5, extra=1)
    seen = where.maps(with_class).flatten(2).transpose(1, 2)
    assert torch.equal(where.back(seen, with_class), with_class)
    swin = torch.randn(2, 4, 4, 9)
    where = Layout.of(swin)
    assert where == Layout("grid", (4, 4), 9)
    assert torch.equal(where.back(where.maps(swin).flatten(2).transpose(1, 2), swin), swin)
    assert Layout.of(torch.randn(2, 9)) is None
    assert Layout.of(torch.randn(2, 9, 1, 1)) is None


def test_places_are_found():
    x = (torch.randn(2, 1, 16, 16),)
    assert last_stage(teacher(), x) == "blocks.2"
    assert student_maps(cnn(), x) == ("1", "4")
    early, last = student_maps(teacher(), x)
    assert early.startswith("blocks.1") or early.startswith("blocks.2")
    assert last == "norm"
    with pytest.raises(InputError, match="teacher_stage"):
        last_stage(cnn(), x)


def mimic(student, held, x, **settings):
    maps = student_maps(student, x)
    return Mimic(student, held, x, maps=maps, stage="blocks.2", weight=1.0, **settings)


def test_gradients_pass_the_teachers_stage_and_leave_it_alone():
    student, held = cnn().train(), teacher()
    x = (torch.randn(8, 1, 16, 16),)
    beside = mimic(student, held, x)
    out = student(*x)
    loss = beside.loss(student, x, None, out)
    first = student[0].weight
    (whole,) = torch.autograd.grad(loss, first, retain_graph=True)
    assert float(whole.abs().sum()) > 0
    loss.backward()
    assert beside.projectors[0][0].conv.weight.grad.abs().sum() > 0
    names = dict(beside.named_parameters())
    assert names
    assert all(n.startswith("projectors.") for n in names)
    one = mimic(cnn(), held, x, views=1, through=False)
    assert len(list(one.named_parameters())) < len(names)


def test_the_teachers_own_features_are_at_no_distance():
    """Were the projectors perfect, the loss would be zero: every term compares with the stage."""
    student, held = cnn().train(), teacher()
    x = (torch.randn(8, 1, 16, 16),)
    beside = mimic(student, held, x)
    kept = {}
    held.blocks[2].register_forward_pre_hook(lambda _, args: kept.setdefault("in", args[0]))
    held.blocks[2].register_forward_hook(lambda _, a, out: kept.setdefault("out", out))
    with torch.no_grad():
        held(*x)

    class Given(nn.Module):
        def __init__(self, tokens):
            super().__init__()
            self.tokens = tokens

        def forward(self, x, query=None):
            return self.tokens

    for place, key in enumerate(("in", "out")):
        for view in range(2):
            beside.projectors[place][view] = Given(kept[key][:, 1:])
    out = student(*x)
    assert float(beside.loss(student, x, None, out)) < 1e-8


def test_a_student_learns_and_only_its_weights_remain():
    w = workload()
    way = CrossDistillation(steps=20, lr=5e-3)
    sites = way.sites(w, capture(w))
    assert sites.ok == (SITE,)
    state = {k: t.clone() for k, t in w.training.teacher.state_dict().items()}
    change = way.apply(w, sites)
    assert change.decisions.values["best_score"] > change.decisions.values["first_score"]
    assert set(change.decisions.tensors) <= set(w.model.state_dict())
    a, b = capture(w), capture(change.workload)
    assert [n.op for n in a.nodes] == [n.op for n in b.nodes]
    assert (a.params, a.macs) == (b.params, b.macs)
    assert all(torch.equal(t, state[k]) for k, t in w.training.teacher.state_dict().items())
    assert not w.training.teacher.blocks[2]._forward_hooks
    assert not change.workload.model[4]._forward_hooks
    again = way.apply(w, sites)
    assert torch.equal(again.workload.call(), change.workload.call())
    plain = Recover(steps=20, lr=5e-3, temperature=1.0).apply(w, Sites((SITE,)))
    assert not torch.equal(plain.workload.call(), change.workload.call())


def test_a_student_in_bfloat16_is_compared_in_float():
    student, held = cnn().train().bfloat16(), teacher()
    x = (torch.randn(8, 1, 16, 16).bfloat16(),)
    maps = student_maps(student, x)

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = held

        def forward(self, y):
            return self.whole(y.float())

    beside = Mimic(student, Halves(), x, maps=maps, stage="whole.blocks.2", weight=1.0)
    loss = beside.loss(student, x, None, student(*x))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_recovery_takes_the_teacher_of_the_training_data():
    w = workload()
    change = Recover(steps=30, lr=5e-3, task=0.0).apply(w, Sites((SITE,)))
    x = next(iter(w.training.batches()))[0][0]
    with torch.no_grad():
        wanted = w.training.teacher(x)
        off = [
            F.mse_loss(m(x).softmax(-1), wanted.softmax(-1))
            for m in (change.workload.model, w.model)
        ]
    assert off[0] < 0.9 * off[1]


def test_refusals():
    for bad in ({"mimic": 0.0}, {"views": 3}, {"maps": "1"}, {"steps": -1}):
        with pytest.raises(InputError):
            CrossDistillation(**bad)
    w = workload()
    w.training = TrainingData(w.training.batches, w.training.loss)
    sites = CrossDistillation().sites(w, capture(w))  # its own teacher, which has no blocks
    assert "teacher_stage" in sites.refused[SITE]
    w = workload(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    assert "no map" in CrossDistillation().sites(w, capture(w)).refused[SITE]
    w = workload()
    for bad, why in (
        ({"teacher_stage": "head"}, "features"),
        ({"teacher_stage": "blocks.9"}, "no module"),
        ({"maps": "1,7"}, "no map"),
    ):
        assert why in CrossDistillation(**bad).sites(w, capture(w)).refused[SITE]
