"""Detection: boxes of known distributions, suppression, assignment, a loss that trains."""

import pytest
import torch

from paredown.errors import InputError
from paredown.nn.detection import (
    Target,
    assigned,
    between_bins,
    boxes_of,
    cells,
    complete_iou,
    decoded,
    detection_loss,
    iou,
    selected,
    suppressed,
)

STRIDES, BINS = (8, 16), 16


def raw(classes=3, size=32, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, 4 * BINS + classes, size // s, size // s) for s in STRIDES]


def test_cells_are_centred_in_their_strides():
    centres, steps = cells(raw(), STRIDES)
    assert centres.shape == (16 + 4, 2)
    assert centres[:2].tolist() == [[4, 4], [12, 4]]
    assert centres[16:18].tolist() == [[8, 8], [24, 8]]
    assert steps[:, 0].tolist() == [8] * 16 + [16] * 4


def test_sure_distances_give_that_box():
    sides = torch.full((1, 4, BINS), -100.0)
    for side, bin_ in enumerate((1, 2, 3, 4)):
        sides[0, side, bin_] = 100
    box = boxes_of(sides, torch.tensor([[40.0, 50.0]]), torch.tensor([[8.0]]))
    assert box.tolist() == [[32, 34, 64, 82]]


def test_overlaps_of_known_boxes():
    a = torch.tensor([0.0, 0, 4, 4])
    b = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [8, 8, 9, 9]])
    torch.testing.assert_close(iou(a, b), torch.tensor([1.0, 8 / 24, 0.0]))
    # Same shape: less the centres' distance (2) over the hull's diagonal, squared.
    found = complete_iou(a, b)
    torch.testing.assert_close(found[1], torch.tensor(1 / 3 - 4 / (36 + 16)))
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[2] < -0.5


def test_suppression_keeps_the_best_of_what_overlaps():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 9.9]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.8])
    assert suppressed(boxes, scores, 0.5).tolist() == [1, 2]
    assert suppressed(boxes, scores, 1.0).tolist() == [1, 3, 0, 2]
    assert suppressed(boxes[:0], scores[:0], 0.5).tolist() == []


def test_classes_are_suppressed_apart():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores = torch.tensor([[0.9, 0.6], [0.7, 0.8], [0.1, 0.2]])
    found = selected(boxes, scores, least=0.5, overlap=0.5, most=9)
    assert found.classes.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8]))
    assert selected(boxes, scores, least=0.95, overlap=0.5, most=9).boxes.shape == (0, 4)
    assert (
        selected(boxes, scores, least=0.0, overlap=1.0, most=2).scores.tolist() == found[1].tolist()
    )
    with pytest.raises(InputError, match="lie in"):
        selected(boxes, scores, least=2, overlap=0.5, most=9)


def test_objects_take_cells_inside_them_and_the_best_fit_scores_highest():
    maps = raw(size=64)
    centres, _ = cells(maps, STRIDES)
    target = Target(torch.tensor([[0.0, 0, 30, 30], [34, 34, 64, 64]]), torch.tensor([0, 2]))
    boxes = torch.cat((centres - 10, centres + 10), 1)
    scores = torch.full((centres.shape[0], 3), 0.5)
    owner, level = assigned(boxes, scores, centres, target)
    for i, box in enumerate(target.boxes):
        mine = centres[owner == i]
        assert 1 <= len(mine) <= 10
        assert ((mine > box[:2]) & (mine < box[2:])).all()
        best = complete_iou(box, boxes[owner == i]).amax()
        torch.testing.assert_close(level[owner == i].amax(), best)
    assert not level[owner < 0].any()
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert (assigned(boxes, scores, centres, empty)[0] == -1).all()


def test_a_distance_between_bins_is_best_met_by_both():
    logits = torch.full((1, 1, BINS), -100.0)
    logits[0, 0, 3], logits[0, 0, 4] = torch.tensor([0.25, 0.75]).log()
    best = between_bins(logits, torch.tensor([[3.75]]))
    entropy = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log())
    torch.testing.assert_close(best[0, 0], entropy)
    assert between_bins(logits, torch.tensor([[3.25]])) > best


def test_the_loss_falls_until_the_objects_are_found():
    torch.manual_seed(0)
    maps = [torch.zeros_like(m).requires_grad_() for m in raw(size=64, batch=1)]
    target = [Target(torch.tensor([[4.0, 8, 36, 44]]), torch.tensor([1]))]
    optimiser = torch.optim.Adam(maps, lr=0.2)
    losses = []
    for _ in range(80):
        optimiser.zero_grad()
        loss = detection_loss(maps, target, STRIDES, BINS)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    boxes, scores = decoded([m.detach() for m in maps], STRIDES, BINS)
    found = selected(boxes[0], scores[0], least=0.5, overlap=0.5, most=5)
    assert found.classes.tolist() == [1]
    assert iou(found.boxes[0], target[0].boxes[0]) > 0.9
    nothing = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))]
    assert torch.isfinite(detection_loss(maps, nothing, STRIDES, BINS))
    with pytest.raises(InputError, match="as many targets"):
        detection_loss(maps, [], STRIDES, BINS)
