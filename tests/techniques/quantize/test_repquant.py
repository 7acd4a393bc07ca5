"""RepQuant: equal codes before and after the fold, exact shifts, and a network that keeps more."""

import math

import pytest
import torch
import torch.nn.functional as F
from quant_nets import NETS, error, first
from torch import nn

from paredown import runtime
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.nn.transformer import EncoderBlock
from paredown.runtime import quantized_attention as qa
from paredown.runtime.forms_low_bit import LowBitLinear
from paredown.runtime.gate import gate
from paredown.technique import Sites
from paredown.techniques.quantize.norm_flow import Fed, norms
from paredown.techniques.quantize.observe import Rows
from paredown.techniques.quantize.ranges import (
    Channels,
    channel_ranges,
    power_of_two_ranges,
    trained_ranges,
)
from paredown.techniques.quantize.reconstruct import back, reconstructed
from paredown.techniques.quantize.repquant import RepQuant
from paredown.techniques.quantize.weight_only import grouped
from paredown.workload import Workload

PLAIN = {"clip_steps": 0, "reconstruct": False}


def done(technique, workload):
    return technique.apply(workload, technique.sites(workload, capture(workload)))


def uneven(channels=24, rows=400):
    """Rows whose channels differ in size by two orders of magnitude, and in offset."""
    torch.manual_seed(0)
    size = torch.logspace(-1, 1, channels, dtype=torch.float64)
    return (
        torch.randn(rows, channels, dtype=torch.float64) * size + 3 * torch.randn(channels) * size
    )


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_folded_layer_has_the_very_codes_of_its_channels(bits, shift):
    x = uneven()
    found = channel_ranges(x.float(), bits, shift=shift)
    found = trained_ranges(x.float(), found, torch.eye(24), 3, shift=shift)
    scale, zero = found.layer()
    r, b = found.fold()
    assert shift or not b.any()
    codes = torch.clamp(torch.round(x / found.scale.double()) + found.zero, 0, 2**bits - 1)
    folded = torch.clamp(torch.round((x / r - b) / scale) + zero, 0, 2**bits - 1)
    assert torch.equal(codes, folded)
    assert codes.unique().numel() > 0.7 * 2**bits
    # and the linear behind it means the same by them
    w = torch.randn(5, 24, dtype=torch.float64)
    ours = ((folded - zero) * scale) @ (w * r).T + (w * r) @ b
    theirs = ((codes - found.zero) * found.scale.double()) @ w.T
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-9)


def test_powers_of_two_fold_without_any_rounding():
    x = uneven().float()
    found = power_of_two_ranges(x, 4)
    r, b = found.fold()
    ratio = torch.log2(found.scale / found.scale.min())
    assert torch.equal(ratio, ratio.round())
    assert ratio.max() == 3
    assert not b.any()
    one = channel_ranges(x, 4)
    off = [(c.coded(x) - x).square().sum() for c in (one, found)]
    assert off[0] < off[1]
    assert r.numel() == 24


def test_norm_and_linear_keep_their_function_before_weights_are_coded():
    torch.manual_seed(1)
    norm, linear = nn.LayerNorm(24).double(), nn.Linear(24, 7).double()
    nn.init.uniform_(norm.weight, 0.1, 5)
    nn.init.uniform_(norm.bias, -3, 3)
    x = torch.randn(50, 24, dtype=torch.float64)
    r, b = channel_ranges(norm(x).detach().float(), 4).fold()
    y = F.layer_norm(x, (24,), norm.weight / r, norm.bias / r - b)
    got = F.linear(y, linear.weight * r, linear.bias + (linear.weight * r) @ b)
    assert torch.allclose(got, linear(norm(x)), rtol=1e-10, atol=1e-10)


def test_training_ranges_never_loses_and_helps_where_outliers_are():
    x = uneven().float()
    x[::97] *= 6
    w = torch.randn(8, 24)
    low, high = 2 * x.amin(0), 2 * x.amax(0)
    scale = (high - low) / 7
    wide = Channels(scale, torch.round(-low / scale), 3)
    for start, share in ((wide, 0.9), (channel_ranges(x, 3), 1.0)):
        found = trained_ranges(x, start, w.T @ w, 40)
        off = [((c.coded(x) - x) @ w.T)[1::2].square().sum() for c in (start, found)]
        assert off[1] <= share * off[0]
        assert trained_ranges(x, start, w.T @ w, 0).scale.equal(start.scale)


