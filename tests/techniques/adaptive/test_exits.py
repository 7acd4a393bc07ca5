"""Early exits: exact at both ends of the threshold, row by row the same in any batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown import artefact
from paredown.editing import replay
from paredown.errors import InputError
from paredown.graph.capture import capture, capture_run
from paredown.measure.compare import Timed
from paredown.measure.over_inputs import compared
from paredown.recipe import parse_inline, run
from paredown.runtime import backend
from paredown.runtime.exits import uncertainty
from paredown.techniques.adaptive.conversion import HardToEasy
from paredown.techniques.adaptive.cuts import cuts
from paredown.techniques.adaptive.early_exit import EarlyExit
from paredown.techniques.adaptive.heads import Logits, OneHead
from paredown.workload import TrainingData, Workload


def classifier(seed=0, batch=8):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Conv2d(16, 16, 3, 1, 1),
        nn.Flatten(),
        nn.Linear(16 * 16, 4),
    ).eval()
    batches = [torch.randn(batch, 1, 8, 8) for _ in range(4)]
    with torch.no_grad():
        pairs = [((x,), model(x).argmax(-1)) for x in batches]
    return Workload(
        model,
        (batches[0],),
        calibration=batches,
        training=TrainingData(lambda: pairs, F.cross_entropy),
        population=[x for b in batches for x in b.split(1)],
    )


def exited(w, **knobs):
    technique = EarlyExit(**{"steps": 20, **knobs})
    return technique.apply(w, technique.sites(w, capture(w)))


@pytest.mark.parametrize("exits", [1, 2])
def test_threshold_zero_is_the_network_and_infinity_its_first_head(exits):
    w = classifier()
    x = torch.randn(5, 1, 8, 8)
    never = exited(w, exits=exits, threshold=0.0).workload
    with torch.inference_mode():
        assert torch.equal(never.model(x), w.model(x))
    always = exited(w, exits=exits, threshold=math.inf)
    first = always.decisions.values["stages"][0]["path"]
    cut = next(c for c in cuts(capture(w)) if c.path == first)
    head = OneHead(w, cut, Logits(4, "float32"))
    head.model.side_heads.load_state_dict(
        {k.removeprefix("side_heads."): t for k, t in always.decisions.tensors.items()}
        if exits == 1
        else {
            k.removeprefix("side_heads."): t
            for k, t in always.decisions.tensors.items()
            if k.startswith("side_heads.0.")
        }
    )
    with torch.inference_mode():
        assert torch.equal(always.workload.model(x), head(x))
    graph = capture_run(always.workload, (x,))
    assert not [n for n in graph.nodes if n.module.startswith("2")]


def half_sure(w, exits=1):
    """Exits whose threshold is the first head's median uncertainty."""
    x = torch.cat(w.calibration)
    first = exited(w, exits=exits, threshold=math.inf).workload.model
    with torch.inference_mode():
        middle = float(uncertainty(first(x), "entropy").median())
    return exited(w, exits=exits, threshold=middle)


def test_a_batch_is_answered_row_by_row_as_its_inputs_alone():
    w = classifier()
    change = half_sure(w, exits=2)
    model, x = change.workload.model, torch.cat(w.calibration)
    model.exits.count()
    with torch.inference_mode():
        whole = model(x)
        counts = [list(c) for c in model.exits.counts]
        alone = torch.cat([model(row) for row in x.split(1)])
    assert 0 < counts[0][1] < len(x)
    assert counts[1][0] == len(x) - counts[0][1]
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_an_inputs_work_is_that_of_the_stages_it_passed():
    w = classifier()
    change = half_sure(w)
    model = change.workload.model
    found = set()
    for x in w.population:
        model.exits.count()
        macs = capture_run(change.workload, (x,)).macs
        found.add((model.exits.counts[0][1], macs))
    assert len(found) == 2
    (_, more), (_, less) = sorted(found)
    rest = 16 * 16 * 9 * 16 + 16 * 16 * 4
    assert more - less == rest
    left = change.decisions.values["stages"][0]["continues"]
    assert capture(change.workload).macs == pytest.approx(8 * (less + left * rest), rel=1e-6)


def test_the_threshold_keeps_what_may_not_be_lost():
    w = classifier()
    judged = torch.cat(w.calibration)
    labels = w.model(judged).argmax(-1)
    w.evaluate = lambda m: (m(judged).argmax(-1) == labels).float()
    strict, free = exited(w, lose=0.0), exited(w, lose=1.0)
    assert float(w.evaluate(strict.workload.model).mean()) == 1.0
    assert free.decisions.values["stages"][0]["continues"] == 0.0


