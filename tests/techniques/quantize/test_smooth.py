"""Smoothing leaves the float function, evens ranges out; corrected biases leave no mean error."""

import pytest
import torch
from quant_nets import NETS, error, first, mobile
from torch import nn

from paredown import recipe
from paredown.graph.capture import capture
from paredown.recipe import parse_inline
from paredown.technique import Sites
from paredown.techniques.quantize import smooth
from paredown.techniques.quantize.bias_correction import mean_errors
from paredown.techniques.quantize.dynamic_int8 import DynamicInt8
from paredown.techniques.quantize.observe import Peaks
from paredown.techniques.quantize.sensitivity import sensitivity
from paredown.techniques.quantize.static_int8 import StaticInt8
from paredown.workload import Workload


def spread(workload: Workload, largest: float = 30.0) -> Workload:
    """Channels after each block's norms scaled apart, the next weights undoing it."""
    generator = torch.Generator().manual_seed(0)
    workload = workload.own()
    with torch.no_grad():
        for block in workload.model.blocks:
            for norm, linear in ((block.norm1, block.qkv), (block.norm2, block.fc1)):
                f = largest ** (2 * torch.rand(len(norm.weight), generator=generator) - 1)
                norm.weight.mul_(f)
                norm.bias.normal_(generator=generator).mul_(f)
                linear.weight.div_(f)
    return workload


def decided(workload: Workload, **knobs):
    technique = StaticInt8(**knobs)
    sites = technique.sites(workload, capture(workload))
    return technique, sites, technique.decide(workload, sites)


@pytest.fixture(scope="module")
def vit():
    return spread(NETS["vit"]())


@pytest.mark.parametrize(("cast", "near"), [("", 1e-5), ("bf16", 2e-2)])
def test_smoothing_alone_computes_the_same(vit, cast, near):
    workload = recipe.run(parse_inline(cast), vit).workload if cast else vit
    technique, sites, decisions = decided(workload, correct=False)
    assert len(decisions.values["smoothed"]) == 2 * len(vit.model.blocks)
    # With no site every linear behind a norm stays in float and takes the factors in.
    floats = technique.rewrite(workload, Sites((), sites.refused), decisions).workload
    path = next(iter(decisions.values["smoothed"]))
    norms = [w.model.get_submodule(path).weight for w in (workload, floats)]
    assert not torch.allclose(*norms, rtol=0.5)
    assert error(workload.call(), floats.call()) < near


def test_what_a_rounded_norm_leaves_over_goes_into_the_weights_exactly():
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(8).bfloat16(), nn.Linear(8, 5).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    norm.weight.data[0] = 0.0
    f = torch.logspace(-2, 2, 8, dtype=torch.float64)
    new = smooth.folded(norm, f)
    weight, offset = smooth.taken_up(layer, norm, new)
    # The norm's outputs before and after, in float64 with the parameters as they are held.
    unit = torch.randn(16, 8, dtype=torch.float64)
    before = unit * norm.weight.double() + norm.bias.double()
    after = unit * new["weight"].double() + new["bias"].double()
    want = before @ layer.weight.T
    assert torch.allclose(after @ weight.T + offset, want, rtol=1e-12, atol=1e-12)
    assert new["bias"][0] == norm.bias[0]


def test_a_weight_that_would_round_to_zero_stays():
    norm = nn.LayerNorm(2).half()
    norm.weight.data = torch.tensor([1e-6, 1.0], dtype=torch.half)
    new = smooth.folded(norm, torch.tensor([1e3, 1e3], dtype=torch.float64))
    assert new["weight"][0] == norm.weight[0]
    assert new["weight"][1] == torch.tensor(1e-3, dtype=torch.half)


def test_factors_even_out_spread_columns_and_leave_even_ones():
    torch.manual_seed(0)
    x, weight = torch.randn(512, 16), torch.randn(32, 16)
    f = torch.logspace(-2, 2, 16)

    def peaks(rows):
        seen = Peaks()
        seen.add(rows)
        return seen.sides()

    found = smooth.factors(peaks(x * f), [weight / f])
    assert found is not None
    now = (x * f / found).abs().amax(0)
    assert now.max() / now.min() < 10 < f.max() / f.min()
    one = torch.ones(512, 16)
    assert smooth.factors(peaks(one), [one[:32]]) is None


def test_expected_error_is_that_of_rounding():
    torch.manual_seed(0)
    x, weight = torch.randn(4096, 24).clamp(-3, 3), torch.randn(40, 24)
    step, steps = x.abs().max() / 127, weight.abs().amax(1, keepdim=True) / 127
    rounded = (x / step).round() * step @ ((weight / steps).round() * steps).T
    off = float((rounded - x @ weight.T).square().sum(1).mean())
    expected = smooth.expected_error(
        x.abs().amax(0).double(), x.square().mean(0).double(), weight.double(), 127
    )
    assert expected == pytest.approx(off, rel=0.1)


def test_spread_channels_lose_less(vit):
    want = vit.call()
    off = {}
    for flag in (True, False):
        technique, sites, decisions = decided(vit, smooth=flag, correct=False)
        off[flag] = error(want, technique.rewrite(vit, sites, decisions).workload.call())
    assert off[True] < 0.5 * off[False]


@pytest.mark.parametrize("net", ["mobile", "vit"])
def test_corrected_biases_leave_no_mean_error(net, vit):
    workload = vit if net == "vit" else recipe.run(parse_inline("fold-norm"), mobile()).workload
    means = {}
    for flag in (True, False):
        technique, sites, decisions = decided(workload, correct=flag, percentile=99.0)
        made = technique.rewrite(workload, sites, decisions).workload.model
        at = [s.partition(":")[0] for s in sites.ok]
        divided = {
            path: smooth.ratio(
                workload.model.get_submodule(norm),
                {"weight": decisions.tensors[f"{norm}.weight"]},
            ).float()
            for norm, linears in decisions.values["smoothed"].items()
            for path in linears
        }
        errors = mean_errors(workload, {p: made.get_submodule(p) for p in at}, divided)
        assert set(errors) == set(at)
        means[flag] = max(float(e.abs().max()) for e in errors.values())
    assert means[True] < 1e-5 < 1e-3 < means[False]


def test_dynamic_ranges_gain_without_data(vit):
    bare = Workload(vit.model, vit.inputs)
    want, off = vit.call(), {}
    for flag in (True, False):
        technique = DynamicInt8(smooth=flag)
        off[flag] = error(want, quantized(technique, bare).call())
    assert off[True] < 0.6 * off[False]


def quantized(technique, workload):
    return technique.apply(workload, technique.sites(workload, capture(workload))).workload


def test_one_site_alone_behind_a_smoothed_norm_is_judged_fairly(vit):
    technique, sites, _ = decided(vit)
    losses = sensitivity(vit, technique, sites, items=2)
    assert max(losses.values()) < 0.05
    assert first(vit.call()).isfinite().all()
