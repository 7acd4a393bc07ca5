"""Formats per site: the integer program against trying all, budgets kept, better than uniform."""

import itertools
import random

import pytest
import torch
from quant_nets import NETS, error
from torch import nn

from paredown import recipe
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.techniques.quantize.mixed import OPTIONS, assign, mixed_precision
from paredown.workload import Workload, stored_bytes


@pytest.mark.parametrize("seed", range(5))
def test_assignment_equals_trying_all(seed):
    draw = random.Random(seed)
    sites, labels = [f"s{i}" for i in range(5)], ["float", "int8", "int4"]
    errors = {s: {"float": 0.0, "int8": draw.random() * 1e-3, "int4": draw.random()} for s in sites}
    size = {s: draw.randint(10, 1000) for s in sites}
    costs = {s: {"float": 4 * size[s], "int8": size[s], "int4": size[s] / 2} for s in sites}
    for share in (0.13, 0.2, 0.3, 0.6, 1.0):
        budget = share * sum(c["float"] for c in costs.values())

        def worth(chosen):
            return sum(errors[s][o] ** 2 for s, o in chosen.items())

        every = [dict(zip(sites, c, strict=True)) for c in itertools.product(labels, repeat=5)]
        fitting = [c for c in every if sum(costs[s][o] for s, o in c.items()) <= budget]
        got = assign(errors, costs, budget)
        assert sum(costs[s][o] for s, o in got.items()) <= budget * (1 + 1e-9)
        assert worth(got) <= min(map(worth, fitting)) * (1 + 1e-6) + 1e-11


def test_what_cannot_be_had_is_refused_and_the_infinite_avoided():
    errors = {"a": {"float": 0.0, "int4": float("inf")}, "b": {"float": 0.0, "int4": 0.5}}
    costs = {"a": {"float": 8, "int4": 1}, "b": {"float": 8, "int4": 1}}
    assert assign(errors, costs, 9) == {"a": "float", "b": "int4"}
    with pytest.raises(InputError, match="smallest formats take 9"):
        assign(errors, costs, 8)
    with pytest.raises(InputError, match="share"):
        mixed_precision(NETS["vit"](), 0.0)
    bare = Workload(nn.Sequential(nn.Conv2d(3, 4, 3)), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(NotApplicable, match="no option has a site"):
        mixed_precision(bare, 0.5)


def test_a_network_with_one_sensitive_layer():
    """Two of the ViT's layers get weights that four bits cannot hold."""
    workload = NETS["vit"]()
    with torch.no_grad():
        for layer in (workload.model.blocks[0].fc2, workload.model.head):
            layer.weight[:, ::7] *= 25
    found = mixed_precision(workload, 0.22)
    sites = OPTIONS["int8"].sites(workload, capture(workload)).ok
    assert set(found.chosen) == set(sites)
    now = sum(stored_bytes(workload.model.get_submodule(s.partition(":")[0])) for s in sites)
    assert found.nbytes <= 0.22 * now
    assert {"int4", "int8"} <= set(found.chosen.values())
    done = recipe.run(found.recipe(), workload)
    took = sum(stored_bytes(done.workload.model.get_submodule(s.partition(":")[0])) for s in sites)
    assert took == found.nbytes
    want = workload.call()
    ours = error(want, done.workload.call())
    # The same number of bytes given to the layers in turn, from the front and from the back.
    assert ours < min(
        error(want, in_turn(workload, found, order)) for order in (sites, sites[::-1])
    )


def in_turn(workload, found, order):
    """Outputs with int8 given to layers in order until the bytes are spent, the rest in int4."""
    sizes = {}
    for label, technique in OPTIONS.items():
        sites = technique.sites(workload, capture(workload))
        made = technique.apply(workload, sites).workload.model
        sizes[label] = {s: stored_bytes(made.get_submodule(s.partition(":")[0])) for s in order}
    left = found.nbytes
    left -= sum(sizes["int4"].values())
    chosen = {}
    for s in order:
        more = sizes["int8"][s] - sizes["int4"][s]
        chosen[s] = "int8" if more <= left else "int4"
        left -= more if chosen[s] == "int8" else 0
    plan = type(found)(chosen, found.nbytes, 0.0, OPTIONS).recipe()
    return recipe.run(plan, workload).workload.call()
