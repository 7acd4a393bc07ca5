"""Prices against arithmetic by hand, on a toy device with round numbers."""

import pytest
import torch
from torch import nn

from paredown.cost import price
from paredown.cost.profile import Measured, profile
from paredown.cost.tables import OVERHEAD_S, overhead
from paredown.device.device import Device, Level
from paredown.graph.capture import capture
from paredown.result import ProfileDoc
from paredown.runtime import ops
from paredown.workload import Workload

DEVICE = Device(
    name="toy",
    title="a machine with round numbers",
    threads=1,
    how="nominal",
    peak_macs_s={"float32": 1e9, "bfloat16": 4e9, "int8": 8e9},
    elementwise_s=1e9,
    levels=(
        Level(name="cache", capacity_bytes=10_000, read_bytes_s=1e9),
        Level(name="memory", capacity_bytes=1 << 40, read_bytes_s=1e8),
    ),
    overhead_s={"eager": 1e-6, "openvino": 0.0, "inductor": 0.0, "onnxruntime": 0.0},
    efficiency={
        f"{b}/{k}": 0.5
        for b in ("eager", "openvino", "inductor", "onnxruntime")
        for k in ("conv", "linear", "matmul", "depthwise", "attention")
    },
)


def graph(module, *inputs, train=False):
    return capture(Workload(module.eval(), inputs), train=train)


def only(priced, part):
    (found,) = [c for c in priced.costs if part in c.run.node.op]
    return found


def test_one_linear_by_hand():
    g = graph(nn.Linear(100, 50, bias=False), torch.randn(8, 100))
    c = only(price(g, DEVICE), "mm")
    assert c.compute_s == pytest.approx(8 * 100 * 50 / (1e9 * 0.5))
    # 20 kB of weights do not fit the cache; 4.8 kB of activations do.
    assert c.memory_s == pytest.approx(20_000 / 1e8 + (3200 + 1600) / 1e9)
    assert c.seconds == pytest.approx(c.memory_s + 1e-6)
    assert c.bound == "memory"
    assert c.ideal_s == pytest.approx(40_000 / 1e9)


def test_bounds_are_named():
    big = graph(nn.Linear(1000, 1000), torch.randn(1000, 1000))
    assert only(price(big, DEVICE), "addmm").bound == "compute"
    tiny = graph(nn.Linear(2, 2), torch.randn(1, 2))
    assert only(price(tiny, DEVICE), "addmm").bound == "overhead"


def test_narrow_types_use_their_own_peak():
    x = torch.randn(4, 64)
    f32 = only(price(graph(nn.Linear(64, 64, bias=False), x), DEVICE), "mm")
    bf16 = only(price(graph(nn.Linear(64, 64, bias=False).bfloat16(), x.bfloat16()), DEVICE), "mm")
    assert bf16.run.dtype == "bfloat16"
    assert bf16.compute_s == pytest.approx(f32.compute_s / 4)
    assert bf16.run.weight_bytes == f32.run.weight_bytes / 2


def test_compiled_backends_fuse_pointwise_operators_and_folded_norms():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    g = graph(net, torch.randn(1, 3, 10, 10))
    eager, fused = price(g, DEVICE), price(g, DEVICE, backend="openvino")
    assert only(eager, "relu").run.called
    assert not only(fused, "relu").run.called
    assert only(fused, "relu").run.read == only(fused, "relu").run.written == 0
    assert only(fused, "batch_norm").run.written == 0
    # The convolution writes the fused result, which is as large as its own.
    assert only(fused, "convolution").run.written == only(eager, "convolution").run.written
    assert fused.seconds < eager.seconds


def test_a_fused_sum_still_reads_its_other_operand():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.a(x)
            return self.b(y) + y

    g = graph(Residual(), torch.randn(1, 4, 8, 8))
    assert only(price(g, DEVICE, backend="inductor"), "add").run.read == 4 * 64 * 4


class Int8Linear(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(cout, cin, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.ones(cout))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("in_scale", torch.ones(1))

    def forward(self, x):
        q = ops.quantize(x, self.in_scale, self.zero, -127, 127, -1)
        x = ops.dequantize(q, self.in_scale, self.zero, -1, torch.float32)
        w = ops.dequantize(self.weight, self.scale, self.zero, 0, torch.float32)
        return nn.functional.linear(x, w)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("eager", "float32"), ("inductor", "float32"), ("openvino", "int8"), ("onnxruntime", "int8")],
)
def test_int8_is_int8_where_it_is_executed_so(backend, dtype):
    g = graph(nn.Sequential(nn.Linear(256, 256), Int8Linear(256, 256)), torch.randn(16, 256))
    priced = price(g, DEVICE, backend=backend)
    product = next(c for c in priced.costs if c.run.node.op == "aten::mm")
    assert product.run.dtype == dtype
    if dtype == "int8":
        assert product.run.weight_bytes == 256 * 256 + 4 * 256 + 4
        assert product.run.read == 16 * 256
        assert product.compute_s == pytest.approx(16 * 256 * 256 / (8e9 * 0.5))
        dequantized = [c for c in priced.costs if "dequantize" in c.run.node.op]
        assert all(c.seconds == 0 for c in dequantized)
        # The linear before writes int8, since the quantization is fused into it.
        assert only(priced, "addmm").run.written == 16 * 256


