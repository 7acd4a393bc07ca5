"""Mixed int8: equal to floats at one end, to exact integers at the other, whole with outliers."""

import pytest
import torch
from quant_nets import NETS, error, first
from torch import nn

from paredown import runtime
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.papers.cards import _text
from paredown.runtime import ops, torch_lowering
from paredown.runtime.eager import load_tensors, save_tensors
from paredown.runtime.forms_mixed import MixedInt8Linear
from paredown.runtime.packed_mixed import PackedMixed
from paredown.techniques.quantize.dynamic_int8 import DynamicInt8
from paredown.techniques.quantize.llm_int8 import LLMInt8, mixed
from paredown.workload import Workload

vnni = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="int8 operators need VNNI: forms stay as they are"
)


def whole(technique, workload):
    return technique.apply(workload, technique.sites(workload, capture(workload)))


def test_all_columns_in_float_is_the_float_layer():
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 7), torch.randn(5, 24) * 100
    assert torch.allclose(mixed(linear, list(range(24)))(x), linear(x), rtol=1e-6, atol=1e-5)


def test_no_column_in_float_is_vector_wise_int8_to_the_integer():
    torch.manual_seed(0)
    linear, x = nn.Linear(63, 17, bias=False), torch.randn(2, 5, 63)
    form = mixed(linear, [])
    rows = x.reshape(-1, 63)
    a = torch.round(rows / (rows.abs().amax(1, keepdim=True) / 127))
    b = torch.round(linear.weight / (linear.weight.abs().amax(1, keepdim=True) / 127))
    exact = (a.long() @ b.long().t()).double()
    cx, cw = rows.abs().amax(1, keepdim=True), linear.weight.detach().abs().amax(1)
    want = (exact * cx * cw / 127**2).reshape(2, 5, 17)
    assert error(want, form(x)) < 1e-6
    assert form.outliers is None


@vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "rows", "kept"), [(3, 1, []), (63, 5, [0, 62]), (64, 48, [7])])
def test_packed_equals_the_form(columns, rows, kept, dtype):
    torch.manual_seed(0)
    form = mixed(nn.Linear(columns, rows).to(dtype), kept)
    packed = PackedMixed(form)
    assert torch.equal(packed.unpacked(), form.weight)
    x = torch.randn(2, 3, columns).to(dtype)
    x[..., kept] *= 60
    with torch.inference_mode():
        for given in (x, x[0], x[0, 0], x.transpose(0, 1)):
            got, want = packed(given), form(given)
            assert got.dtype == dtype
            assert error(want, got) < (2e-6 if dtype == torch.float32 else 1e-2)


@vnni
def test_the_integer_product_is_exact():
    torch.manual_seed(0)
    form = mixed(nn.Linear(96, 40, bias=False), [])
    form.scale = torch.ones(40)
    x = torch.randint(-126, 127, (9, 96)).float()
    x[:, 0] = 127.0  # a row's scale is then exactly 1
    with torch.inference_mode():
        assert torch.equal(PackedMixed(form)(x).long(), x.long() @ form.weight.long().t())


def test_a_nan_stays_in_its_row():
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    form = mixed(nn.Linear(8, 4), [5])
    bad = form(x).isnan().any(1).tolist()
    assert bad == [False, True, False]
    q, scale, zero = ops.dynamic_quantize_rows(torch.zeros(2, 3))
    assert not q.any()
    assert (ops.dequantize(q, scale, zero, 0, torch.float32) == 0).all()


def outlying(factor):
    torch.manual_seed(0)
    model = _text.Decoder(64).eval()
    for block in model.blocks:
        _text.inject(block.norm1, [block.attn.qkv], [3, 40], factor)
        _text.inject(block.norm2, [block.fc1], [9, 31], factor)
    ids = _text.windows("reference", "train")[:8, :-1]
    return Workload(model, (ids[:4],), calibration=[ids[:4], ids[4:]])


def test_outliers_cost_nothing_where_plain_int8_collapses():
    plain, grown = outlying(1.0), outlying(40.0)
    want = plain.call()
    assert error(want, grown.call()) < 1e-5, "injecting keeps the function"
    usual = error(want, whole(LLMInt8(columns=4), plain).workload.call())
    change = whole(LLMInt8(columns=4), grown)
    assert error(want, change.workload.call()) < 1.2 * usual < 0.02
    for technique in (DynamicInt8(smooth=False), LLMInt8(columns=0)):
        assert error(want, whole(technique, grown).workload.call()) > 5 * usual
    chosen = change.decisions.values["columns"]
    assert {3, 40} <= set(chosen["blocks.1.attn.qkv"])
    assert {9, 31} <= set(chosen["blocks.0.fc1"])
    assert not any("fc1" in note for note in change.notes)
    short = whole(LLMInt8(columns=1), grown)
    assert any("blocks.0.fc1: 2 columns" in note for note in short.notes), short.notes


def test_conv1d_of_hugging_face():
    workload = NETS["gpt2"]()
    change = whole(LLMInt8(), workload)
    form = change.workload.model.get_submodule("transformer.h.0.attn.c_attn")
    assert isinstance(form, MixedInt8Linear)
    assert (form.in_features, form.out_features) == (64, 192)
    assert error(first(workload.call()), first(change.workload.call())) < 0.05
    table = workload.model.transformer.h[0].attn.c_attn.weight.t()[:, form.columns]
    assert torch.equal(form.outliers.weight, table)


@vnni
def test_eager_runs_it_in_integers_and_saves_it_packed(tmp_path):
    workload = outlying(40.0)
    change = whole(LLMInt8(columns=4), workload)
    run = runtime.backend("eager").lower(change.workload, threads=1)
    assert error(change.workload.call(), run.step(*workload.inputs)) < 0.02
    sites = list(change.touched)
    done = run.realised("llm-int8", sites)
    assert list(done.kept) == sites
    ran = {(r.op, r.precision) for r in run.executed() if r.site == "blocks.0.fc1"}
    assert ran == {("qlinear_pointwise", "int8"), ("weight", "int8")}
    inner = [m for m in workload.model.blocks.modules() if isinstance(m, nn.Linear)]
    floats = sum(m.weight.nbytes for m in inner)
    spared = torch_lowering.held_bytes(workload.model) - run.weight_bytes()
    # int8 weights, four float columns of 64 or 256, a scale and two zero points per row
    assert spared > 0.6 * floats
    save_tensors(run.model, tmp_path / "t.safetensors")
    again = change.workload.copy()
    for form in again.model.modules():
        if isinstance(form, MixedInt8Linear):
            form.weight = nn.Parameter(torch.zeros_like(form.weight), requires_grad=False)
    load_tensors(again.model, tmp_path / "t.safetensors")
    assert torch.equal(again.call(), change.workload.call())


def test_bad_input_is_named():
    workload = outlying(1.0)
    sites = LLMInt8(columns=20).sites(workload, capture(workload))
    assert (
        sites.refused["blocks.0.attn.qkv:weight"]
        == "20 float columns are too many of its 64 inputs"
    )
    assert "blocks.0.fc2:weight" in sites.ok
    with pytest.raises(InputError, match="at least 0"):
        LLMInt8(columns=-1)
    vit = NETS["vit"]()
    vit.calibration = [torch.full((2, 3, 16, 16), float("nan"))]
    with pytest.raises(InputError, match=r"blocks\.0\.qkv.*NaN"):
        whole(LLMInt8(), vit)
