"""Exact parts of the few-bit transformers' cards: the task, the fold, the bench of quantizers."""

import torch

from paredown.analysis import vit_quantizers as vq
from paredown.papers.cards import _vits, few_bits, vit_survey
from paredown.workload import Workload
from paredown.zoo.vit import ViT


def untrained():
    torch.manual_seed(0)
    model = ViT(24, 2, 3, 10, 1, image_size=16, patch=4, mlp_ratio=2).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.norm1.bias)
    x = torch.randn(4, 1, 16, 16)
    return Workload(model, (x,), calibration=[x, torch.randn(4, 1, 16, 16)])


def test_spreading_channels_keeps_the_function_and_the_caller():
    workload = untrained()
    want = workload.call()
    wide = _vits.spread(workload, 0)
    assert torch.allclose(wide.call(), want, atol=1e-5)
    assert torch.equal(workload.call(), want)
    before, after = (vit_survey.tensors(w)["norm"] for w in (workload, wide))
    assert vq.profile(after).channel_ratio > 2 * vq.profile(before).channel_ratio


def test_the_fold_is_exact_in_the_card_too():
    changed, off = few_bits.folded(_vits.spread(untrained(), 0))
    assert changed == 0
    assert off < 1e-12
    floats, packed = few_bits.sizes()
    assert 6 < floats / packed < 8


def test_the_bench_ranks_what_each_method_is_made_for():
    found = vit_survey.tensors(_vits.spread(untrained(), 0))
    assert found["softmax"].shape[-1] == 17
    assert torch.allclose(found["softmax"].sum(-1), torch.ones(()), atol=1e-5)
    rows = {(r.method, r.place, r.bits): r.decibels for r in vq.bench(found)}
    assert rows["by channel, folded", "norm", 4] > rows["power-of-two factor", "norm", 4]
    assert rows["power-of-two factor", "norm", 4] > rows["min-max", "norm", 4] + 3
    assert rows["least error", "gelu", 4] >= rows["min-max", "gelu", 4]
    for (method, place, bits), decibels in rows.items():
        if method == "min-max" and bits > 3:
            assert decibels > 5 * bits - 12, (place, bits)
    two = torch.cat([0.01 * torch.rand(99, 17), torch.eye(17)])
    found_two = {r.method: r.decibels for r in vq.bench({"softmax": two}, (4,))}
    assert found_two["twin"] > found_two["min-max"] + 6
    skewed = torch.rand(100, 17) ** 40
    assert vq.profile(skewed).power_law > 0.8
    assert vq.signal_to_noise(skewed, skewed) == float("inf")


def test_every_method_of_the_grid_is_another_setting():
    ways = [frozenset(k.items()) for k in vit_survey.METHODS.values()]
    assert len(set(ways)) == len(ways)
    errors = vit_survey.largest_errors()
    assert set(errors) == {
        "softmax, shift", "softmax, poly", "GELU, shift", "GELU, poly", "layer norm"
    }  # fmt: skip
