"""Forms: each equals an integer reference, survives its configuration, and works inside bf16."""

import pytest
import torch
from torch.nn import functional as F

from paredown.errors import ArtefactError, InputError
from paredown.runtime import forms
from paredown.runtime.ops import pack_int4
from paredown.runtime.quantized import (
    DynamicLinear,
    QuantConv,
    QuantLinear,
    WeightOnlyEmbedding,
    WeightOnlyLinear,
)


def fill(form: torch.nn.Module) -> torch.nn.Module:
    """Random integers and sensible scales in every tensor of a form."""
    for name, t in (*form.named_parameters(), *form.named_buffers()):
        if t.dtype == torch.int8:
            t.data.random_(-127, 128)
        elif name == "zero" and t.dtype == torch.uint8:
            t.random_(0, 2 ** getattr(form, "bits", 8))
        elif t.dtype == torch.uint8:
            t.data.random_(0, 256)
        elif name == "in_zero":
            t.fill_(113)
        elif t.is_floating_point():
            t.data.uniform_(0.01, 0.05)
    return form.eval()


CASES = {
    "linear": (lambda: QuantLinear(17, 5), (3, 17)),
    "linear no bias": (lambda: QuantLinear(63, 1, None), (1, 63)),
    "per tensor": (lambda: QuantLinear(3, 4, per_channel=False), (2, 3)),
    "conv1d": (lambda: QuantConv((6, 3, 3), (1,), (1,), (1,)), (2, 3, 9)),
    "conv2d": (lambda: QuantConv((6, 4, 3, 3), (2, 1), (1, 0), (1, 2)), (2, 4, 9, 11)),
    "depthwise": (lambda: QuantConv((8, 1, 3, 3), (1, 1), "same", (1, 1), 8), (1, 8, 7, 7)),
    "grouped": (lambda: QuantConv((6, 2, 1, 1), (1, 1), (0, 0), (1, 1), 2, None), (1, 4, 5, 5)),
    "conv3d": (lambda: QuantConv((4, 2, 1, 3, 3), (1,) * 3, (0, 1, 1), (1,) * 3), (1, 2, 3, 5, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_static_form_equals_the_integer_layer(case):
    """Float output == int64 accumulation x scales + bias, to float32 rounding."""
    torch.manual_seed(0)
    make, shape = CASES[case]
    form = fill(make())
    x = torch.randn(shape)
    q = torch.clamp(torch.round(x / form.in_scale) + form.in_zero, 0, 255).long()
    q = q - form.in_zero
    w = form.weight.long()
    if isinstance(form, QuantLinear):
        total = q.reshape(-1, q.shape[-1]) @ w.t()
        channels = [1, -1]
    else:
        conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
        total = conv(q, w, None, form.stride, form.padding, form.dilation, form.groups)
        channels = [1, -1] + [1] * (x.ndim - 2)
    scale = (form.scale.double() * form.in_scale.double()).reshape(channels)
    want = total.double() * scale
    if form.bias is not None:
        want = want + form.bias.double().reshape(channels)
    got = form(x)
    # Float32 sums of exact products: a few units in the last place of the largest partial sum.
    room = 1e-6 * float(want.abs().max()) * q.shape[1]
    assert float((got.double().reshape(want.shape) - want).abs().max()) <= room


def test_accumulated_integers_are_exact_bit_for_bit():
    """With unit scales all sums are integers below 2**24, so float32 rounds nothing."""
    torch.manual_seed(0)
    form = fill(QuantConv((6, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1, None))
    form.scale.fill_(1.0)
    form.in_scale.fill_(1.0)
    x = torch.randint(-113, 143, (2, 4, 8, 8)).float()
    want = F.conv2d(x.long(), form.weight.long(), None, 1, 1)
    assert torch.equal(form(x).long(), want)


def test_dynamic_form_equals_the_integer_layer():
    torch.manual_seed(0)
    form = fill(DynamicLinear(17, 5))
    x = torch.randn(3, 17)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    q = torch.clamp(torch.round(x / scale) + zero, 0, 255).long() - zero
    want = (q @ form.weight.long().t()).double() * form.scale.double() * scale
    want = want + form.bias.double()
    assert torch.allclose(form(x).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [0, 32])
def test_weight_only_forms_dequantize_the_same_matrix(bits, group):
    torch.manual_seed(0)
    linear = fill(WeightOnlyLinear(64, 5, bits, group, None))
    table = fill(WeightOnlyEmbedding(5, 64, bits, group))
    table.load_state_dict(linear.state_dict())
    w = table(torch.arange(5))
    x = torch.randn(3, 64)
    assert torch.equal(linear(x), F.linear(x, w))


FORMS = {
    **{k: v[0] for k, v in CASES.items()},
    "dynamic": lambda: DynamicLinear(7, 3),
    "int4": lambda: WeightOnlyLinear(32, 3, 4, 32),
    "odd int4": lambda: WeightOnlyLinear(7, 3, 4),
    "embedding": lambda: WeightOnlyEmbedding(9, 6, 4),
}


@pytest.mark.parametrize("case", FORMS)
def test_config_rebuilds_the_structure(case):
    form = fill(FORMS[case]())
    again = forms.build(type(form).__name__, form.config())
    assert {k: (v.shape, v.dtype) for k, v in again.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in form.state_dict().items()
    }
    again.load_state_dict(form.state_dict(), assign=True)
    assert again.config() == form.config()


@pytest.mark.parametrize("case", CASES)
def test_static_forms_take_bf16(case):
    make, shape = CASES[case]
    form = fill(make())
    x = torch.randn(shape)
    out = form(x.bfloat16())
    assert out.dtype == torch.bfloat16
    want = form(x.bfloat16().float())
    assert float((out.float() - want).norm() / want.norm()) < 0.02


def test_packed_sizes():
    rows, columns = 64, 256
    eight = WeightOnlyLinear(columns, rows, 8, 128, None).state_dict()
    four = WeightOnlyLinear(columns, rows, 4, 128, None).state_dict()
    held = [sum(t.nbytes for t in s.values()) for s in (eight, four)]
    assert rows * columns * 4 / held[0] > 3.7
    assert rows * columns * 4 / held[1] > 7.0


def test_refusals():
    with pytest.raises(InputError, match="does not divide"):
        WeightOnlyLinear(33, 4, 8, 32)
    with pytest.raises(InputError, match="4 or 8 bits"):
        WeightOnlyLinear(32, 4, 3)
    with pytest.raises(ArtefactError, match="unknown form"):
        forms.build("Sequential", {})
    with pytest.raises(ArtefactError, match="unknown hook"):
        forms.attach("eval", torch.nn.Identity(), {})


def test_pack_rejects_vectors():
    with pytest.raises(InputError, match="rows, columns"):
        pack_int4(torch.zeros(4, dtype=torch.uint8))
