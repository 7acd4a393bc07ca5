"""NormalFloat: the codebook to the bit, exact zeros and extremes, bits counted, adapters."""

import pytest
import torch
from quant_nets import NETS, error, first
from scipy.special import ndtri
from torch import nn

from paredown import runtime
from paredown.analysis.formats import FORMATS
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.runtime import nf4
from paredown.runtime.nf4 import LEVELS, NF4Linear, quantize_nf4
from paredown.techniques.quantize.nf4 import NF4, packed
from paredown.workload import Workload


def test_the_codebook_is_made_of_normal_quantiles():
    """Section 3: eight positive and seven negative quantiles and an exact zero, scaled to 1."""
    offset = 0.9677083  # the mean of 1 - 1/30 and 1 - 1/32, to seven digits as the authors have it
    positive = ndtri(torch.linspace(offset, 0.5, 9)[:-1].numpy()).tolist()
    negative = (-ndtri(torch.linspace(offset, 0.5, 8)[:-1].numpy())).tolist()
    made = torch.tensor([*positive, *negative, 0.0]).sort()[0]
    levels = torch.tensor(LEVELS)
    assert torch.equal(made / made.max(), levels)
    assert levels.tolist() == list(LEVELS), "the literals are float32 numbers"
    assert levels[7] == 0
    assert (levels[0], levels[15]) == (-1, 1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 17), (5, 64), (63, 63)])
def test_zeros_and_extremes_are_exact_and_the_rest_is_the_nearest_level(rows, columns):
    torch.manual_seed(0)
    w = torch.randn(rows, columns)
    w[torch.rand(rows, columns) < 0.2] = 0.0
    q, scale = quantize_nf4(w, 64)
    assert q.numel() == (rows * columns + 1) // 2
    back = nf4.dequantize_nf4(q, scale, rows, columns, 64, torch.float32)
    flat, got = w.flatten(), back.flatten()
    assert (got[flat == 0] == 0).all()
    for i, part in enumerate(flat.split(64)):
        piece = got[64 * i : 64 * i + 64]
        top = part.abs().argmax()
        assert piece[top] == part[top]
        every = torch.tensor(LEVELS) * scale[i]
        nearest = (part[:, None] - every).abs().amin(1)
        assert torch.allclose((part - piece).abs(), nearest, atol=1e-6)
    assert torch.equal(
        nf4.dequantize_nf4(*quantize_nf4(torch.zeros(3, 5), 64), 3, 5, 64, torch.float32),
        torch.zeros(3, 5),
    )


def test_scales_in_eight_bits():
    torch.manual_seed(0)
    scale = torch.rand(700) + 0.5
    codes, step, mean = nf4.quantize_scales(scale)
    assert (codes.dtype, step.numel(), mean.numel()) == (torch.int8, 3, 1)
    back = nf4.dequantize_scales(codes, step, mean)
    room = step.repeat_interleave(256)[:700] / 2
    assert ((back - scale).abs() <= room * (1 + 1e-4)).all()


def test_bits_a_value_are_4_127():
    linear = nn.Linear(1024, 1024, bias=False)
    held = {True: packed(linear, True), False: packed(linear, False)}
    bits = {k: sum(8 * t.nbytes for t in f.state_dict().values()) / 2**20 for k, f in held.items()}
    assert bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert bits[False] == 4.5


def test_operator_agrees_with_its_fake_and_its_form_rebuilds():
    form = packed(nn.Linear(17, 5), True, rank=3)
    form.down.data.normal_()
    args = (form.weight.data, nf4.dequantize_scales(form.scale, form.step, form.mean))
    op = torch.ops.paredown.dequantize_nf4.default
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(
            op, (*args, 5, 17, 64, dtype), test_utils=("test_schema", "test_faketensor")
        )
    again = runtime.forms.build("NF4Linear", form.config())
    again.load_state_dict(form.state_dict(), assign=True)
    x = torch.randn(2, 17)
    assert torch.equal(again(x), form(x))
    with pytest.raises(InputError):
        NF4Linear(4, 4, block=0)


