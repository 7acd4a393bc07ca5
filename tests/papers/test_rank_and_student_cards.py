"""Exact parts of the cards of ScaleKD and N2N learning: tasks, students, settings."""

import torch

from paredown.papers.cards import compression, teachers
from paredown.search.n2n import RemovalStage, ShrinkageStage, parameters
from paredown.workload import Workload


def test_students_and_teachers_take_the_same_scans():
    assert max(teachers.exact().values()) < 1e-5
    scans = teachers.Few(teachers._plan(1))
    assert len(scans.ink) == teachers.KEPT
    (x,), labels = next(iter(scans()))
    for kind in teachers.STUDENTS:
        model = teachers.student(kind).eval()
        assert model(x).shape == (len(labels), 10)
        assert sum(p.numel() for p in model.parameters()) < 20_000


def test_both_stages_of_n2n_act_on_the_cards_teacher():
    torch.manual_seed(0)
    net = compression.network("teacher").eval()
    work = Workload(net, (torch.randn(2, 1, 16, 16),))
    stage = RemovalStage(work)
    assert stage.paths == ["3", "6", "12", "15", "21"]
    small = stage.student([0] * 5)
    assert parameters(small) < 0.5 * parameters(work)
    cut = ShrinkageStage(small)
    assert len(cut.features) == 3
    assert cut.student([6] * 3).call().shape == (2, 10)
