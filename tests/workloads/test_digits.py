"""The digits task: disjoint split, seeded augmentation, per-example scores."""

import pytest
import torch
from torch import nn

from paredown.errors import InputError
from paredown.workloads import digits


def test_split_is_disjoint_and_complete():
    images, labels = digits.scans()
    assert digits.TRAIN + digits.VALIDATION <= 897
    assert digits.HELD_OUT >= 900
    assert digits.TRAIN + digits.VALIDATION + digits.HELD_OUT == len(images) == 1797
    parts = [digits.split(p, 8)[1] for p in ("train", "validation", "held-out")]
    assert torch.equal(torch.cat(parts), labels)
    assert all(len(part.unique()) == 10 for part in parts)


def test_unknown_part_is_refused():
    with pytest.raises(InputError, match="held-out"):
        digits.split("test", 8)


def test_upscaled_scans_average_back_to_the_scan():
    images, _ = digits.scans()
    large = (digits.upscale(images[:20], 96) + 1) / 2
    back = nn.functional.avg_pool2d(large, 12)
    assert large.min() >= 0
    assert large.max() <= 1
    assert (back - images[:20]).abs().mean() < 0.05


def test_global_seed_fixes_an_epoch():
    epochs = digits.Epochs(*digits.split("train", 16))
    torch.manual_seed(5)
    one, other = list(epochs()), list(epochs())
    torch.manual_seed(5)
    again = list(epochs())
    assert len(one) == digits.TRAIN // epochs.batch
    for ((x,), y), ((x2,), y2) in zip(one, again, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert not torch.equal(one[0][0][0], other[0][0][0])


def test_no_strength_leaves_the_images():
    images, _ = digits.split("train", 24)
    same = digits.augment(images[:4], torch.Generator().manual_seed(0), strength=0.0)
    torch.testing.assert_close(same, images[:4], atol=1e-4, rtol=0)


def test_scores_are_per_example_and_in_order():
    class Oracle(nn.Module):
        """Knows the labels of the held-out images, but for every tenth."""

        def __init__(self):
            super().__init__()
            labels = digits.split("held-out", 8)[1]
            self.answers = nn.functional.one_hot((labels + (torch.arange(917) % 10 == 0)) % 10, 10)
            self.start = 0

        def forward(self, x):
            self.start += len(x)
            return self.answers[self.start - len(x) : self.start].float()

    scores = digits.Accuracy(*digits.split("held-out", 8))(Oracle())
    assert scores.shape == (917,)
    assert torch.equal(scores == 0, torch.arange(917) % 10 == 0)