def test_normal_weights_lose_less_than_in_evenly_spaced_or_float_levels():
    torch.manual_seed(0)
    w = torch.randn(256, 1024)
    off = {"nf4": error(w, packed_matrix(w, False)), "double": error(w, packed_matrix(w, True))}
    blocks = w.reshape(-1, 64)
    top = blocks.abs().amax(1, keepdim=True)
    for name, form in (("fp4", FORMATS["e2m1"]), ("int4", FORMATS["int4"])):
        rounded = form.round(blocks / top * form.largest) / form.largest * top
        off[name] = error(w, rounded.reshape(w.shape))
    assert off["nf4"] < off["int4"] < off["fp4"] * 1.5
    assert off["nf4"] < off["fp4"]
    assert off["double"] < 1.01 * off["nf4"]


def packed_matrix(w, double):
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w
    return packed(linear, double).matrix()


def test_adapters_start_at_nothing_merge_exactly_and_train_alone():
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 20), torch.randn(6, 48)
    plain, form = packed(linear, True), packed(linear, True, rank=4, alpha=8.0)
    nn.init.normal_(form.down)
    assert torch.equal(form(x), plain(x)), "up is zero"
    before = {k: t.clone() for k, t in form.state_dict().items()}
    assert {n for n, p in form.named_parameters() if p.requires_grad} == {"down", "up"}
    optimizer = torch.optim.AdamW([p for p in form.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        form(x).square().mean().backward()
        optimizer.step()
    after = form.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"down", "up"}, "the base stays to the bit"
    merged = form.matrix() + form.up @ form.down * (8.0 / 4)
    assert torch.allclose(form(x), x @ merged.t() + form.bias, atol=1e-5)


def test_a_model_holds_it_packed_and_says_that_time_is_not_saved():
    workload = NETS["gpt2"]()
    change = NF4().apply(workload, NF4().sites(workload, capture(workload)))
    assert error(first(workload.call()), first(change.workload.call())) < 0.3
    run = runtime.backend("eager").lower(change.workload, threads=1)
    done = run.realised("nf4", list(change.touched))
    assert not done.lost
    row = next(r for r in run.executed() if r.site.endswith("h.0.mlp.c_fc") and r.role)
    assert row.precision == "float32"
    assert "torch has no operator for it" in row.fallback
    spared = sum(
        4 * m.weight.numel() - 4.25 / 8 * m.weight.numel()
        for p, m in workload.model.named_modules()
        if type(m).__name__ == "Conv1D"
    )
    before = sum(
        t.nbytes for t in {id(t): t for t in workload.model.state_dict().values()}.values()
    )
    assert before - run.weight_bytes() > 0.95 * spared


def test_it_refuses_what_it_cannot_hold():
    vit = NETS["vit"]()
    refused = NF4().sites(vit, capture(vit)).refused
    assert refused["patch:weight"] == "only linear layers take NormalFloat weights"
    alone = Workload(nn.Linear(4, 4), (torch.randn(1, 4),))
    assert not NF4().sites(alone, capture(alone)).ok


def test_values_take_the_nearest_level_of_the_scale_that_is_held():
    torch.manual_seed(0)
    layer = nn.Linear(64, 40)
    layer.weight.data *= torch.logspace(-3, 1, 40).unsqueeze(1)
    form = packed(layer, double=True)
    held = nf4.dequantize_scales(form.scale, form.step, form.mean)
    w, got = layer.weight.detach(), form.matrix()
    off, levels = (w - got).abs(), torch.tensor(LEVELS)
    usable = held > 0
    nearest = (w[:, :, None] - levels * held[:, None, None]).abs().amin(-1)
    assert usable.sum() > 20
    assert torch.allclose(off[usable], nearest[usable], atol=1e-6)
    assert (got[~usable] == 0).all()
    first = nf4.dequantize_nf4(quantize_nf4(w, 64)[0], held, 40, 64, 64, torch.float32)
    assert (w - got).norm() < (w - first).norm()