def test_simulated_int8_costs_more_in_eager_and_less_in_openvino():
    x = torch.randn(256, 512)
    plain, quantized = graph(nn.Linear(512, 512, bias=False), x), graph(Int8Linear(512, 512), x)
    assert price(quantized, DEVICE).seconds > price(plain, DEVICE).seconds
    for backend in ("openvino", "onnxruntime"):
        assert (
            price(quantized, DEVICE, backend=backend).seconds
            < price(plain, DEVICE, backend=backend).seconds
        )
    assert (
        price(quantized, DEVICE, backend="openvino").peak_bytes.known()
        < price(quantized, DEVICE).peak_bytes.known()
    )


def test_int8_that_an_executable_did_not_run_is_priced_in_floats():
    net = nn.Sequential(Int8Linear(256, 256), Int8Linear(256, 256))
    g = graph(net, torch.randn(16, 256))

    def seconds(*lost):
        return price(g, DEVICE, backend="openvino", unrealised=frozenset(lost)).seconds

    assert seconds() < seconds("0") < seconds("0", "1")
    assert seconds("0") == pytest.approx(seconds("1"))
    assert seconds("not.there") == seconds()
    lost = price(g, DEVICE, backend="openvino", unrealised=frozenset({"0"}))
    products = {c.run.node.module: c.run.dtype for c in lost.costs if c.run.node.op == "aten::mm"}
    assert products == {"0": "float32", "1": "int8"}


def test_a_call_that_the_device_does_not_state_is_scaled_like_one_that_it_does():
    slow = DEVICE.model_copy(update={"overhead_s": {"eager": 4 * OVERHEAD_S["eager"]}})
    assert overhead(slow, "eager") == 4 * OVERHEAD_S["eager"]
    assert overhead(slow, "openvino") == pytest.approx(4 * OVERHEAD_S["openvino"])
    silent = DEVICE.model_copy(update={"overhead_s": {}})
    assert overhead(silent, "openvino") == OVERHEAD_S["openvino"]


def test_packed_int4_counts_its_weights_and_reads_half_bytes():
    class Int4(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Parameter(torch.zeros(64, 32, dtype=torch.uint8), requires_grad=False)
            self.register_buffer("s", torch.ones(64, 2))
            self.register_buffer("z", torch.zeros(64, 2, dtype=torch.uint8))

        def forward(self, x):
            w = ops.dequantize_groups(self.q, self.s, self.z, 4, 64, torch.float32)
            return x @ w.t()

    g = graph(Int4(), torch.randn(1, 64))
    assert g.params == price(g, DEVICE).params.value == 64 * 64
    product = only(price(g, DEVICE, backend="openvino"), "mm")
    assert product.run.weight_bytes == 64 * 32 + 64 * 2 * 4 + 64 * 2
    assert product.run.dtype == "float32"


def test_depthwise_is_its_own_kind():
    conv = nn.Conv2d(8, 8, 3, groups=8)
    assert only(price(graph(conv, torch.randn(1, 8, 9, 9)), DEVICE), "conv").run.kind == "depthwise"
    full = nn.Conv2d(8, 8, 3)
    assert only(price(graph(full, torch.randn(1, 8, 9, 9)), DEVICE), "conv").run.kind == "conv"


def test_waterline_by_hand():
    net = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.ReLU())
    line = price(graph(net, torch.randn(1, 1000)), DEVICE).waterline()
    assert line["intensity"] == pytest.approx(1e9 / 1e8)
    ideal = 1e6 / 1e9
    # Per operator: the larger of its arithmetic and its bytes at memory bandwidth.
    floor = (4_000_000 + 4000 + 4000) / 1e8 + 8000 / 1e8
    assert line["ideal_s"] == pytest.approx(ideal)
    assert line["e_max"] == pytest.approx(ideal / floor)
    assert line["e_predicted"] <= 1
    assert line["gap_s"] == pytest.approx(line["latency_s"] - ideal)


def test_e_max_bounds_the_predicted_efficiency_of_what_exceeds_the_cache():
    net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 1))
    line = price(graph(net, torch.randn(4, 16, 32, 32)), DEVICE).waterline()
    assert line["e_max"] >= line["e_predicted"] > 0


def test_totals_say_how_they_are_known():
    g = graph(nn.Linear(10, 10), torch.randn(1, 10))
    p = price(g, DEVICE)
    assert (p.macs.how, p.macs.value) == ("counted", 100)
    assert (p.params.how, p.params.value) == ("counted", 110)
    assert {p.latency.how, p.traffic.how, p.peak_bytes.how} == {"predicted"}
    assert p.energy.how == "unavailable"
    assert "energy" in p.energy.reason
    assert p.traffic.value == 110 * 4 + 40 + 40


