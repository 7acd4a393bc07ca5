"""A seeded sample of ordered pairs that meets every pair of touches; `make matrix` runs all."""

import itertools
import json
from pathlib import Path

import pytest

from paredown import registry
from paredown.technique import Rewrite, Stage
from paredown.testing.matrix import cells, sample
from paredown.testing.networks import NETWORKS

SETTINGS = {
    "recover": {"steps": 6},
    "trained-low-rank": {"steps": 4},
    "cross-distillation": {"steps": 3},
    "qfx": {"steps": 4},
    "mst-bnn": {"steps": 4},
    "accllm": {"group_size": 16},
    "nm-training": {"steps": 4},
    "consensus": {"steps": 4},
    "qlora": {"steps": 4},
    "early-exit": {"steps": 4},
    "hard-to-easy": {"steps": 4},
    "adaptive-computation": {"steps": 3, "layer_steps": 2},
    "quantized-distillation": {"steps": 4},
}
TECHNIQUES = {n: registry.make(n, SETTINGS.get(n)) for n in registry.BUILT_IN}
PAIRS = sample(TECHNIQUES, seed=0)


def test_the_sample_meets_every_pair_of_touches():
    every = {
        x
        for a, b in itertools.product(TECHNIQUES.values(), repeat=2)
        for x in itertools.product(a.touches, b.touches)
    }
    met = {
        x for a, b in PAIRS for x in itertools.product(TECHNIQUES[a].touches, TECHNIQUES[b].touches)
    }
    assert met == every
    assert len(PAIRS) < len(TECHNIQUES) ** 2 / 2


@pytest.mark.parametrize("network", NETWORKS)
def test_sampled_pairs_are_sound_or_say_why_not(network):
    for cell in cells(TECHNIQUES, PAIRS, [network]):
        assert cell.outcome != "broken", cell
        assert cell.outcome == "sound" or cell.detail


def test_in_stage_order_pruning_ranks_and_integers_go_together():
    names = ["structured-pruning", "low-rank", "static-int8"]
    for cell in cells(TECHNIQUES, itertools.pairwise(names)):
        assert cell.outcome == "sound", cell


def test_a_defect_is_a_cell_with_its_error():
    class Wrong(Rewrite):
        name = "wrong"
        stage = Stage.STRUCTURE

        def sites(self, workload, graph):
            raise ZeroDivisionError("oops")

    (cell,) = cells({"wrong": Wrong()}, networks=["cnn"])
    assert (cell.outcome, cell.detail) == ("broken", "ZeroDivisionError: oops")


def test_the_committed_matrix_covers_what_there_is():
    path = Path(__file__).parents[2] / "docs" / "matrix.json"
    document = json.loads(path.read_text())
    rows = {(c["network"], c["first"], c["second"]) for c in document["cells"]}
    assert rows == set(itertools.product(NETWORKS, registry.BUILT_IN, registry.BUILT_IN))
    assert all(c["outcome"] != "broken" for c in document["cells"])