@pytest.mark.parametrize("bits", [3, 4])
def test_shifts_and_parity_are_powers_of_the_root(bits):
    scale = torch.tensor(0.83, dtype=torch.float64)
    codes = torch.arange(2**bits, dtype=torch.float64)
    root = scale * torch.pow(torch.tensor(2.0, dtype=torch.float64), -codes / 2)
    assert torch.allclose(qa.from_codes(codes, scale, bits, "log-sqrt2"), root, rtol=1e-15, atol=0)
    assert torch.equal(qa.to_codes(root, scale, bits, "log-sqrt2"), codes)
    even = qa.from_codes(codes, scale, bits, "log2")
    assert torch.equal(even, scale * 2.0**-codes)
    # beyond the last code there is nothing, zero included; above the scale it saturates
    far = torch.tensor([0.0, 1e-9, 1.0], dtype=torch.float64)
    for kind in ("log-sqrt2", "log2"):
        got = qa.from_codes(qa.to_codes(far, scale, bits, kind), scale, bits, kind)
        assert got.tolist() == [0.0, 0.0, float(scale)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"enable_gqa": True},
        {"attn_mask": "bool"},
        {"attn_mask": "float"},
    ],
)
def test_attention_in_the_open_is_torchs(options):
    torch.manual_seed(0)
    options = dict(options)
    q = torch.randn(2, 4, 5, 8)
    k, v = (torch.randn(2, 2 if options.get("enable_gqa") else 4, 5, 8) for _ in range(2))
    if options.get("attn_mask") == "bool":
        options["attn_mask"] = torch.rand(5, 5) > 0.3
        options["attn_mask"].fill_diagonal_(True)
    elif options.get("attn_mask") == "float":
        options["attn_mask"] = torch.randn(5, 5)
    want = F.scaled_dot_product_attention(q, k, v, **options)
    a, b, c, mask, causal, scale = qa.asked((q, k, v), options)
    got = qa.attention_weights(a, b, mask, causal, scale) @ c
    assert torch.allclose(got, want, atol=1e-6)
    with pytest.raises(InputError, match="eval"):
        qa.asked((q, k, v, None, 0.5), {})


def test_reconstruction_beats_rounding_where_columns_go_together():
    torch.manual_seed(0)
    x = torch.randn(300, 6) @ torch.randn(6, 33) + 0.1 * torch.randn(300, 33)
    coded = (x * 2).round() / 2
    w = torch.randn(9, 33)
    off = [
        float((coded @ back(*c).T - x @ w.T).square().sum())
        for c in (grouped(w, 4, 0, clip=True), reconstructed(w, x, coded, 4))
    ]
    assert off[1] < 0.6 * off[0]
    q, scale, zero = reconstructed(w, x, torch.zeros_like(x), 4)  # nothing comes through
    assert torch.equal(q, grouped(w, 4, 0, clip=True)[0])
    assert scale.shape == zero.shape == (9, 1)


def test_rows_are_spread_evenly_and_bounded():
    rows = Rows()
    every = torch.arange(30000.0).reshape(-1, 1)
    for part in every.split(77):
        rows.add(part)
    got = rows.values[:, 0]
    assert 2048 <= len(got) < 4096
    assert (got.diff() == got[1] - got[0]).all()
    assert got[-1] > 29900


def test_which_norms_fold():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.LayerNorm(8) for _ in range(4))
            self.one, self.two, self.three = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            y = self.one(self.a(x).mean(1)) + self.two(self.a.weight[:0].sum() + self.b(x)[:, 0])
            z = self.c(x)
            return y + self.three(z.transpose(1, 2)).mean(1) + z.mean(1), self.d(x)

    workload = Workload(Odd().eval(), (torch.randn(2, 8, 8),))
    found = norms(workload, capture(workload), ["one", "two", "three"])
    assert found["a"] == Fed(("one",), True)
    assert "add" in found["b"]
    assert "reads it too" in found["c"]
    assert "output" in found["d"]
    short = norms(workload, capture(workload), ["two", "three"])
    assert short["a"] == "one reads it too and stays as it is"


def amplified():
    """A ViT whose norms' channels differ widely, its function kept: what trained ones look like."""
    torch.manual_seed(0)
    blocks = nn.Sequential(EncoderBlock(32, 4, 2.0), EncoderBlock(32, 4, 2.0)).eval()
    for block in blocks:
        for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            factor = torch.logspace(-1, 1, 32)[torch.randperm(32)]
            norm.weight.data *= factor
            norm.bias.data.uniform_(-1, 1).mul_(factor)
            linear.weight.data /= factor
            if linear is block.attn.qkv:
                linear.weight.data[:64] *= 3  # attention that looks somewhere
    data = [torch.randn(4, 17, 32) for _ in range(4)]
    return Workload(blocks, (torch.randn(8, 17, 32),), calibration=data, name="amplified")