def test_energy_by_hand_when_the_device_states_it():
    powered = DEVICE.model_copy(
        update={
            "energy_j_per_mac": {"float32": 1e-12},
            "levels": (
                DEVICE.levels[0],
                DEVICE.levels[1].model_copy(update={"energy_j_per_byte": 1e-10}),
            ),
        }
    )
    p = price(graph(nn.Linear(10, 10), torch.randn(1, 10)), powered)
    assert p.energy.value == pytest.approx(100 * 1e-12 + p.traffic.value * 1e-10)
    assert p.energy.how == "predicted"


@torch.library.custom_op("paredown_cost_tests::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    """An operator without a rule."""
    return x.clone()


@odd.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return odd(self.fc(x))


def test_an_unpriced_operator_is_named_everywhere_and_never_zero():
    doc = profile(Workload(Odd(), (torch.randn(4, 8),)), DEVICE)
    assert doc.unpriced == ["paredown_cost_tests::odd"]
    row = next(o for o in doc.operators if "odd" in o.op)
    assert row.macs is None
    assert row.predicted_s.how == "unavailable"
    assert row.bound == "unknown"
    assert doc.priced_share.operators == 0.5
    moved = {"addmm": 128 + 256 + 32 + 128, "odd": 256}
    assert doc.priced_share.bytes == pytest.approx(moved["addmm"] / sum(moved.values()))
    assert "odd" in doc.totals.latency_s.reason
    assert "odd" in doc.totals.macs.reason


def test_profile_document():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4))
    w = Workload(net, (torch.randn(1, 3, 10, 10),), name="small")
    doc = profile(w, DEVICE)
    again = ProfileDoc.model_validate_json(doc.to_json())
    assert again == doc
    assert "NaN" not in doc.to_json()
    assert [(i.name, i.shape, i.dtype) for i in doc.inputs] == [
        ("input0", [1, 3, 10, 10], "float32")
    ]
    assert doc.totals.macs.value == sum(o.macs for o in doc.operators)
    by_path = {m.path: m for m in doc.modules}
    assert by_path[""].macs == by_path["0"].macs + by_path["3"].macs
    assert by_path[""].params == sum(p.numel() for p in net.parameters())
    assert by_path["0"].params == 8 * 27 + 8
    assert by_path[""].share == pytest.approx(1.0)
    assert max(m.live_bytes for m in doc.memory) == doc.totals.peak_bytes.value
    assert {"intensity", "e_max", "e_predicted", "gap_s"} <= set(doc.waterline)


def test_measured_times_reach_the_document():
    w = Workload(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), (torch.randn(1, 8),))
    g = capture(w)
    taken = Measured({n.index: 1e-3 * (n.index + 1) for n in g.nodes})
    doc = profile(w, DEVICE, graph=g, measured=taken)
    assert doc.priced_share.time == 1.0
    for o in doc.operators:
        assert o.measured_s.value == 1e-3 * (o.index + 1)
        assert o.gap_s == pytest.approx(o.measured_s.value - o.ideal_s)


def test_time_share_counts_what_is_not_priced():
    w = Workload(Odd(), (torch.randn(4, 8),))
    g = capture(w)
    slow = {n.index: 3.0 if "odd" in n.op else 1.0 for n in g.work_nodes()}
    doc = profile(w, DEVICE, graph=g, measured=Measured(slow))
    assert doc.priced_share.time == pytest.approx(0.25)


def test_training_is_priced_with_its_backward():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    w = Workload(net, (torch.randn(4, 64),))
    forward, step = profile(w, DEVICE), profile(w, DEVICE, train=True)
    assert {o.phase for o in step.operators} == {"forward", "backward", "optimizer"}
    assert step.totals.latency_s.value > 2 * forward.totals.latency_s.value
    # Weights, gradients and two moments live at once.
    weights = 4 * sum(p.numel() for p in net.parameters())
    assert step.totals.peak_bytes.value > 4 * weights
    assert step.notes


def test_an_uncalibrated_narrow_type_follows_the_one_that_was():
    from paredown.cost.tables import efficiency

    shares = {"openvino/conv/float32": 0.7, "openvino/conv/bfloat16": 0.3}
    device = DEVICE.model_copy(update={"efficiency": shares})
    assert efficiency(device, "openvino", "conv", "float32") == 0.7
    assert efficiency(device, "openvino", "conv", "qint8") == 0.3
    assert efficiency(device, "eager", "conv", "int8") < 0.35


def test_a_run_pays_its_start_once():
    g = graph(nn.Linear(4, 4), torch.randn(1, 4))
    started = DEVICE.model_copy(update={"overhead_s": {**DEVICE.overhead_s, "openvino/run": 1e-3}})
    without = price(g, DEVICE, backend="openvino").seconds
    assert price(g, started, backend="openvino").seconds == pytest.approx(without + 1e-3)
