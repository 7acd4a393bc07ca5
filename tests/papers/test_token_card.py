"""GTP-ViT's card: judged on canned measurements by the thresholds it fixed; its parts are real."""

import numpy as np
import pytest
import torch

from paredown.figure import measured
from paredown.graph.capture import capture
from paredown.papers.card import judge
from paredown.papers.cards import fewer_tokens
from paredown.papers.cards.fewer_tokens import MOST, QUARTER, GtpCard, methods, reducer, small_vit
from paredown.workload import Workload

NOISE = np.array([-0.002, 0.0, 0.001, 0.001])


def found(gtp, pruning, tome, random, original=0.9):
    rows = []
    for n in NOISE:
        row = {"original": original + n}
        for removed in (QUARTER, MOST):
            row |= {
                f"GTP {removed}": gtp + n / 2,
                f"ToMe {removed}": tome,
                f"pruning {removed}": pruning,
                f"random {removed}": random,
            }
        rows.append(row)
    return rows


def timings(gtp, tome):
    def near(v):
        return {"ratio": measured(v, "x", spread=(v - 0.01, v + 0.01), n=9)}

    return {"original": near(1.0), "ToMe": near(tome), "GTP": near(gtp), "a/a": near(1.0)}


def verdict(**accuracies):
    card = GtpCard()
    rows = timings(accuracies.pop("time", 0.8), 0.9)
    experiment = card._judge(0.253, rows, found(**accuracies), list(range(4)))
    return judge(experiment, "quick")


def test_the_claim_holds_where_propagation_leads_everything():
    said, why = verdict(gtp=0.898, pruning=0.88, tome=0.89, random=0.7)
    assert said == "holds", why


def test_it_fails_in_parts_and_names_them():
    said, why = verdict(gtp=0.85, pruning=0.88, tome=0.89, random=0.7)
    assert said == "partly"
    assert "GTP minus pruning: -0.03" in why
    slow, why = verdict(gtp=0.898, pruning=0.88, tome=0.89, random=0.7, time=1.2)
    assert slow == "partly"
    assert "GTP over original: 1.2" in why


def test_ties_are_not_testable_at_quick_scale():
    said, why = verdict(gtp=0.898, pruning=0.898, tome=0.898, random=0.898)
    assert said == "not testable here"
    assert why.startswith("needs --scale full")


@pytest.mark.parametrize("removed", [QUARTER, MOST])
def test_all_methods_give_up_as_many_tokens(removed):
    """Equal token counts on the card's own network: a quarter, then above a third less work."""
    torch.manual_seed(0)
    model = small_vit().eval()
    x = (torch.randn(2, 1, fewer_tokens.SIDE, fewer_tokens.SIDE),)
    whole = capture(Workload(model, x)).macs
    reduced = reducer(model)
    for name, technique in methods(removed, 0.1, 0).items():
        graph = capture(Workload(reduced(technique), x))
        ups = [n for n in graph.nodes if n.module.endswith("mlp.fc1") and n.op == "aten::addmm"]
        counts = [graph.tensors[n.outputs[0]].shape[0] // 2 for n in ups]
        assert counts == [65 - removed * (i + 1) for i in range(4)], name
        want = {QUARTER: 0.25, MOST: 0.37}[removed]
        assert 1 - graph.macs / whole == pytest.approx(want, abs=0.02), name
