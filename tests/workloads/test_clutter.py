"""Digits in clutter, and the benchmark's networks trained on it."""

import json
from pathlib import Path

import pytest
import torch

from paredown.errors import TargetError, UnknownName
from paredown.workloads import clutter, digits, nets

FOLDER = Path(__file__).parents[2] / "benchmarks" / "nets"


def test_scenes_are_fixed_and_parts_differ():
    one, labels = clutter.scenes("held-out", 24)
    clutter.scenes.cache_clear()
    again, _ = clutter.scenes("held-out", 24)
    assert torch.equal(one, again)
    assert torch.equal(labels, digits.split("held-out", 8)[1])
    assert one.shape == (917, 1, 24, 24)
    assert not torch.equal(clutter.scenes("validation", 24)[0][:100], one[:100])
    more, repeated = clutter.scenes("validation", 24, 2)
    assert len(more) == len(repeated) == 2 * digits.VALIDATION
    assert not torch.equal(more[:160], more[160:])


def test_the_digit_lies_whole_inside_the_scene():
    ink = torch.ones(64, 1, 24, 24)
    scene = clutter.render(ink, 48, torch.Generator().manual_seed(0), noise=0.0, pieces=0)
    covered = (scene > 0).float().mean((1, 2, 3))
    # A square of side 0.5 to 0.8 of the scene, turned at most 20 degrees.
    assert covered.min() > 0.2
    assert covered.max() < 0.7


def test_clutter_and_noise_only_add():
    ink = digits.split("train", clutter.SOURCE)[0][:16]
    plain = clutter.render(ink, 32, torch.Generator().manual_seed(1), noise=0.0, pieces=0)
    noisy = clutter.render(ink, 32, torch.Generator().manual_seed(1), noise=0.4, pieces=0)
    assert (noisy - plain).std() == pytest.approx(0.4, rel=0.1)


def test_global_seed_fixes_an_epoch():
    batches = clutter.Scenes(16, batch=60, copies=2)
    torch.manual_seed(2)
    one = [x for (x,), _ in batches()]
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, ((b,), _) in zip(one, batches(), strict=True))
    assert len(one) == 24


def test_unknown_and_untrained_networks_are_refused(tmp_path):
    with pytest.raises(UnknownName):
        nets.net("lenet")
    with pytest.raises(TargetError, match=r"train_nets\.py"):
        nets.workload("vit", tmp_path)


def test_stored_weights_come_back_rounded(tmp_path):
    torch.manual_seed(0)
    model = nets.net("vovnet").build().eval()
    nets.store(model, tmp_path / "vovnet.safetensors")
    back = nets.workload("vovnet", tmp_path).model
    for (name, a), b in zip(model.state_dict().items(), back.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2**-8, atol=0, msg=name)
    assert back.state_dict()["head.2.weight"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_committed_networks_score_what_is_recorded(name):
    work = nets.workload(name, FOLDER)
    scores = work.verify(work.model)
    record = json.loads((FOLDER / "nets.json").read_text())[name]
    assert float(scores.mean()) == pytest.approx(record["held_out"], abs=0.003)
    assert record["held_out"] > 0.85
    assert len(scores) >= 900
