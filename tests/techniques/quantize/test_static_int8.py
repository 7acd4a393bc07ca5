"""Static int8: ranges, exact zeros, half-step weights, refusals, the per-tensor failure."""

import pytest
import torch
from quant_nets import Mobile, error, first, gpt2, mobile, settle
from torch import nn
from torch.nn import functional as F

from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.technique import Sites
from paredown.techniques.quantize.common import affine_range, symmetric
from paredown.techniques.quantize.fold_norm import FoldNorm
from paredown.techniques.quantize.observe import Histogram, input_histograms
from paredown.techniques.quantize.sensitivity import sensitivity
from paredown.techniques.quantize.static_int8 import StaticInt8
from paredown.workload import Workload


def quantized(workload, technique=None, patterns=("*",), **only):
    technique = technique or StaticInt8()
    sites = technique.sites(workload, capture(workload)).only(patterns, **only)
    return technique.apply(workload, sites)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (17, 3, 3, 3), (63, 1, 5)])
def test_weight_error_is_half_a_step(per_channel, bits, shape):
    torch.manual_seed(0)
    w = torch.randn(shape) * torch.logspace(-6, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    w.reshape(-1)[0] = 0.0
    q, scale = symmetric(w, bits, per_channel)
    s = scale.reshape(-1, *[1] * (len(shape) - 1))
    assert ((q * s - w).abs() <= s / 2 * (1 + 1e-5)).all()
    assert q.reshape(-1)[0] == 0
    assert q.abs().max() <= 2 ** (bits - 1) - 1


def test_zero_channel_stays_zero():
    q, scale = symmetric(torch.zeros(3, 5), 8, True)
    assert (q == 0).all()
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 6.0), (-1.0, 3.0), (2.0, 5.0), (-4.0, -1.0), (0.0, 0.0), (-1e-30, 1e-30)],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_range_holds_zero_and_both_ends(low, high, symmetric):
    scale, zero = affine_range(low, high, symmetric=symmetric)
    assert 0 <= zero <= 255
    assert (0 - zero) * scale <= min(low, 0.0) + scale / 2
    assert (255 - zero) * scale >= max(high, 0.0) - scale / 2


def test_histogram_grows_and_matches_quantiles():
    torch.manual_seed(0)
    parts = [torch.randn(1000) * 0.1, torch.randn(5000), torch.randn(4000) * 7, torch.zeros(17)]
    h = Histogram()
    for p in parts:
        h.add(p)
    x = torch.cat(parts)
    assert float(h.counts.sum()) == x.numel()
    assert h.range(100.0) == (float(x.min()), float(x.max()))
    bin_width = 2 * h.reach / len(h.counts)
    for percentile in (99.9, 99.0, 90.0):
        low, high = h.range(percentile)
        q = torch.quantile(x, torch.tensor([1 - percentile / 100, percentile / 100]))
        assert abs(low - float(q[0])) <= 1.5 * bin_width + 0.02
        assert abs(high - float(q[1])) <= 1.5 * bin_width + 0.02


def test_large_tensors_are_sampled_but_their_extremes_are_exact():
    torch.manual_seed(0)
    x = torch.randn(8, 64, 64, 64)
    x[3, 5, 7, 11] = 40.0
    h = Histogram()
    h.add(x)
    assert float(h.counts.sum()) < x.numel() / 10
    assert h.range(100.0) == (float(x.min()), 40.0)
    high = float(torch.quantile(x.reshape(-1)[::7], 0.999))
    assert abs(h.range(99.9)[1] - high) < 0.15


def test_histogram_of_zeros_and_of_nothing_finite():
    h = Histogram()
    h.add(torch.zeros(4))
    h.add(torch.tensor([2.0]))
    assert h.range(100.0) == (0.0, 2.0)
    with pytest.raises(InputError, match="NaN or infinite"):
        h.add(torch.tensor([float("nan")]))


def test_calibration_sees_every_item_once_and_leaves_the_model():
    workload = mobile()
    seen = input_histograms(workload, ["stem.0"])["stem.0"]
    data = torch.cat(workload.calibration)
    assert float(seen.counts.sum()) == data.numel()
    assert (seen.low, seen.high) == (float(data.min()), float(data.max()))
    assert not workload.model.stem[0]._forward_pre_hooks


def test_empty_calibration_is_refused():
    workload = mobile()
    workload.calibration = []
    with pytest.raises(InputError, match="calibration"):
        quantized(workload)


def test_nan_calibration_names_the_module():
    workload = mobile()
    workload.calibration = [torch.full((1, 3, 32, 32), float("nan"))]
    with pytest.raises(InputError, match=r"stem\.0: a calibration input makes it NaN"):
        quantized(workload)


@pytest.mark.parametrize(
    ("knobs", "message"), [({"percentile": 0.5}, "percentile"), ({"weight_bits": 3}, "weight_bits")]
)
def test_knobs_are_checked(knobs, message):
    with pytest.raises(InputError, match=message):
        StaticInt8(**knobs)


