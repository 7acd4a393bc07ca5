"""Weight-only: half-step bound per group, exact zeros, clipping that helps, ties refused, sizes."""

import pytest
import torch
from quant_nets import error, first, gpt2, llama
from torch import nn

from paredown import runtime
from paredown.editing import replay
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.runtime import forms
from paredown.runtime.eager import load_tensors, save_tensors
from paredown.runtime.ops import dequantize_groups, pack_int4
from paredown.techniques.quantize.weight_only import WeightOnly, grouped
from paredown.workload import Workload, stored_bytes


def back(q, scale, zero, bits):
    packed = pack_int4(q) if bits == 4 else q
    return dequantize_groups(packed, scale, zero, bits, q.shape[1], torch.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("shape", "group"), [((3, 64), 32), ((17, 63), 0), ((1, 1), 0), ((5, 128), 64)]
)
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_error_is_half_a_step(bits, shape, group, shift):
    torch.manual_seed(0)
    w = torch.randn(shape) + shift
    q, scale, zero = grouped(w, bits, group)
    steps = scale.repeat_interleave(shape[1] // scale.shape[1], 1)
    assert ((back(q, scale, zero, bits) - w).abs() <= steps / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_is_exact(bits):
    torch.manual_seed(0)
    w = torch.randn(4, 64)
    w[:, ::3] = 0.0
    w[1] = 0.0
    out = back(*grouped(w, bits, 32), bits)
    assert (out[w == 0] == 0).all()


def test_clipping_lowers_the_squared_error_and_never_raises_it():
    torch.manual_seed(0)
    w = torch.randn(16, 128)
    w[:, 5] *= 8
    plain = (back(*grouped(w, 4, 0), 4) - w).square().sum(1)
    clipped = (back(*grouped(w, 4, 0, clip=True), 4) - w).square().sum(1)
    assert (clipped <= plain * (1 + 1e-5)).all()
    assert clipped.sum() < 0.95 * plain.sum()


def test_smaller_groups_are_closer():
    torch.manual_seed(0)
    w = torch.randn(16, 128) * torch.rand(16, 128)
    errors = [error(w, back(*grouped(w, 4, g), 4)) for g in (0, 64, 32)]
    assert errors == sorted(errors, reverse=True)


def test_embeddings_of_their_own_are_packed_on_request():
    workload = gpt2()
    technique = WeightOnly(embeddings=True)
    sites = technique.sites(workload, capture(workload))
    assert "packed with lm_head" in sites.refused["transformer.wte:weight"]
    assert "lm_head:weight" in sites.ok
    assert "transformer.wpe:weight" in sites.ok
    plain = WeightOnly().sites(workload, capture(workload))
    assert "embeddings=true" in plain.refused["transformer.wpe:weight"]


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_count_as_the_weights_they_hold(bits):
    """Odd columns: half of a row's last byte is empty."""
    workload = Workload(
        nn.Sequential(nn.Embedding(50, 33), nn.Linear(33, 7)), (torch.arange(4)[None],)
    )
    technique = WeightOnly(bits=bits, embeddings=True)
    before = capture(workload)
    sites = technique.sites(workload, before)
    after = capture(technique.apply(workload, sites).workload)
    assert len(sites.ok) == 2
    assert after.weights() == before.weights()
    assert after.params == before.params == 50 * 33 + 33 * 7 + 7


@pytest.mark.parametrize("bits", [8, 4])
def test_a_tied_head_is_packed_once_with_its_embedding(bits, tmp_path):
    workload = gpt2()
    technique = WeightOnly(bits=bits, group_size=32)
    sites = technique.sites(workload, capture(workload)).only(["lm_head"])
    change = technique.apply(workload, sites)
    table, head = change.workload.model.transformer.wte, change.workload.model.lm_head
    for name in ("weight", "scale", "zero"):
        assert getattr(table, name) is getattr(head, name)
    # Both read the same numbers: one row of the table is one row of the head.
    w = dequantize_groups(head.weight, head.scale, head.zero, bits, 64, torch.float32)
    assert torch.equal(table(torch.arange(100)), w)
    assert error(workload.model.lm_head.weight.detach(), w) < (0.01 if bits == 8 else 0.2)
    saved = 4 * 100 * 64 - (100 * 64 * bits // 8 + 3 * 100 * 2)
    assert stored_bytes(workload.model) - stored_bytes(change.workload.model) == saved
    # Replayed on the source and filled from disk, it is one matrix again.
    save_tensors(change.workload.model, tmp_path / "t.safetensors")
    again = replay(workload.copy().model, change.edits)
    load_tensors(again, tmp_path / "t.safetensors")
    assert again.transformer.wte.weight is again.lm_head.weight
    assert (tmp_path / "t.safetensors").stat().st_size < stored_bytes(again) * 1.1
    with torch.no_grad():
        got = again(*workload.inputs, **workload.kwargs)
    assert torch.equal(first(got), first(change.workload.call()))


def test_a_weight_shared_by_two_linears_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    workload = Workload(model.eval(), (torch.randn(1, 8),))
    sites = WeightOnly().sites(workload, capture(workload))
    assert sites.ok == ()
    assert "shared with 1.weight" in sites.refused["0:weight"]


@pytest.mark.parametrize("bits", [8, 4])
def test_llama_packs_to_its_share(bits):
    workload = llama()
    technique = WeightOnly(bits=bits, group_size=64)
    sites = technique.sites(workload, capture(workload))
    change = technique.apply(workload, sites)
    assert error(first(workload.call()), first(change.workload.call())) < (
        0.02 if bits == 8 else 0.3
    )
    paths = [s.partition(":")[0] for s in sites.ok]

    def held(model):
        tensors = [model.get_submodule(p).state_dict().values() for p in paths]
        return sum(t.nbytes for group in tensors for t in group)

    ratio = held(workload.model) / held(change.workload.model)
    assert ratio > 32 / bits / (1 + 40 / (64 * bits)) * 0.999


def test_group_that_does_not_divide_is_refused():
    workload = Workload(nn.Sequential(nn.Linear(48, 4)).eval(), (torch.randn(1, 48),))
    sites = WeightOnly(bits=4, group_size=32).sites(workload, capture(workload))
    assert sites.refused == {"0:weight": "group_size 32 does not divide its 48 columns"}


@pytest.mark.parametrize(
    ("knobs", "word"), [({"bits": 2}, "bits"), ({"group_size": 7}, "group_size")]
)
def test_knobs_are_checked(knobs, word):
    with pytest.raises(InputError, match=word):
        WeightOnly(**knobs)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_half_scales_are_float16s_and_cover_the_range(bits, clip):
    torch.manual_seed(0)
    w = torch.randn(33, 128) * torch.logspace(-2, 3, 33).unsqueeze(1)
    q, scale, zero = grouped(w, bits, 32, clip=clip, half=True)
    assert torch.equal(scale, scale.half().float())
    steps = scale.repeat_interleave(32, 1)
    off = (back(q, scale.half(), zero, bits) - w).abs()
    if not clip:
        assert (off <= steps / 2 * (1 + 1e-4)).all()
    wide = back(*grouped(w, bits, 32, clip=clip), bits)
    assert error(w, back(q, scale, zero, bits)) < 1.02 * error(w, wide)


def narrow(weight_scale, group=32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=False), nn.Linear(48, 8)).eval()
    model[0].weight.data *= weight_scale
    workload = Workload(model, (torch.randn(3, 64),), name="two")
    technique = WeightOnly(bits=4, group_size=group, clip=True)
    sites = technique.sites(workload, capture(workload)).only(["0"])
    return workload, technique.apply(workload, sites)


@pytest.mark.parametrize(
    ("weight_scale", "group", "kind"),
    [(1, 32, torch.float16), (1e-4, 32, torch.float32), (1e7, 32, torch.float32), (1, 0, None)],
)
def test_group_scales_take_two_bytes_where_float16_holds_them(weight_scale, group, kind):
    workload, change = narrow(weight_scale, group)
    form = change.workload.model[0]
    assert form.scale.dtype == (kind or torch.float32)
    assert error(workload.call(), change.workload.call()) < 0.2
    if kind is torch.float16:
        groups = 48 * 64 // 32
        assert stored_bytes(form) == 48 * 64 // 2 + groups * 3


@pytest.mark.parametrize("backend", ["eager", "inductor", "onnxruntime", "openvino", "native"])
def test_every_backend_reads_half_scales(backend):
    workload, change = narrow(1.0)
    on = runtime.backend(backend)
    if reason := on.available():
        pytest.skip(reason)
    executable = on.lower(change.workload, threads=1)
    want, got = change.workload.call(), executable(*workload.inputs)
    assert error(want, torch.as_tensor(first(got))) < 1e-5


def test_an_artefact_of_float32_scales_is_still_built():
    """Edits recorded before scales had a dtype carry none."""
    new = forms.build(
        "WeightOnlyLinear", {"in_features": 64, "out_features": 4, "bits": 4, "group_size": 32}
    )
    assert new.scale.dtype == torch.float32
