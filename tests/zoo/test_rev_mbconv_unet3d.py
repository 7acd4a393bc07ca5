"""The reversible 3-D U-Net: inputs come back, gradients are the twin's, memory is flat in depth."""

import pytest
import torch
from torch import nn

from paredown import zoo
from paredown.errors import InputError
from paredown.measure.memory import torch_peak
from paredown.nn.drop import DropPath
from paredown.nn.reversible import ReversibleBlock, ReversibleSequence
from paredown.nn.segment import dice, dice_cross_entropy
from paredown.zoo.rev_mbconv_unet3d import MBConv3d


def small(**settings):
    return zoo.create("rev-mbconv-unet3d", **{"width": 8, "levels": 3, **settings})


def chain(blocks, *, store=False, channels=8):
    half = channels // 2
    made = (ReversibleBlock(MBConv3d(half), MBConv3d(half)) for _ in range(blocks))
    return ReversibleSequence(made, store=store)


@pytest.mark.parametrize("sides", [(1, 3, 17), (5, 4, 9)])
def test_inputs_come_back_from_outputs(sides):
    torch.manual_seed(0)
    stage = chain(3)
    x = torch.randn(2, 8, *sides)
    with torch.inference_mode():
        y = stage(x)
        assert (y - x).abs().max() > 0.1
        torch.testing.assert_close(stage.inverse(y), x, atol=1e-5, rtol=0)


def gradients(net, x):
    x = x.clone().requires_grad_()
    for p in net.parameters():
        p.grad = None
    out = net(x)
    out.square().mean().backward()
    return [out.detach(), x.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_twin_that_stores(dtype):
    torch.manual_seed(0)
    net, twin = small().to(dtype), small(reversible=False).to(dtype)
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 4, 9, 12, 7, dtype=dtype)
    for a, b in zip(gradients(net, x), gradients(twin, x), strict=True):
        near = 1e-4 if dtype is torch.float32 else 1e-11
        assert (a - b).abs().max() <= near * b.abs().max()


def test_frozen_and_shared_parameters_keep_their_gradients():
    torch.manual_seed(0)
    inner = MBConv3d(4)
    one = ReversibleSequence([ReversibleBlock(inner, inner)])
    two = ReversibleSequence([ReversibleBlock(inner, inner)], store=True)
    inner[0].weight.requires_grad_(False)
    x = torch.randn(1, 8, 4, 4, 4)
    for a, b in zip(gradients(one, x), gradients(two, x), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_second_run_rounds_as_the_first_did():
    torch.manual_seed(0)
    one, two = chain(2), chain(2, store=True)
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 8, 6, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found, want = gradients(one, x), gradients(two, x)
    for a, b in zip(found, want, strict=True):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


def peak(blocks, **settings):
    """Highest bytes of one training step: activations, gradients and what runs need meanwhile."""
    torch.manual_seed(0)
    net, x = small(blocks=blocks, **settings), torch.randn(1, 4, 16, 24, 24)

    def step():
        net.zero_grad(set_to_none=True)
        net(x).square().mean().backward()

    step()
    net.zero_grad(set_to_none=True)
    return torch_peak(step)


def test_activation_memory_does_not_grow_with_depth():
    flat, grows = [peak(d) for d in (2, 5)], [peak(d, reversible=False) for d in (2, 5)]
    # Gradients of the added blocks' weights are all that is added.
    assert flat[1] < 1.02 * flat[0]
    assert grows[1] > 2 * grows[0] > 4 * flat[0]


def stored(net, x):
    """Bytes that autograd keeps from the forward pass, parameters left out."""
    known = {p.data_ptr() for p in net.parameters()}
    held = {}

    def keep(t):
        if t.data_ptr() not in known:
            held[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = net(x)
    assert out.requires_grad
    return sum(held.values())


def test_what_is_stored_is_the_last_output_only():
    x = torch.randn(1, 8, 6, 6, 6)
    assert {stored(chain(n), x) for n in (1, 3, 7)} == {x.nbytes}
    assert stored(chain(3, store=True), x) > 20 * x.nbytes


@pytest.mark.parametrize("inner", [nn.BatchNorm3d(2), nn.Dropout(0.1), DropPath(0.2)])
def test_what_does_not_compute_the_same_twice_is_refused(inner):
    with pytest.raises(InputError, match=f"g of a reversible block holds {type(inner).__name__}"):
        ReversibleBlock(nn.Identity(), nn.Sequential(inner))


def test_odd_channels_and_flat_inputs_are_refused():
    with pytest.raises(InputError, match="two halves, got 3"):
        chain(1)(torch.zeros(1, 3, 2, 2, 2))
    with pytest.raises(InputError, match="width is even, got 7"):
        small(width=7)
    with pytest.raises(InputError, match=r"depth, height, width\), got \(1, 4, 8, 8\)"):
        small()(torch.zeros(1, 4, 8, 8))


def test_scores_have_the_size_of_the_volume():
    with torch.device("meta"):
        net = zoo.create("rev-mbconv-unet3d").eval()
        assert net(torch.empty(1, 4, 155, 240, 240)).shape == (1, 3, 155, 240, 240)


def test_it_learns_to_find_a_ball():
    torch.manual_seed(0)
    net = small(num_classes=1, in_channels=1)
    axis = torch.arange(12.0)
    d, h, w = torch.meshgrid(axis, axis, axis, indexing="ij")
    target = (((d - 4) ** 2 + (h - 6) ** 2 + (w - 7) ** 2) < 12).float()[None, None]
    x = target + 0.5 * torch.randn_like(target)
    steps = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(25):
        steps.zero_grad()
        loss = dice_cross_entropy(net(x), target)
        loss.backward()
        steps.step()
    assert dice((net(x) > 0).float(), target).item() > 0.9


def test_dice_of_a_match_is_one_and_of_a_miss_is_none():
    t = torch.zeros(2, 2, 3, 3, 3)
    t[:, 0, 0] = 1
    t[:, 1, 1] = 1
    torch.testing.assert_close(dice(t, t), torch.ones(2))
    assert dice(t, t.flip(1)).max() < 1e-4
    with pytest.raises(InputError, match="differ in shape"):
        dice(t, t[:, :1])
    assert dice_cross_entropy((t - 0.5) * 100, t).item() == pytest.approx(0, abs=1e-5)