def test_each_part_of_the_method_keeps_more():
    workload = amplified()
    want = workload.call()
    plain = {"norms": "layer", "attention": "uniform", "search": False, **PLAIN}
    ways = {
        "min-max": RepQuant(**plain),
        "powers of two": RepQuant(**{**plain, "norms": "power-of-two"}),
        "folded": RepQuant(**PLAIN),
        "whole": RepQuant(),
    }
    off = {n: error(want, done(t, workload).workload.call()) for n, t in ways.items()}
    assert off["whole"] < off["folded"]
    assert off["folded"] < 0.7 * off["powers of two"]
    assert off["powers of two"] < off["min-max"]
    eight = done(RepQuant(weight_bits=8, activation_bits=8, attention="uniform"), workload).workload
    assert error(want, eight.call()) < 0.25 * off["whole"]


@pytest.mark.parametrize("net", ["bert", "gpt2", "llama"])
def test_networks_of_hugging_face(net):
    workload = NETS[net]()
    change = done(RepQuant(clip_steps=2), workload)
    forms = [m for m in change.workload.model.modules() if isinstance(m, LowBitLinear)]
    coded = [m for m in change.workload.model.modules() if isinstance(m, qa.QuantizedAttention)]
    assert forms
    assert coded
    off = error(first(workload.call()), first(change.workload.call()))
    assert 0 < off < 0.6
    if net == "bert":  # its residual reads what its norms make
        assert any("add" in why for why in change.decisions.values["kept"].values())
    if net == "gpt2":
        assert "transformer.h.0.ln_1" in change.decisions.values["norms"]


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", "openvino"])
def test_backends_compute_the_codes_and_hold_them_packed(backend, tmp_path):
    b = runtime.backend(backend)
    if b.available() is not None:
        pytest.skip(b.available())
    workload = amplified()
    change = done(RepQuant(clip_steps=0), workload)
    run = b.lower(change.workload.copy(), threads=1)
    assert gate(run, change.workload, tolerance=5e-2).passed
    linears = [s for s in change.touched if s.endswith(":weight")]
    assert list(run.realised("repquant", linears).kept) == linears
    if backend != "eager":  # a graph alone is larger than these weights
        return
    run.save(tmp_path)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    floats = sum(p.nbytes for p in workload.model.parameters())
    assert size < 0.45 * floats, "weights stay in 4 bits on disk"


def test_the_sites_of_one_setting_and_bad_knobs():
    workload = amplified()
    graph = capture(workload)
    sites = RepQuant(attention="float").sites(workload, graph)
    assert sites.refused["0.attn:attention"] == "attention=float leaves it alone"
    some = RepQuant().sites(workload, graph).only(["0.attn*"])
    change = RepQuant(**PLAIN).apply(workload, some)
    assert type(change.workload.model[1].attn.qkv) is nn.Linear
    assert change.decisions.values["kept"]["0.norm2"].startswith("0.mlp.fc1 reads it too")
    assert list(change.decisions.values["norms"]) == ["0.norm1"]
    again = RepQuant().sites(change.workload, capture(change.workload))
    assert "already" in again.refused.get("0.attn:attention", "already")
    for wrong in (
        {"weight_bits": 1},
        {"activation_bits": 9},
        {"norms": "no"},
        {"attention": "no"},
        {"clip_steps": -1},
    ):
        with pytest.raises(InputError):
            RepQuant(**wrong)
    bad = amplified()
    bad.calibration = [torch.full((2, 17, 32), math.nan)]
    with pytest.raises(InputError, match=r"0\.attn\.qkv.*NaN"):
        done(RepQuant(), bad)


def test_one_site_alone_leaves_the_other_linears_right():
    """Sensitivity takes decisions for all sites and rewrites one: folded norms feed others too."""
    workload = NETS["vit"]()
    for block in workload.model.blocks:
        block.norm1.weight.data.uniform_(0.2, 5)
        block.norm1.bias.data.normal_()
    technique = RepQuant()
    sites = technique.sites(workload, capture(workload))
    decisions = technique.decide(workload, sites)
    head = Sites(("head:weight",), sites.refused)
    alone = technique.rewrite(workload, head, decisions).workload
    form, layer = alone.model.head, workload.model.head
    assert type(form) is not type(layer)
    # With the head in float again, what is before it computes as it did.
    alone.model.head = layer
    assert error(workload.call(), alone.call()) < 1e-5