class Odd(nn.Module):
    """One of each thing that is refused."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(8, 8)
        self.outside = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.tied, self.tied2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied2.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 8, 1)
        self.mirror = nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect")
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        x = F.linear(self.used(x), self.outside.weight)
        x = self.normed(self.tied2(self.tied(x)))
        x = self.attn(x, x, x)[0]
        return self.rnn(self.mirror(self.up(x.mT)).mT)[0]


REASONS = {
    "outside": "read from outside, by the model's own forward",
    "unused": "never ran",
    "tied": "shared with tied2.weight",
    "tied2": "shared with tied.weight",
    "normed": "computed",
    "attn.out_proj": "read from outside, by attn",
    "up": "transposed",
    "mirror": "padding_mode",
    "rnn": "recurrent",
}


def test_refusals_name_their_reason():
    torch.manual_seed(0)
    workload = Workload(Odd().eval(), (torch.randn(2, 5, 8),))
    sites = StaticInt8().sites(workload, capture(workload))
    assert sites.ok == ("used:weight",)
    for path, reason in REASONS.items():
        assert reason in sites.refused[f"{path}:weight"]


def test_opt_out_and_overrides():
    workload = mobile()
    change = quantized(
        workload, patterns=["blocks"], overrides={"blocks.0.expand": {"per_channel": False}}
    )
    model = change.workload.model
    assert type(model.head) is nn.Linear
    assert model.blocks[0].expand.scale.numel() == 1
    assert model.blocks[1].expand.scale.numel() == 64


def test_sites_follow_renames():
    workload = mobile()
    workload.aliases = {"classifier": ("head",)}
    sites = StaticInt8().sites(workload, capture(workload))
    assert "classifier:weight" in sites.ok
    change = StaticInt8().apply(workload, sites.only(["classifier"]))
    assert type(change.workload.model.head).__name__ == "QuantLinear"


def test_conv1d_of_gpt2_is_a_transposed_linear():
    workload = gpt2()
    change = quantized(workload, patterns=["*.c_attn"])
    form = change.workload.model.transformer.h[0].attn.c_attn
    old = workload.model.transformer.h[0].attn.c_attn
    assert form.weight.shape == old.weight.t().shape
    assert error(first(workload.call()), first(change.workload.call())) < 0.02


def test_bytes_are_a_quarter():
    workload = mobile()
    fold = FoldNorm()
    workload = fold.apply(workload, fold.sites(workload, capture(workload))).workload
    change = quantized(workload)

    def held(model):
        return sum(t.nbytes for n, t in model.state_dict().items() if n.endswith(".weight"))

    assert held(workload.model) == 4 * held(change.workload.model)


def blown(factor: float) -> Workload:
    """A net with one channel of each depthwise weight ``factor`` times larger, same outputs.

    The scale sits in a batch norm, as in trained MobileNets (Krishnamoorthi 2018, section 3.1.3),
    and the next layer's input weights undo it: only the ranges of folded weights change.
    """
    torch.manual_seed(0)
    net = settle(Mobile())
    for block in net.blocks:
        block.act = nn.ReLU()
        for norm in (block.bn1, block.bn2):
            norm.bias.data.abs_()
        block.bn2.weight.data[0] *= factor
        block.bn2.bias.data[0] *= factor
        block.project.weight.data[:, 0] /= factor
    data = [torch.randn(4, 3, 32, 32) for _ in range(4)]
    workload = Workload(net, (data[0],), calibration=data)
    fold = FoldNorm()
    return fold.apply(workload, fold.sites(workload, capture(workload))).workload


def test_per_channel_survives_a_blown_up_channel_and_per_tensor_does_not():
    workload = blown(50.0)
    sites = ["*.depthwise"]
    want = workload.call()
    change = {
        flag: quantized(workload, StaticInt8(per_channel=flag), sites).workload.call()
        for flag in (True, False)
    }
    assert error(want, change[True]) < 0.02
    assert error(want, change[False]) > 5 * error(want, change[True])


def test_sensitivity_ranks_the_fragile_site_first():
    workload = mobile()
    workload.model.blocks[1].project.weight.data[0] *= 100
    technique = StaticInt8(per_channel=False)
    sites = technique.sites(workload, capture(workload))
    found = sensitivity(workload, technique, sites, items=2)
    assert set(found) == set(sites.ok)
    assert all(0 < v < 1 for v in found.values())
    alone = technique.apply(workload, Sites(("head:weight",))).workload
    calls = workload.calibration[:2]
    with torch.inference_mode():
        errors = [error(workload.model(x), alone.model(x)) for x in calls]
    assert found["head:weight"] == pytest.approx(sum(errors) / 2, rel=1e-4)
    assert max(found, key=found.__getitem__) == "blocks.1.project:weight"


def test_symmetric_activations_where_they_take_both_signs():
    workload = mobile()
    model = quantized(workload, StaticInt8(symmetric=True)).workload.model
    seen = input_histograms(workload, ["stem.0"])["stem.0"].range(99.99)
    assert model.stem[0].in_zero.item() == 128
    assert model.stem[0].in_scale.item() == pytest.approx(max(-seen[0], seen[1]) / 127)
    # after ReLU6 nothing is negative: the whole of uint8 is used
    assert model.blocks[0].depthwise.in_zero.item() == 0
    skewed = quantized(workload, StaticInt8(symmetric=False)).workload.model
    assert skewed.head.in_zero.item() not in (0, 128)
