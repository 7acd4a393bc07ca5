"""Adaptive computation: the parts make the layer, a gated run is the dense one masked."""

from itertools import pairwise

import pytest
import torch

from paredown.errors import InputError
from paredown.graph.capture import capture, capture_run
from paredown.recipe import parse_inline, run
from paredown.runtime import backend
from paredown.runtime.adaptive_mlp import GATE, AdaptiveMlp
from paredown.techniques.adaptive.acm_training import batches, learn_layers, slices, wanted
from paredown.techniques.adaptive.computation import AdaptiveComputation
from paredown.testing import build


def module(seed=0, learners=4, hidden=6, inputs=8):
    torch.manual_seed(seed)
    made = AdaptiveMlp(inputs, inputs, hidden, learners, "gelu", [0.5] * learners).eval()
    torch.nn.init.normal_(made.down)
    torch.nn.init.normal_(made.gate[-1].weight, std=3.0)
    return made


def adapted(w=None, **knobs):
    w = build("vit") if w is None else w
    technique = AdaptiveComputation(**{"steps": 0, "layer_steps": 0, **knobs})
    return w, technique.apply(w, technique.sites(w, capture(w)))


@pytest.mark.parametrize("learners", [1, 4, 5])
def test_all_learners_together_are_the_trained_layer(learners):
    w, change = adapted(learners=learners)
    model = change.workload.model
    for m in model.modules():
        if isinstance(m, AdaptiveMlp):
            m.forced = learners
    with torch.inference_mode():
        torch.testing.assert_close(model(*w.inputs), w.call(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7, 8), (1, 8), (1, 1, 8)])
def test_a_gated_run_is_the_dense_one_masked_by_its_choices(shape):
    m, x = module(), torch.randn(shape)
    with torch.no_grad():
        choice = m.gate(x).argmax(-1)
        dense = [torch.zeros(shape)]
        for n in range(4):
            dense.append(dense[-1] + m.learner(n, x))
        want = torch.stack(dense, -2).gather(-2, choice[..., None, None].expand(*shape[:-1], 1, 8))[
            ..., 0, :
        ]
        torch.testing.assert_close(m(x), want + m.bias, rtol=1e-5, atol=1e-5)
        m.forced = 2
        torch.testing.assert_close(m(x), dense[2] + m.bias, rtol=1e-5, atol=1e-5)
        m.train()
        torch.testing.assert_close(m(x), dense[2] + m.bias, rtol=1e-5, atol=1e-5)


def test_counted_work_is_the_sum_over_tokens_of_the_learners_they_ran():
    m, x = module(), torch.randn(3, 7, 8)
    w = build("vit")
    w.model, w.inputs = torch.nn.Sequential(m), (x,)
    with torch.no_grad():
        run_ = int(m.gate(x).argmax(-1).sum())
    gate = 21 * (8 * GATE + GATE * GATE + GATE * 5)
    assert capture_run(w, (x,)).macs == gate + run_ * 2 * 8 * 6
    assert capture(w).macs == gate + 21 * 4 * 2 * 8 * 6 // 2
    m.counts = [0] * 5
    m(x)
    assert sum(n * c for n, c in enumerate(m.counts)) == run_


def test_after_the_first_phase_every_learner_lowers_the_error():
    w = build("vit")
    path = "blocks.0.mlp"
    trained = w.model.get_submodule(path)
    new = AdaptiveMlp(48, 48, 24, 4, "gelu", [0.5] * 4)
    x = torch.randn(64, 48)
    slices((trained.fc1, trained.fc2), new, x)
    learn_layers(w.model, {path: new}, w.training, 40, 0)
    seen = []
    trained.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        for inputs in batches(w.training, 4, 0):
            w.model(*inputs)
        x, y = (torch.cat(t) for t in zip(*seen, strict=True))
        errors = [float((p - y).square().mean()) for p in new.prefixes(x)]
    assert errors == sorted(errors, reverse=True)
    assert errors[4] < 0.2 * errors[0]


def test_a_gate_wants_the_fewest_learners_after_which_one_more_adds_little():
    m = module(learners=3)
    m.prefixes = lambda x: [torch.tensor([[e]]) for e in (8.0, 4.0, 3.9, 1.0)]
    assert wanted(m, torch.zeros(1, 8), torch.zeros(1, 1)).tolist() == [2]
    m.prefixes = lambda x: [torch.tensor([[e]]) for e in (8.0, 4.0, 2.0, 1.0)]
    assert wanted(m, torch.zeros(1, 8), torch.zeros(1, 1)).tolist() == [3]
    m.prefixes = lambda x: [torch.tensor([[e]]) for e in (8.0, 7.9, 2.0, 1.0)]
    assert wanted(m, torch.zeros(1, 8), torch.zeros(1, 1)).tolist() == [3]


def test_gradients_reach_gates_and_learners():
    m = module().train()
    m.watched = True
    m(torch.randn(5, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    assert m.choices is not None
    assert (m.choices.sum(-1) == 1).all()


def test_the_mean_load_lands_at_the_target():
    torch.manual_seed(0)
    _, change = adapted(target=0.5, steps=60, layer_steps=20, lr=3e-3)
    loads = change.decisions.values["loads"]
    assert len(loads) == 2
    mean = sum(sum(x) for x in loads.values()) / 8
    assert abs(mean - 0.5) < 0.15
    assert all(a >= b for x in loads.values() for a, b in pairwise(x))


def test_recipe_runs_in_eager_and_settings_are_checked():
    w = build("vit")
    applied = run(parse_inline("adaptive-computation:steps=2,layer_steps=2"), w)
    lowered = backend("eager").lower(applied.workload, threads=1)
    assert "gate" in lowered.varies
    torch.testing.assert_close(lowered(*w.inputs), applied.workload.call())
    for wrong in ({"target": 0.0}, {"learners": 0}, {"cost": -1.0}):
        with pytest.raises(InputError):
            AdaptiveComputation(**wrong)
