"""A technique that lowers memory alone is searched only where the budget limits memory."""

from __future__ import annotations

from paredown import registry
from paredown.graph.capture import capture
from paredown.paring import candidates, request
from paredown.testing.networks import build


def test_patches_are_searched_under_a_memory_budget_alone() -> None:
    workload = build("cnn")
    graph = capture(workload)
    for budget, used in (["latency <= 0.5x"], False), (["memory <= 0.5x"], True):
        others = [n for n in registry.names() if n != "patches"]
        asked = request.make(workload, to=[*budget, "drop <= 1%"], without=others)
        found = candidates.choices(asked, graph, None)
        assert ("patches" in {c.name for c in found.used}) is used
        assert used or "memory alone" in found.left_out["patches"]
