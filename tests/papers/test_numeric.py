"""Exact parts of the whitepaper's card: integer arithmetic, zero, size, the blown-up channel."""

import pytest
import torch

from paredown.papers.cards import _qat, _task, numeric
from paredown.runtime import ops
from paredown.techniques.quantize.fold_norm import FoldNorm
from paredown.techniques.quantize.static_int8 import StaticInt8


def test_integer_product_equals_a_64_bit_reference():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (63, 65), dtype=torch.int8, generator=generator)
    b = torch.randint(-127, 128, (65, 17), dtype=torch.int8, generator=generator)
    pad = torch.nn.functional.pad
    # _int_mm wants sizes in multiples of eight; zeros change no sum.
    ours = torch._int_mm(pad(a, (0, 7, 0, 1)), pad(b, (0, 7, 0, 7)))[:63, :17]
    assert torch.equal(ours.long(), a.long() @ b.long())


def test_fake_quantized_layer_equals_its_integers():
    torch.manual_seed(0)
    workload = numeric.dense("linear")
    form = numeric.through(workload, StaticInt8()).model.layers[0]
    x = torch.randn(17, 1024)
    q = ops.quantize(x, form.in_scale, form.in_zero, 0, 255, -1)
    exact = (q.long() - form.in_zero.long()) @ form.weight.long().T
    integer = exact.double() * form.in_scale.double() * form.scale.double() + form.bias.double()
    with torch.inference_mode():
        torch.testing.assert_close(form(x).double(), integer, rtol=1e-4, atol=1e-4)


def test_zero_maps_to_zero():
    form = numeric.through(numeric.dense("linear"), StaticInt8()).model.layers[1]
    zeros = torch.zeros(3, 1024)
    q = ops.quantize(zeros, form.in_scale, form.in_zero, 0, 255, -1)
    assert torch.equal(ops.dequantize(q, form.in_scale, form.in_zero, -1, torch.float32), zeros)


def test_int8_is_four_times_smaller():
    plain = numeric.dense("convolution")
    ratio = numeric.stored_bytes(plain.model) / numeric.stored_bytes(
        numeric.through(plain, StaticInt8()).model
    )
    assert 3.9 < ratio < 4.0


def test_blowing_up_a_channel_keeps_the_function_and_breaks_per_layer_scales():
    torch.manual_seed(0)
    model = numeric.network()
    for _ in range(3):
        model(torch.randn(8, 1, 32, 32))
    work = numeric.as_workload(model, 32)
    x = torch.cat(list(work.calibration))
    with torch.inference_mode():
        before = model(x)
        numeric.blow_up(model)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
        floats = numeric.through(work, FoldNorm())
        errors = {
            kept: (numeric.through(floats, StaticInt8(per_channel=kept)).model(x) - before).norm()
            for kept in (True, False)
        }
    assert errors[False] > 2 * errors[True]


@pytest.mark.parametrize("bits", [4, 8])
def test_fake_weights_lie_on_the_grid_and_pass_gradients(bits):
    limit = 2 ** (bits - 1) - 1
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    fake = _qat.FakeWeight(bits)(weight)
    scale = weight.detach().abs().flatten(1).amax(1).reshape(-1, 1, 1, 1) / limit
    steps = fake.detach() / scale
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert steps.abs().max() <= limit + 1e-3
    fake.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_prepared_network_equals_post_training_int8():
    torch.manual_seed(0)
    work = numeric.as_workload(numeric.network(), 32)
    floats = numeric.through(work, FoldNorm())
    x = torch.cat(list(work.calibration))
    with torch.inference_mode():
        ours = _qat.prepare(floats, 8)(x)
        theirs = numeric.through(floats, StaticInt8(smooth=False, correct=False)).model(x)
        plain = floats.model(x)
    scale = plain.abs().max()
    # The two round ties differently, which may move a value by one step.
    assert (ours - theirs).abs().max() <= 0.02 * scale
    assert (ours - plain).abs().max() > 0


def test_seeds_that_agree_are_not_taken_as_exact():
    check = _task.mean_check("drop", [0.0, 0.0, 0.0], "<=", 0.0)
    assert check.power == 1 / 1834
    assert check.outcome == "undecided"
    assert _task.mean_check("drop", [0.0, 0.0, 0.0], "<=", 0.01).outcome == "holds"
