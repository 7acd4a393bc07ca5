"""Every family of rules against counts by hand."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paredown.graph import rules
from paredown.graph.capture import _record, capture
from paredown.workload import Workload


class Fn(nn.Module):
    """A function as a module, with its weights as buffers (they are not inputs)."""

    def __init__(self, fn, **buffers):
        super().__init__()
        self.fn = fn
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *args):
        return self.fn(self, *args)


def graph(fn, *inputs, train=False, **buffers):
    module = fn if isinstance(fn, nn.Module) else Fn(fn, **buffers)
    return capture(Workload(module, inputs), train=train)


def node(g, part):
    (found,) = [n for n in g.nodes if part in n.op]
    return found


def r(*shape):
    return torch.randn(shape)


# -- the table of /work/shared/anchors/toolkits.md, section 0.2: FLOPs torch's own counter misses -


def sparse_weight():
    w = torch.zeros(32, 64)
    w[:, :8] = 1.0
    return w.to_sparse()


COUNTER_MISSES = {
    "attention": (
        lambda s, q: F.scaled_dot_product_attention(q, q, q),
        (r(1, 12, 64, 64),),
        {},
        12_582_912,
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
        (r(2, 16, 64),),
        {},
        2_228_224,
    ),
    "linear": (nn.Linear(256, 256), (r(8, 256),), {}, 1_048_576),
    "_int_mm": (
        lambda s, a, b: torch._int_mm(a, b),
        (torch.ones(32, 256, dtype=torch.int8), torch.ones(256, 64, dtype=torch.int8)),
        {},
        1_048_576,
    ),
    "lstm": (nn.LSTM(64, 64, batch_first=True), (r(2, 10, 64),), {}, 1_310_720),
    "sparse mm": (
        lambda s, x: torch.sparse.mm(s.w, x),
        (r(64, 16),),
        {"w": sparse_weight()},
        2 * 32 * 8 * 16,
    ),
}


@pytest.mark.parametrize("name", sorted(COUNTER_MISSES))
def test_what_the_flop_counter_of_torch_gets_wrong(name):
    fn, inputs, buffers, flops = COUNTER_MISSES[name]
    g = graph(fn, *inputs, **buffers)
    assert 2 * g.macs == flops
    assert not g.unpriced


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_int8_linear_is_not_free():
    q = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(256, 256)), {nn.Linear})
    assert 2 * graph(q, r(8, 256)).macs == 1_048_576


# -- convolutions ---------------------------------------------------------------------------------

CONVS = [
    (nn.Conv1d(4, 6, 5), (2, 4, 20), 2 * 6 * 16 * 4 * 5),
    (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 9, 7), 2 * 8 * 9 * 7 * 3 * 9),
    (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 9, 9), 8 * 7 * 7 * 9),
    (nn.Conv2d(8, 16, (3, 1), stride=(2, 1), groups=4), (1, 8, 9, 9), 16 * 4 * 9 * 2 * 3),
    (nn.Conv2d(4, 4, 3, dilation=2), (1, 4, 9, 9), 4 * 5 * 5 * 4 * 9),
    (nn.Conv3d(2, 3, 3), (1, 2, 5, 5, 5), 3 * 27 * 2 * 27),
    (nn.ConvTranspose2d(6, 4, 3, stride=2), (2, 6, 5, 5), 2 * 6 * 25 * 4 * 9),
    (nn.ConvTranspose2d(6, 4, 3, groups=2), (1, 6, 5, 5), 6 * 25 * 2 * 9),
]


@pytest.mark.parametrize(("conv", "shape", "macs"), CONVS)
def test_convolutions(conv, shape, macs):
    assert graph(conv, r(*shape)).macs == macs


@pytest.mark.parametrize(("conv", "shape", "macs"), CONVS)
def test_convolution_backward_costs_each_wanted_gradient_once(conv, shape, macs):
    g = graph(conv, r(*shape), train=True)
    back = node(g, "convolution_backward")
    assert back.args[10][:2] == [False, True]  # the input is not trained
    assert back.macs == macs


def test_both_gradients_of_an_inner_convolution():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3))
    g = graph(net, r(1, 3, 8, 8), train=True)
    inner = next(n for n in g.nodes if n.op == "aten::convolution_backward")
    assert inner.macs == 2 * 5 * 36 * 4 * 9


# -- products -------------------------------------------------------------------------------------

PRODUCTS = [
    (lambda s, a, b: a @ b, [(3, 5), (5, 7)], 3 * 5 * 7),
    (lambda s, a, b: a @ b, [(2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
    (lambda s, a, b: a @ b, [(2, 4, 3, 5), (5, 7)], 2 * 4 * 3 * 5 * 7),
    (lambda s, a, b: a @ b, [(3, 5), (5,)], 15),
    (lambda s, a, b: torch.dot(a, b), [(9,), (9,)], 9),
    (lambda s, a, b, c: torch.addmm(a, b, c), [(7,), (3, 5), (5, 7)], 3 * 5 * 7),
    (lambda s, a, b, c: torch.baddbmm(a, b, c), [(2, 3, 7), (2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
    (
        lambda s, a, b: torch.einsum("bhid,bhjd->bhij", a, b),
        [(2, 3, 4, 8), (2, 3, 5, 8)],
        2 * 3 * 4 * 5 * 8,
    ),
    (lambda s, a, b: torch.einsum("ij,jk->ik", a, b), [(3, 5), (5, 7)], 3 * 5 * 7),
    (lambda s, a, b: torch.outer(a, b), [(3,), (5,)], None),
    (lambda s, a, b: F.bilinear(a, b, s.w), [(4, 3), (4, 5)], None),
]


@pytest.mark.parametrize(("fn", "shapes", "macs"), PRODUCTS)
def test_products(fn, shapes, macs):
    g = graph(fn, *(r(*s) for s in shapes), w=r(6, 3, 5))
    assert not g.unpriced
    if macs is not None:
        assert g.macs == macs


def test_grouped_products_need_no_routing():
    offsets = torch.tensor([3, 4, 10], dtype=torch.int32)
    g = graph(lambda s, x: F.grouped_mm(x, s.w, offs=s.o), r(10, 16), w=r(3, 16, 32), o=offsets)
    assert g.macs == 10 * 16 * 32
    assert not g.notes
    out = g.tensors[g.outputs[0]]
    assert (out.shape, out.dtype) == ((10, 32), "float32")


def test_weight_only_products():
    x = r(4, 64).bfloat16()
    w8 = torch.ones(32, 64, dtype=torch.int8)
    g = graph(
        lambda s, x: torch._weight_int8pack_mm(x, s.w, s.s), x, w=w8, s=torch.ones(32).bfloat16()
    )
    assert g.macs == 4 * 64 * 32


def test_a_sparse_factor_on_either_side():
    w = sparse_weight()  # 32 x 64, 256 stored
    assert graph(lambda s, x: s.w @ x, r(64, 5), w=w).macs == 256 * 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls compressed layouts beta
        csr = w.to_sparse_csr()
    assert graph(lambda s, x: s.w @ x, r(64, 5), w=csr).macs == 256 * 5
    read = node(graph(lambda s, x: s.w @ x, r(64, 5), w=w), "mm").bytes_read
    assert read == 256 * (4 + 16) + 64 * 5 * 4


# -- attention ------------------------------------------------------------------------------------


def test_attention_with_other_lengths_widths_and_masks():
    q, k, v = r(2, 4, 8, 16), r(2, 4, 10, 16), r(2, 4, 10, 16)
    expected = 2 * 4 * 8 * 10 * (16 + 16)
    assert (
        graph(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v), q, k, v).macs == expected
    )
    mask = torch.zeros(8, 10)
    masked = graph(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, s.m), q, k, v, m=mask)
    assert masked.macs == expected
    assert masked.nodes[-1].work["transcendental"] == 2 * 4 * 8 * 10


def test_attention_backward_is_five_products():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Parameter(r(1, 2, 8, 16))

        def forward(self, kv):
            return F.scaled_dot_product_attention(self.q, kv, kv)

    g = graph(Attend(), r(1, 2, 8, 16), train=True)
    back = node(g, "flash_attention_for_cpu_backward")
    assert back.macs == 5 * 2 * 8 * 8 * 16


def test_the_fused_multi_head_attention():
    x = r(2, 16, 64)
    g = graph(nn.MultiheadAttention(64, 4, batch_first=True), x, x, x)
    assert node(g, "_native_multi_head_attention").macs == 32 * 4 * 64 * 64 + 2 * 32 * 16 * 64


@pytest.mark.slow  # importing it takes seconds
def test_flexible_attention_is_one_node():
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it is not compiled
        g = graph(lambda s, q: flex_attention(q, q, q), r(1, 2, 128, 16))
    n = node(g, "flex_attention")
    assert (n.op, n.macs) == ("higher_order::flex_attention", 2 * 2 * 128 * 128 * 16)
    assert not g.unpriced


def test_fused_encoder_layer_by_parts():
    fused = graph(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), r(2, 16, 64))
    parts = graph(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), r(2, 16, 64), train=True)
    assert len([n for n in fused.nodes if not n.view]) == 1
    # The layer run as single operators (training, forward only) counts the same products.
    assert fused.macs == sum(n.macs for n in parts.nodes if n.phase == "forward")


# -- recurrent ------------------------------------------------------------------------------------

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@pytest.mark.parametrize("cls", GATES, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, False), (2, True)])
def test_recurrent_layers(cls, layers, both):
    g = graph(cls(16, 32, layers, bidirectional=both), r(5, 3, 16))
    ways = 2 if both else 1
    inner = (16 + 32) + (layers - 1) * (32 * ways + 32)
    assert g.macs == 5 * 3 * ways * GATES[cls] * 32 * inner
    assert not g.unpriced


@pytest.mark.parametrize("cls", GATES, ids=lambda c: c.__name__)
def test_whole_recurrent_operators_agree_with_their_steps(cls):
    with torch.inference_mode():  # keeps composite operators whole
        g = rules.annotate(_record(Workload(cls(16, 32, 2), (r(5, 3, 16),)), False))
    assert len(list(g.work_nodes())) <= 4
    assert g.macs == 5 * 3 * GATES[cls] * 32 * (16 + 32 + 32 + 32)


# -- elementwise, norms, softmax, pooling ---------------------------------------------------------


def test_norms_and_activations_are_not_multiply_accumulates():
    net = nn.Sequential(
        nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.GELU(), nn.LayerNorm(6), nn.Softmax(-1)
    )
    g = graph(net, r(2, 4, 6, 6))
    assert g.macs == 0
    n = 2 * 4 * 6 * 6
    work = {w.op: w.work for w in g.work_nodes()}
    assert work["aten::relu"] == {"elementwise": n}
    assert work["aten::native_batch_norm"] == {"elementwise": 2 * n}
    assert work["aten::gelu"] == {"elementwise": 3 * n, "transcendental": n}
    assert work["aten::_softmax"]["transcendental"] == n


def test_bytes_are_inputs_and_outputs_once():
    g = graph(lambda s, x, y: x + y, r(10, 10), r(10, 10))
    assert (g.nodes[0].bytes_read, g.nodes[0].bytes_written) == (800, 400)
    twice = graph(lambda s, x: x * x, r(10, 10))
    assert twice.nodes[0].bytes_read == 400
    spread = graph(lambda s, x: x.expand(10, 10) + 1, r(10, 1))
    assert node(spread, "add").bytes_read == 40


def test_fills_read_nothing_and_copies_do_not_read_their_target():
    g = graph(lambda s, x: torch.zeros(8, 8).copy_(x), r(8, 8))
    assert node(g, "zeros").bytes_read == 0
    assert node(g, "copy_").bytes_read == 256
    assert node(g, "copy_").bytes_written == 256


def test_gathers_read_what_they_fetch():
    table, ids = r(1000, 16), torch.arange(4)
    g = graph(lambda s, i: F.embedding(i, s.w), ids, w=table)
    n = node(g, "embedding")
    assert n.bytes_read == 4 * 16 * 4 + 4 * 8
    assert n.bytes_written == 4 * 16 * 4


def test_pooling_looks_at_its_window():
    g = graph(nn.Sequential(nn.MaxPool2d(3, 2)), r(1, 4, 9, 9))
    assert node(g, "max_pool2d").work == {"compare": 4 * 16 * 9}
    g = graph(nn.Sequential(nn.AvgPool2d(2)), r(1, 4, 8, 8))
    assert node(g, "avg_pool2d").work == {"elementwise": 4 * 16 * 4}


def test_sorting():
    g = graph(lambda s, x: torch.sort(x, dim=-1)[0], r(3, 64))
    assert node(g, "sort").work == {"compare": 3 * 64 * 6}
    g = graph(lambda s, x: torch.topk(x, 4)[0], r(3, 64))
    assert node(g, "topk").work == {"compare": 3 * 64 * 3}


def test_resampling():
    g = graph(lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear"), r(1, 2, 4, 4))
    assert node(g, "upsample").work == {"elementwise": 7 * 2 * 64}
    g = graph(
        lambda s, x: F.grid_sample(x, s.g, align_corners=False),
        r(1, 2, 4, 4),
        g=torch.zeros(1, 5, 5, 2),
    )
    assert node(g, "grid_sampler").work == {"elementwise": 2 * 25 * 8 + 12 * 50}


def test_transforms():
    g = graph(lambda s, x: torch.fft.fft(torch.complex(x, x)), r(3, 64))
    assert node(g, "_fft_c2c").work == {"elementwise": 5 * 3 * 64 * 6}
    g = graph(lambda s, x: torch.fft.rfft(x), r(3, 64))
    assert node(g, "_fft_r2c").work == {"elementwise": round(2.5 * 3 * 64 * 6)}
    g = graph(lambda s, x: torch.fft.irfft(torch.fft.rfft2(x)), r(8, 8))
    assert not g.unpriced


def test_scans_cost_their_length():
    g = graph(lambda s, x: torch.cumsum(x, 1), r(3, 64))
    assert g.nodes[0].work == {"elementwise": 3 * 64}


# -- quantized and our own ------------------------------------------------------------------------


def test_our_operators_have_rules_fakes_and_work():
    from paredown.runtime import ops

    def fn(s, x):
        q = ops.quantize(x, s.s, s.z, -127, 127, -1)
        y = ops.dequantize(q, s.s, s.z, -1, torch.float32)
        d, sc, z = ops.dynamic_quantize(y)
        return ops.dequantize(d, sc, z, -1, torch.float32)

    g = graph(fn, r(4, 8), s=torch.ones(1), z=torch.zeros(1, dtype=torch.int32))
    assert not g.notes
    assert [n.work["elementwise"] for n in g.work_nodes()] == [4 * 32, 2 * 32, 6 * 32, 2 * 32]
    packed = torch.zeros(16, 4, dtype=torch.uint8)
    g = graph(
        lambda s, x: x @ ops.dequantize_groups(s.q, s.s, s.z, 4, 8, torch.float32).t(),
        r(2, 8),
        q=packed,
        s=torch.ones(16, 2),
        z=torch.zeros(16, 2, dtype=torch.int32),
    )
    assert g.macs == 2 * 8 * 16
    assert node(g, "dequantize_groups").work == {"elementwise": 4 * 16 * 8}
    assert node(g, "dequantize_groups").bytes_read == 64 + 128 + 128


def test_every_registered_operator_of_ours_has_a_rule():
    from paredown.runtime import ops

    assert ops.quantize is not None
    names = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("paredown::")}
    assert "paredown::quantize" in names
    assert not [n for n in names if rules.kind(n) == "unknown"]


# -- the tables themselves ------------------------------------------------------------------------


def test_an_unknown_operator_is_unpriced_and_never_zero():
    @torch.library.custom_op("paredown_tests::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    mystery.register_fake(lambda x: torch.empty_like(x))
    g = graph(lambda s, x: mystery(x) + 1, r(4, 4))
    n = g.nodes[0]
    assert (n.priced, n.macs, n.view) == (False, None, False)
    assert n.bytes_read == 64  # bytes are known for every operator
    assert g.unpriced == ["paredown_tests::mystery"]
    assert "no rule" in n.why


def test_no_operator_is_both_free_and_priced():
    assert not set(rules.RULES) & rules.VIEWS
    seen = [op for table in rules.FAMILIES.values() for op in table]
    assert len(seen) == len(set(seen))


def test_every_aten_name_in_the_tables_exists():
    known = {s.name for s in torch._C._jit_get_all_schemas()}
    named = [op for op in (*rules.RULES, *rules.VIEWS) if op.startswith("aten::")]
    assert not [op for op in named if op not in known and f"{op}_" not in known]


def test_in_place_and_foreach_forms_follow_from_the_plain_one():
    assert rules.canonical("aten::add_") == "aten::add"
    assert rules.canonical("aten::_foreach_addcdiv_") == "aten::addcdiv"
    assert rules.canonical("aten::squeeze_") == "aten::squeeze"
    assert rules.kind("aten::view") == "view"
    assert rules.kind("aten::nonsense") == "unknown"


# -- published counts -----------------------------------------------------------------------------


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2."""

    def __init__(self, cin, cout, stride, expand):
        super().__init__()
        hidden = cin * expand
        layers = (
            []
            if expand == 1
            else [nn.Conv2d(cin, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        )
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        ]
        self.body = nn.Sequential(*layers)
        self.skip = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet_v2():
    plan = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    layers = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    cin = 32
    for expand, cout, count, stride in plan:
        for i in range(count):
            layers.append(Inverted(cin, cout, stride if i == 0 else 1, expand))
            cin = cout
    layers += [
        nn.Conv2d(cin, 1280, 1, bias=False),
        nn.BatchNorm2d(1280),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    ]
    return nn.Sequential(*layers)


def test_mobilenet_v2_counts_what_is_published():
    with torch.device("meta"):
        net = mobilenet_v2()
    g = graph(net, r(1, 3, 224, 224))
    assert g.params == 3_504_872
    assert g.macs == 300_774_272
    assert math.isclose(g.macs / 1e6, 300.8, abs_tol=0.05)
    assert not g.unpriced
