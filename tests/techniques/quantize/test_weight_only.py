"""Weight-only: half-step bound per group, exact zeros, clipping that helps, ties refused, sizes."""

import pytest
import torch
from quant_nets import error, first, gpt2, llama
from torch import nn

from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.runtime.ops import dequantize_groups, pack_int4
from paredown.techniques.quantize.weight_only import WeightOnly, grouped
from paredown.workload import Workload


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


def test_tied_head_is_refused_and_untied_embedding_is_packed_on_request():
    workload = gpt2()
    technique = WeightOnly(embeddings=True)
    sites = technique.sites(workload, capture(workload))
    assert "shared with lm_head.weight" in sites.refused["transformer.wte:weight"]
    assert "shared with transformer.wte.weight" in sites.refused["lm_head:weight"]
    assert "transformer.wpe:weight" in sites.ok
    plain = WeightOnly().sites(workload, capture(workload))
    assert "embeddings=true" in plain.refused["transformer.wpe:weight"]


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
