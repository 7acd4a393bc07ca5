"""NASNet-A: what a cell puts out, where sizes halve, and drop path by schedule."""

import pytest
import torch

from paredown.errors import InputError, UnknownName
from paredown.zoo.nasnet import NASNet, NormalCell, ReductionCell, nasnet


def small(**settings):
    torch.manual_seed(0)
    return NASNet(1, 96, 5, 1, stem=8, imagenet=False, **settings)


def test_cells_put_out_six_and_four_times_their_filters():
    x = torch.randn(2, 8, 7, 9)
    assert NormalCell(8, 8, 4)(x, x).shape == (2, 24, 7, 9)
    assert ReductionCell(8, 8, 4)(x, x).shape == (2, 16, 4, 5)
    older = torch.randn(2, 6, 13, 17)
    assert NormalCell(8, 6, 4, shrink=True)(x, older).shape == (2, 24, 7, 9)


def test_resolutions_and_widths():
    net = small(features_only=True)
    shapes = [tuple(f.shape[1:]) for f in net(torch.zeros(2, 1, 17, 17))]
    assert shapes == [(24, 17, 17), (48, 9, 9), (96, 5, 5)]


def test_drop_path_of_rate_nought_is_the_identity():
    dropping, plain = small(drop=0.3), small()
    dropping.schedule(0.0)
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(dropping(x), plain(x))


def test_drop_path_rises_with_depth_and_time():
    net = small(drop=0.4)
    net.schedule(0.5)
    rates = [c.drop.rate for c in net.cells]
    assert rates == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        net.schedule(1.5)


def test_names_and_filters_are_checked():
    with pytest.raises(UnknownName, match="mobile"):
        nasnet("mobil")
    with pytest.raises(InputError, match="24"):
        NASNet(4, 1000)


@pytest.mark.parametrize("past", [True, False])
def test_the_cell_behind_a_reduction_reads_past_it_or_not(past):
    net = NASNet(2, 192, 5, stem=8, past=past).eval()
    read = []
    for cell in net.cells:
        cell.register_forward_hook(lambda m, inputs, out: read.append((m, *inputs, out)))
    with torch.inference_mode():
        net(torch.randn(1, 3, 33, 33))
    at = [i for i, (m, *_) in enumerate(read) if isinstance(m, ReductionCell)][2:]
    assert len(at) == 2
    for i in at:
        _, now, before, _ = read[i]
        _, next_now, next_before, _ = read[i + 1]
        assert next_now is read[i][3]
        assert next_before is (before if past else now)
        assert read[i + 2][2] is read[i][3]
