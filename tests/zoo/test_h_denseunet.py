"""H-DenseUNet: slices and volumes are the same data, branches meet where the paper says."""

import pytest
import torch
import torch.nn.functional as F

from paredown import zoo
from paredown.errors import InputError
from paredown.zoo.h_denseunet import (
    DenseUNet,
    HDenseUNet,
    denseunet167,
    to_volume,
    volume_loss,
    with_neighbours,
)

DECODER = (12, 12, 10, 8, 6)


def narrow(blocks=(1, 1, 2, 1), in_channels=3, **settings):
    return DenseUNet(
        blocks, in_channels=in_channels, growth=4, stem=8, **{"decoder": DECODER, **settings}
    )


def hybrid():
    torch.manual_seed(0)
    solid = narrow((1, 1, 1, 1), in_channels=4, dims=3)
    return HDenseUNet(flat=narrow(), solid=solid).eval()


def test_slices_back_in_their_volume_are_the_volume():
    x = torch.randn(2, 1, 5, 3, 4)
    slices = with_neighbours(x)
    assert slices.shape == (10, 3, 3, 4)
    assert torch.equal(to_volume(slices[:, 1:2], 2), x)
    assert torch.equal(to_volume(slices[:, :1], 2)[:, :, 1:], x[:, :, :-1])
    assert torch.equal(to_volume(slices[:, 2:], 2)[:, :, :-1], x[:, :, 1:])
    # The ends stand in for the neighbours that they lack.
    assert torch.equal(slices[5, 0], slices[5, 1])
    assert torch.equal(slices[9, 2], slices[9, 1])


def test_two_channels_keep_their_order_among_neighbours():
    x = torch.randn(1, 2, 4, 2, 2)
    slices = with_neighbours(x)
    assert torch.equal(slices[2, 0:2], x[0, :, 1])
    assert torch.equal(slices[2, 4:6], x[0, :, 3])


def test_the_volume_and_250_times_the_scores_are_what_the_3d_branch_sees():
    net, seen = hybrid(), {}
    net.solid.stem.register_forward_pre_hook(lambda _, a: seen.update(x=a[0]))
    x = torch.randn(1, 1, 4, 32, 32)
    with torch.inference_mode():
        net(x)
        scores = torch.cat([net.flat(s[None]) for s in with_neighbours(x)])
    assert torch.equal(seen["x"][:, :1], x)
    want = 250 * to_volume(scores, 1)
    torch.testing.assert_close(seen["x"][:, 1:], want, atol=1e-2, rtol=1e-4)


def test_features_of_both_branches_are_added_before_the_fusion():
    net = hybrid()
    x = torch.randn(1, 1, 4, 32, 32)
    with torch.inference_mode():
        found = net(x)
        flat, scores = (to_volume(t, 1) for t in net.flat.features_and_scores(with_neighbours(x)))
        deep = net.solid.decode(net.solid.encode(torch.cat((x, 250 * scores), 1)))
        torch.testing.assert_close(found, net.head(net.fuse(flat + deep)))
    assert found.shape == (1, 3, 4, 32, 32)


def test_published_shapes_of_both_branches():
    with torch.device("meta"):
        net = HDenseUNet().eval()
        flat = net.flat.encode(torch.empty(8, 3, 224, 224))
        solid = net.solid.encode(torch.empty(1, 4, 8, 224, 224))
        assert [m.shape[1] for m in flat] == [96, 384, 768, 2112, 2208]
        assert [m.shape[-1] for m in flat] == [112, 56, 28, 14, 7]
        assert solid[-1].shape == (1, 504, 2, 7, 7)
        assert net.solid.decode(solid).shape == (1, 64, 8, 224, 224)
        parts = [sum(p.numel() for p in m.parameters()) for m in (net.flat, net.solid)]
        deep = DenseUNet(in_channels=1, dims=3, decoder=(768, 384, 96, 96, 64))
    # The 3-D head has 195 parameters, whose scores the hybrid does not use.
    assert parts == [44_862_339, 15_977_467 - 195]
    assert sum(p.numel() for p in deep.parameters()) > 1.5 * sum(parts)


def test_skips_are_sums_of_the_stand_alone_network():
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = denseunet167()
        assert whole.across.weight.shape == (2208, 2112, 1, 1)
    # Decoder widths of the encoder's own maps: 14 channels behind the second block, 12, 8.
    net = narrow(decoder=(10, 12, 8, 8, 6), skips=True).eval()
    maps = net.encode(torch.randn(1, 3, 64, 32))
    widths = [m.shape[1] for m in maps]
    assert widths[1:3] == [12, 10]
    with torch.inference_mode():
        alone = net.up[0](F.interpolate(maps[-1], scale_factor=2.0) + net.across(maps[-2]))
        seen = {}
        net.up[1].register_forward_pre_hook(lambda _, a: seen.update(x=a[0]))
        net.decode(maps)
        want = F.interpolate(alone, scale_factor=2.0) + maps[-3]
    torch.testing.assert_close(seen["x"], want)


def test_the_loss_weighs_classes_and_leaves_the_end_slices_out():
    torch.manual_seed(0)
    scores, targets = torch.randn(2, 3, 5, 4, 4), torch.randint(3, (2, 5, 4, 4))
    loss = volume_loss(scores, targets)
    shares = scores.log_softmax(1)
    want = 0.0
    for label, weight in enumerate((0.78, 0.65, 8.57)):
        hit = targets[:, 1:-1] == label
        want -= weight * shares[:, label, 1:-1][hit].sum()
    torch.testing.assert_close(loss, want / targets[:, 1:-1].numel())
    targets[:, 0], targets[:, -1] = 2, 0
    assert torch.equal(volume_loss(scores, targets), loss)
    with pytest.raises(InputError, match="3 weights for 2 classes"):
        volume_loss(scores[:, :2], targets)


def test_sizes_it_cannot_take_are_refused():
    with pytest.raises(InputError, match=r"depth of at least 4 in steps of 4.*got 6x32x32"):
        hybrid()(torch.zeros(1, 1, 6, 32, 32))
    with pytest.raises(InputError, match="multiples of 32"), torch.device("meta"):
        zoo.create("denseunet167")(torch.zeros(1, 3, 48, 64))
