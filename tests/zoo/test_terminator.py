"""Terminator: the operator in a loop, exact statistics, slow networks that see no input."""

import pytest
import torch

from paredown import zoo
from paredown.errors import InputError
from paredown.nn.hyper_kernel import ContextMagnet, Magnet
from paredown.zoo.terminator import SFNEBlock, Terminator, group_standardised, standardised, zzw


def small(**settings):
    torch.manual_seed(0)
    return Terminator(image_size=10, **settings).eval()


def test_the_operator_in_a_loop():
    torch.manual_seed(0)
    kernel, x = torch.randn(3, 2, 2), torch.randn(4, 3, 2, 2)
    want = torch.empty_like(x)
    for b in range(4):
        for c in range(3):
            for i in range(2):
                for j in range(2):
                    weight = kernel[c, i, j] * x[b, c, i, j]
                    want[b, c, i, j] = weight * x[b, c, i, j]
    torch.testing.assert_close(zzw(kernel, x), want)


def test_standardised_maps_have_no_mean_and_unit_variance():
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(4, 24, 6, 6)
    out = standardised(x, (2, 3))
    assert out.mean((2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(out.var((2, 3), correction=0), torch.ones(4, 24))
    want = torch.nn.functional.instance_norm(x)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-4)
    groups = group_standardised(x, 12)
    torch.testing.assert_close(groups[:, 2:4], out[:, 2:4])
    batch = torch.nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(groups[:, :2], batch[:, :2], atol=1e-5, rtol=1e-4)


def test_kernels_of_coordinates_know_no_input_and_local_ones_do():
    torch.manual_seed(0)
    slow, local = Magnet(2, 5, 8, 6, 2), ContextMagnet(3, 8, 6, 2)
    assert slow().shape == (6, 25)
    assert torch.equal(slow(), slow())
    one, two = torch.randn(2, 6, 7, 7), torch.randn(2, 6, 7, 7)
    assert local(one).shape == (6, 1, 3, 3)
    assert not torch.allclose(local(one), local(two))
    # One kernel for the whole batch, whatever its order.
    torch.testing.assert_close(local(one), local(one.flip(0)))


def test_a_block_widens_and_reads_earlier_ones_again():
    torch.manual_seed(0)
    block = SFNEBlock(12, 6, 2, 3, earlier=2)
    x, early, earlier = torch.randn(2, 12, 6, 6), torch.randn(2, 6, 6, 6), torch.randn(2, 3, 6, 6)
    assert block(x, early, earlier).shape == (2, 36, 6, 6)
    assert block.squeeze.weight.shape == (36, 144, 1, 1)
    with pytest.raises(InputError, match="10 channels do not divide into 12 groups"):
        SFNEBlock(5, 6, 2, 2)


def test_the_published_widths():
    with torch.device("meta"):
        net = zoo.create("terminator")
        widths = [b.squeeze.out_channels for b in net.blocks]
        assert widths == [12, 36, 72, 144, 288]
        assert [b.squeeze.in_channels for b in net.blocks] == [30, 120, 396, 792, 1728]
        assert [len(b.slow.mixes) for b in net.blocks] == [3, 2, 2, 2, 2]


def test_the_slow_loss_compares_every_pair_of_kernels():
    net = small()
    kernels = [b.kernel() for b in net.blocks]
    want = 0.0
    for i in range(5):
        for j in range(i):
            copies = kernels[i].shape[0] // kernels[j].shape[0]
            tiled = torch.cat([kernels[j]] * copies)
            want += ((tiled - kernels[i]) ** 2).mean()
    torch.testing.assert_close(net.slow_loss(), want)
    assert net.slow_loss() > 0


def test_it_has_no_way_around_a_block():
    net = small()
    with torch.no_grad():
        net.blocks[4].squeeze.weight.zero_()
        out = net(torch.randn(3, 3, 10, 10))
    assert torch.allclose(out, out[:1].expand(3, -1), atol=1e-6)
