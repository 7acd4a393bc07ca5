"""Predicted peaks against the real allocator, and the sweep itself by hand."""

import pytest
import torch
from capture_networks import Attention
from torch import nn
from torch.profiler import ProfilerActivity, profile

from paredown.graph.capture import capture
from paredown.graph.graph import Graph, Node, Storage, Tensor
from paredown.graph.liveness import liveness
from paredown.workload import Workload


def real_high_water(model, *inputs):
    """Largest sum of live allocations in one warm run, from the allocator's own events."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            model(*inputs)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
                out = model(*inputs)
    finally:
        torch.set_num_threads(threads)
    assert out is not None  # alive to the end
    events = [
        (e.start_ns(), e.nbytes())
        for e in p.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    live = peak = 0
    for _, nbytes in sorted(events, key=lambda e: e[0]):
        live += nbytes
        peak = max(peak, live)
    return peak


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.Conv2d(32, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


NETS = {
    "cnn": (cnn, (4, 3, 32, 32)),
    "small cnn, one image": (
        lambda: nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU()),
        (1, 16, 16, 16),
    ),
    "residual": (lambda: nn.Sequential(nn.Conv2d(3, 16, 1), Skip(), Skip()), (2, 3, 40, 40)),
    "odd channels": (lambda: nn.Sequential(nn.Conv2d(20, 24, 3), nn.GELU()), (4, 20, 17, 19)),
    "mlp": (lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)), (32, 64)),
    "attention": (lambda: nn.Sequential(Attention(64), Attention(64)), (2, 197, 64)),
    "encoder": (lambda: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), (2, 16, 64)),
    "wide encoder, norm first": (
        lambda: nn.TransformerEncoderLayer(64, 4, 512, batch_first=True, norm_first=True),
        (2, 16, 64),
    ),
    "lstm": (lambda: nn.LSTM(32, 64, batch_first=True), (4, 16, 32)),
}


@pytest.mark.parametrize("name", sorted(NETS))
def test_predicted_peak_is_the_allocators_within_three_percent(name):
    make, shape = NETS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    predicted = liveness(capture(Workload(model, (x,))), eager_threads=1).high_water
    assert predicted == pytest.approx(real_high_water(model, x), rel=0.03)


def test_the_sweep_by_hand():
    storages = {
        0: Storage(0, 100, "parameter", -1),
        1: Storage(1, 7, "input", -1),
        2: Storage(2, 10, "intermediate", 0, 1),  # made by 0, last needed by 1
        3: Storage(3, 20, "intermediate", 1, 2),
        4: Storage(4, 5, "intermediate", 2),  # the output
    }
    tensors = {i: Tensor(i, (s.nbytes,), "uint8", s.nbytes, i, s.kind) for i, s in storages.items()}
    nodes = [Node(i, "aten::clone", (i + 1,), (i + 2,)) for i in range(3)]
    live = liveness(Graph(nodes, tensors, storages, (1,), (4,)))
    assert live.timeline == ((0, 10), (1, 30), (2, 25))
    assert (live.weights, live.inputs, live.high_water, live.peak_index) == (100, 7, 30, 1)
    assert live.peak_bytes == 130
    assert [s.id for s in live.largest] == [3, 2]
    assert liveness(Graph(nodes, tensors, storages, (1,), (4,)), without={3}).high_water == 10


def test_an_empty_graph_holds_its_weights():
    storages = {0: Storage(0, 100, "buffer", -1)}
    live = liveness(Graph([], {}, storages, (), ()))
    assert (live.peak_bytes, live.timeline) == (100, ())


def test_training_holds_what_backward_needs():
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    w = Workload(net, (torch.randn(128, 64),))
    forward, step = liveness(capture(w)), liveness(capture(w, train=True))
    activation = 128 * 64 * 4
    assert forward.high_water == 2 * activation
    assert step.high_water >= 4 * activation
    assert step.weights == 3 * forward.weights + 4 * len(list(net.parameters()))
