from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from paredown.errors import MeasurementError
from paredown.graph.capture import capture
from paredown.measure import selftime
from paredown.workload import Workload


class Net(nn.Module):
    """A heavy product between two light ones, views in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 512)
        self.heavy = nn.Linear(512, 512)
        self.last = nn.Linear(512, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x)).view(-1, 512)
        return self.last(self.heavy(x)).transpose(0, 1)


def make() -> Workload:
    return Workload(Net().eval(), (torch.randn(64, 8),))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftime, "LEAST", 4)


def in_process(graph: object, train: bool, build: object = make) -> object:
    """The child's own part, here: without the four seconds that a child spends on each."""
    work = list(graph.work_nodes())  # type: ignore[attr-defined]
    views = selftime.views_of(graph)  # type: ignore[arg-type]
    return selftime._measure(build, [n.op for n in work], views, 1, train)  # type: ignore[arg-type]


@pytest.mark.parametrize("train", [False, True])
def test_every_operator_that_does_something_has_its_own_time(train: bool) -> None:
    graph = capture(make(), train=train)
    taken, notes = selftime.self_times(make, graph, threads=1, train=train)
    work = list(graph.work_nodes())
    assert taken.seconds.keys() == {n.index for n in work}
    assert all(s > 0 for s in taken.seconds.values())
    assert (taken.latency is None) == train
    assert bool(notes) == train
    forward = [n for n in work if n.phase == "forward" and n.op == "aten::addmm"]
    times = [taken.seconds[n.index] for n in forward]
    assert [n.module for n in forward] == ["first", "heavy", "last"]
    assert times[1] == max(times)


def test_the_callers_network_is_not_trained() -> None:
    workload = make()
    before = {k: v.clone() for k, v in workload.model.state_dict().items()}
    graph = capture(workload, train=True)
    selftime.SECONDS, kept = 0.01, selftime.SECONDS
    try:
        in_process(graph, True, lambda: workload)
    finally:
        selftime.SECONDS = kept
    assert all(torch.equal(v, before[k]) for k, v in workload.model.state_dict().items())


def test_another_path_on_real_values_is_refused() -> None:
    graph = capture(make())
    nodes = [n for n in graph.nodes if n.op != "aten::relu"]
    with pytest.raises(MeasurementError, match="runs other operators on real weights"):
        in_process(replace(graph, nodes=nodes), False, partial(make))