@pytest.mark.parametrize("measure", ["entropy", "probability", "gap"])
def test_uncertainty_is_zero_when_sure_and_largest_when_all_are_alike(measure):
    sure, even = torch.tensor([[50.0, 0.0, 0.0]]), torch.zeros(1, 3)
    assert float(uncertainty(sure, measure)) == pytest.approx(0, abs=1e-6)
    most = {"entropy": 1, "probability": 2 / 3, "gap": 1}[measure]
    assert float(uncertainty(even, measure)) == pytest.approx(most)


def test_a_network_that_branches_past_the_exit_has_no_cut_there():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            y = self.a(x)
            return self.head((self.b(y) + y + x).mean((2, 3)))

    w = Workload(Skips().eval(), (torch.randn(2, 1, 8, 8),))
    assert cuts(capture(w)) == []
    lacking = EarlyExit().sites(classifier(), capture(classifier()))
    assert lacking.ok
    (why,) = EarlyExit().sites(w, capture(w)).refused.values()
    assert "training data" in why


def test_replay_recipe_and_eager_lowering_give_the_same():
    w = classifier()
    applied = run(parse_inline("early-exit:steps=10,threshold=0.8"), w)
    again = replay(w.copy().model, applied.changes[0].edits)
    again.load_state_dict(applied.workload.model.state_dict())
    x = torch.cat(w.calibration)
    with torch.inference_mode():
        want = applied.workload.model(x)
        assert torch.equal(again(x), want)
    executable = backend("eager").lower(applied.workload, threads=1)
    assert executable.varies
    assert torch.equal(executable(x), want)
    for wrong in ({"exits": 0}, {"measure": "x"}, {"threshold": -2.0}, {"lose": -1.0}):
        with pytest.raises(InputError):
            EarlyExit(**wrong)


def test_conversion_is_the_same_work_for_every_input_and_drops_what_never_runs():
    w = classifier()
    technique = HardToEasy(hidden=16, code=8, steps=20, after=0.2)
    change = technique.apply(w, technique.sites(w, capture(w)))
    traces = set()
    for x in (torch.randn(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)):
        graph = capture_run(change.workload, (x,))
        traces.add((graph.macs, tuple(n.op for n in graph.nodes)))
    assert len(traces) == 1
    graph = capture(change.workload)
    assert graph.macs < capture(w).macs
    held = sum(p.numel() for p in change.workload.model.parameters())
    assert held == graph.params
    assert backend("eager").lower(change.workload, threads=1).varies is None


def test_a_converted_network_exports():
    pytest.importorskip("onnxruntime")
    w = classifier()
    technique = HardToEasy(hidden=16, code=8, steps=5, after=0.2)
    change = technique.apply(w, technique.sites(w, capture(w)))
    lowered = backend("onnxruntime").lower(change.workload, threads=1)
    want = change.workload.call()
    torch.testing.assert_close(lowered(*w.inputs), want, rtol=1e-4, atol=1e-5)


def test_labels_that_are_no_classes_are_refused():
    w = classifier()
    w.training = TrainingData(lambda: [((w.inputs[0],), torch.randn(8, 4))], F.mse_loss)
    technique = HardToEasy(steps=0)
    with pytest.raises(Exception, match="class indices"):
        technique.apply(w, technique.sites(w, capture(w)))


@pytest.mark.parametrize("text", ["early-exit:steps=5,threshold=0.9", "hard-to-easy:steps=5"])
def test_an_artefact_read_back_answers_the_same_and_is_timed_over_inputs(text, tmp_path):
    w = classifier()
    applied = run(parse_inline(text.replace("steps=5", "steps=5,seed=1")), w)
    executable = backend("eager").lower(applied.workload, threads=1)
    artefact.save(
        tmp_path / "a",
        workload=applied.workload,
        executable=executable,
        recipe=applied.recipe,
        changes=applied.changes,
        fingerprint=None,
    )
    loaded = artefact.load(tmp_path / "a", threads=1, source=w)
    x = torch.cat(w.calibration)
    with torch.inference_mode():
        assert torch.equal(loaded(x), applied.workload.model(x))
    sides = [("whole", Timed(backend("eager").lower(w, threads=1), w))]
    sides.append(("loaded", Timed(loaded.executable, w)))
    found = compared(sides, seconds=0)["loaded"].latency
    assert (found.n == len(w.population)) == (loaded.executable.varies is not None)
