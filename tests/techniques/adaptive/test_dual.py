"""Pairs and the result memory: exact at both ends, no network where a result is known."""

import pytest
import torch
from torch import nn

from paredown.errors import InputError
from paredown.graph.capture import capture, capture_run
from paredown.runtime import backend
from paredown.runtime.results import difference_hash
from paredown.techniques.adaptive.dual import (
    DualNet,
    best_pair,
    best_threshold,
    complementarity,
    confidence,
    paired,
)
from paredown.techniques.adaptive.memory import ResultMemory
from paredown.workload import Workload


def net(seed, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 5)
    ).eval()


def bits(text):
    return torch.tensor([c == "1" for c in text])


def test_complementarity_by_hand_and_the_pair_it_chooses():
    a, b, c = bits("11110000"), bits("11001100"), bits("11110001")
    assert complementarity(a, b) == (6 - 2 - 0) / 8
    assert complementarity(a, c) == (5 - 4 - 1) / 8
    assert complementarity(a, a) == 0
    assert complementarity(b, c) == (7 - 2 - 1) / 8
    assert best_pair({"a": a, "b": b}) == ("a", "b")
    assert best_pair({"a": a, "b": b, "c": c}) == ("b", "c"), "a tie goes to who knows more"
    with pytest.raises(InputError):
        best_pair({"a": a})


def test_the_threshold_is_the_best_of_all_and_runs_the_second_least():
    torch.manual_seed(0)
    first, second = torch.randn(2, 60, 4)
    labels = torch.randint(4, (60,))
    threshold, share = best_threshold(first, second, labels)

    def score(t):
        low = confidence(first) < t
        swap = low & (confidence(second) > confidence(first))
        said = torch.where(swap, second.argmax(-1), first.argmax(-1))
        return int((said == labels).sum()), int(low.sum())

    every = [score(t) for t in (0.0, *(confidence(first) + 1e-6).tolist())]
    best = max(s for s, _ in every)
    assert score(threshold) == (best, min(n for s, n in every if s == best))
    assert share == score(threshold)[1] / 60


def test_zero_is_the_first_net_and_above_one_always_both():
    a, b, x = net(0), net(1), torch.randn(9, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(DualNet(a, b, 0.0)(x), a(x))
        both = DualNet(a, b, 1.1)
        surer = confidence(b(x)) > confidence(a(x))
        assert torch.equal(both(x), torch.where(surer[:, None], b(x), a(x)))
        some = DualNet(a, b, float(confidence(a(x)).median()))
        alone = torch.cat([some(row) for row in x.split(1)])
        torch.testing.assert_close(some(x), alone, rtol=1e-5, atol=1e-6)
    w = Workload(some.eval(), (x,))
    one = capture_run(Workload(a, (x,)), (x[:1],)).macs
    assert {capture_run(w, (row,)).macs for row in x.split(1)} == {one, 2 * one}
    assert capture(w).macs == round(1.5 * 9 * one)


def test_a_pair_from_a_pool_runs_the_cheaper_first():
    torch.manual_seed(0)
    pool = {"wide": net(0, 16), "small": net(1, 4), "other": net(2, 8)}
    images, labels = torch.randn(50, 1, 8, 8), torch.randint(5, (50,))
    costs = {"wide": 3.0, "small": 1.0, "other": 2.0}
    found = paired(pool, images, labels, costs, names=("wide", "small"))
    assert found.names == ("small", "wide")
    chosen = paired(pool, images, labels, costs)
    assert costs[chosen.names[0]] < costs[chosen.names[1]]


def remembered(images, **knobs):
    w = Workload(net(0), (images[:1],), population=list(images.split(1)))
    technique = ResultMemory(**knobs)
    return w, technique.apply(w, technique.sites(w, capture(w)))


@pytest.mark.parametrize("key", ["hash", "exact"])
def test_a_duplicate_makes_no_call_and_gets_the_same_answer(key):
    torch.manual_seed(0)
    images = torch.randn(6, 1, 16, 16)[:, :, ::2, ::2].contiguous()
    w, change = remembered(torch.cat([images, images]), key=key)
    assert change.decisions.values["misses"] == 0.5
    model = change.workload.model
    with torch.inference_mode():
        want = w.model(images)
        torch.testing.assert_close(model(images), want)
        graph = capture_run(change.workload, (images,))
        assert graph.macs == 0
        torch.testing.assert_close(model(images), want, rtol=0, atol=0)
        mixed = torch.cat([images[:2], torch.randn(1, 1, 8, 8)])
        fresh = capture_run(change.workload, (mixed,))
        assert fresh.macs == capture(w).macs
        model.forget()
        assert capture_run(change.workload, (images,)).macs == 6 * capture(w).macs
    assert capture(change.workload).macs == round(0.5 * capture(w).macs)


def test_a_full_memory_drops_what_was_not_asked_for_longest():
    torch.manual_seed(0)
    images = torch.randn(3, 1, 8, 8)
    _, change = remembered(images, capacity=2)
    model = change.workload.model
    with torch.inference_mode():
        for i in (0, 1, 0, 2, 1):
            model(images[i : i + 1])
    assert (model.results.asked, model.results.hits) == (5, 1)


def test_the_hash_sees_gradients_not_brightness():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 32, 36)
    (one,) = difference_hash(x)
    assert len(one) == 8
    assert difference_hash(x * 0.5 + 0.1) == [one]
    assert difference_hash(x.flip(-1)) != [one]
    ramp = torch.arange(9.0).expand(1, 1, 8, 9)
    assert difference_hash(ramp) == [b"\xff" * 8]


def test_memory_refuses_what_it_cannot_key_and_exits_conflict():
    w = Workload(nn.Sequential(nn.Linear(4, 3)), (torch.randn(2, 4),))
    (why,) = ResultMemory().sites(w, capture(w)).refused.values()
    assert "images" in why
    _, change = remembered(torch.randn(4, 1, 8, 8))
    assert not ResultMemory().sites(change.workload, capture(change.workload)).ok
    assert "from memory" in backend("eager").lower(change.workload, threads=1).varies
    for wrong in ({"key": "x"}, {"capacity": 0}):
        with pytest.raises(InputError):
            ResultMemory(**wrong)
