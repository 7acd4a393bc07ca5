"""What a device's own model says in a profile: the right model, figures that agree."""

from __future__ import annotations

import torch
from torch import nn

from paredown import device, targets
from paredown.cost import systolic
from paredown.cost.machines import machine
from paredown.cost.profile import profile
from paredown.graph.capture import capture
from paredown.workload import Workload

NET = targets.resolve("zoo:mobilenetv2")
GRAPH = capture(NET)


def test_an_array_has_the_figures_of_its_layers() -> None:
    where = device.load("eyeriss")
    found = machine(GRAPH, where)
    costs = systolic.costs(GRAPH, where)
    assert found["array.latency"].known() == sum(c.seconds for c in costs)
    assert found["array.cycles"].known() == sum(c.cycles for c in costs)
    assert all(0 < found[f"array.{n}"].known() < 1 for n in ("utilization", "mean_utilization"))
    assert all(f.how == "predicted" for f in found.values())


def test_pipelines_and_fabrics_are_never_slower_than_their_special_cases() -> None:
    stream = machine(GRAPH, device.load("sn40l"))
    assert stream["stream.latency"].known() < stream["unfused.latency"].known()
    assert stream["stream.traffic"].known() < stream["unfused.traffic"].known()
    for name in ("pynq-z2", "alveo-u280"):
        fabric = machine(GRAPH, device.load(name))
        best = min(fabric["fabric.sequential"].known(), fabric["fabric.dataflow"].known())
        assert fabric["fabric.hybrid"].known() <= best


def test_a_profile_holds_them_and_others_do_not() -> None:
    doc = profile(NET, device.load("sn40l"), graph=GRAPH)
    assert doc.machine == machine(GRAPH, device.load("sn40l"))
    assert profile(NET, device.load("pi5"), graph=GRAPH).machine == {}
    plain = capture(Workload(nn.ReLU(), (torch.zeros(3),)))
    for name in ("sn40l", "eyeriss", "pynq-z2"):
        assert machine(plain, device.load(name)) == {}


def test_attention_is_named_as_left_out_of_an_array() -> None:
    found = machine(capture(targets.resolve("zoo:vit-s")), device.load("tpu-v1"))
    assert "attention" in (found["array.latency"].reason or "")
