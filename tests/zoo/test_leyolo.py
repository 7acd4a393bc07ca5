"""LeYOLO: layers as in the authors' files, what is not read is not run, detection end to end."""

import pytest
import torch
from zoo_nets import lively

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.nn import InvertedResidual, SlicedInvertedResidual
from paredown.nn.detection import Target, iou
from paredown.zoo.leyolo import LeYOLO, layers, leyolo, scaled, taps
from paredown.zoo.weights import load_weights, names


def small(**settings):
    torch.manual_seed(0)
    return LeYOLO(0.25, num_classes=3, **settings)


def test_the_files_layers():
    nano, large = layers(False), layers(True)
    assert (len(nano), len(large)) == (35, 42)
    kinds = [(i, row[1]) for i, row in enumerate(nano) if row[0] == "cat"]
    assert kinds == [(16, 9), (21, 4), (26, 19), (31, 14)]
    kinds = [(i, row[1]) for i, row in enumerate(large) if row[0] == "cat"]
    assert kinds == [(19, 11), (25, 5), (31, 23), (37, 17)]
    assert nano[14] == ("pool", 96, 5)
    assert [scaled(c, 1.33) for c in (16, 32, 64, 96, 576)] == [24, 48, 88, 128, 768]
    assert taps(False) == (24, 29, 34)


def test_blocks_that_nothing_reads_are_kept_but_not_run():
    with torch.device("meta"):
        net = leyolo("m")
        assert sorted(set(range(42)) - net.run) == [38, 39, 40, 41]
        maps = LeYOLO(1.33, True, features_only=True)(torch.empty(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(48, 8, 8), (88, 4, 4), (256, 2, 2)]
    # The authors' count has the 16 fixed bins of the boxes' distributions too.
    assert sum(p.numel() for p in net.parameters()) == 2_402_744 - 16
    assert len(leyolo("n").run) == 35


def test_every_cell_of_three_levels_answers():
    net, x = small().eval(), torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        boxes, scores = net(x)
    count = 8 * 12 + 4 * 6 + 2 * 3
    assert boxes.shape == (2, count, 4)
    assert scores.shape == (2, count, 3)
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert ((scores > 0) & (scores < 0.1)).all(), "objects are rare at first"
    raw = net.train()(x)
    assert [tuple(r.shape[1:]) for r in raw] == [(67, 8, 12), (67, 4, 6), (67, 2, 3)]


def squares():
    x = torch.zeros(2, 3, 64, 64)
    x[0, :, 8:40, 16:48] = 1
    x[1, 0, 32:60, 8:36] = 1
    targets = [
        Target(torch.tensor([[16.0, 8, 48, 40]]), torch.tensor([0])),
        Target(torch.tensor([[8.0, 32, 36, 60]]), torch.tensor([2])),
    ]
    return x, targets


def test_a_step_of_training_and_what_is_detected():
    net, (x, targets) = small(), squares()
    net.loss(net(x), targets).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]
    with pytest.raises(InputError, match="evaluation"):
        net.detect(x)
    found = net.eval().detect(x, least=0.0, most=4)
    assert [len(f.boxes) for f in found] == [4, 4]
    assert (found[0].scores.diff() <= 0).all()
    assert net.detect(x, least=0.9)[1].classes.tolist() == []


@pytest.mark.slow
def test_it_learns_to_find_squares():
    net, (x, targets) = small(), squares()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        net.loss(net(x), targets).backward()
        optimiser.step()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = None
    net(x)
    for found, target in zip(net.eval().detect(x, least=0.1), targets, strict=True):
        assert found.classes[0] == target.classes[0]
        assert iou(found.boxes[0], target.boxes[0]) > 0.8


def test_the_authors_names():
    net, other = zoo.create("leyolo-n-320"), zoo.create("leyolo-n-320")
    found = names(net, "authors")
    assert found["layers.0.conv.bias"] == "model.0.c.bias"
    assert found["layers.2.depthwise.conv.weight"] == "model.2.layers.0.c.weight"
    assert found["layers.2.project.norm.weight"] == "model.2.layers.2.weight"
    assert found["layers.27.expand.conv.weight"] == "model.27.layers.0.c.weight"
    assert found["layers.14.enter.norm.bias"] == "model.14.cv1.bn.bias"
    assert found["head.classes.2.1.conv.weight"] == "model.35.cv3.2.1.conv.weight"
    assert found["head.boxes.0.3.bias"] == "model.35.cv2.0.3.bias"
    released = {found[k]: v for k, v in net.state_dict().items()}
    released["model.35.dfl.conv.weight"] = torch.zeros(1, 16, 1, 1)
    load_weights(other, released)
    assert torch.equal(other.layers[33].project.conv.weight, net.layers[33].project.conv.weight)


def test_what_it_refuses():
    with torch.device("meta"), pytest.raises(InputError, match="multiples of 32"):
        small()(torch.empty(1, 3, 64, 72))
    with pytest.raises(UnknownName, match="n"):
        leyolo("x")


def test_its_blocks_run_in_slices_too():
    """Biases in front of norms are folded with them."""
    torch.manual_seed(0)
    block = lively(InvertedResidual(8, 8, inner=24, bias=True))
    x = torch.randn(2, 8, 6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(SlicedInvertedResidual(block, 3)(x), block(x))
