"""Claim card of NeuRI: rules learned from calls, networks grown from them (arXiv:2302.02261)."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from paredown.figure import Figure, counted, measured
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, mean_and_power
from paredown.testing.fuzz import PartialOperator, grow, operators
from paredown.testing.fuzz.infer import Judged, judged
from paredown.testing.fuzz.mutate import around
from paredown.testing.fuzz.oracles import edges
from paredown.testing.fuzz.program import network

NAMED = (
    "torch.nn.functional.conv2d",
    "torch.nn.functional.max_pool2d",
    "torch.nn.functional.avg_pool2d",
    "torch.matmul",
    "torch.cat",
    "torch.reshape",
    "torch.transpose",
    "torch.add",
)
"""The functions that the catalogue's check names."""
BY_HAND = {
    "torch.nn.functional": """
        conv1d conv2d linear batch_norm avg_pool2d max_pool2d relu gelu leaky_relu prelu softmax pad
        interpolate
    """,
    "torch": """
        abs add argmax argmin atan cat ceil clamp cos div eq floor gt logical_and lt matmul max
        maximum mean min minimum mul neg pow reshape round sigmoid sin softmax squeeze sub sum tan
        tanh transpose tril triu true_divide unsqueeze where
    """,
}
"""About what NNSmith, the model-level fuzzer of the comparison, has written specifications for."""
GROUPS = 4


class NeuRICard(Card):
    """Rules against calls they have not seen; networks run; operator pairs against a hand list.

    The paper counts branches of compiled frameworks and bugs in months, which a minute cannot.
    Its proxy here is the number of ordered pairs of operators joined by a tensor in as many
    networks, against networks grown from the hand-written operators alone.
    """

    key = "neuri"
    claim = (
        "rules inferred from recorded calls alone predict shapes and validity well enough to grow "
        "valid networks over hundreds of operators, and these reach more than hand-written "
        "operators do (branch coverage +15% on PyTorch)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "wrong_sizes_of_named_functions": 0,
        "invalid_calls_rejected_of_named_functions": 0.95,
        "valid_networks": 0.9,
        "functions": 200,
        "pairs_over_hand_written": 1.15,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Held-out calls of another seed; networks of learned and of hand-written operators."""
        warnings.simplefilter("ignore")
        t, count = self.thresholds, 30 if scale == "quick" else 500
        learned = operators()
        ruled = [p for p in learned if p.rules is not None]
        named = [p for p in ruled if p.op in NAMED]
        sample = random.Random(0).sample(ruled, min(len(ruled), 60 if scale == "quick" else 500))
        ours, others = held_out(named), held_out(sample)
        progress(f"{ours['calls']} and {others['calls']} held-out calls")
        hand = {f"{where}.{name}" for where, names in BY_HAND.items() for name in names.split()}
        by_hand = [p for p in ruled if p.op in hand]
        rows: list[dict[str, Any]] = []
        for group in range(GROUPS):
            rows.append(self.group(10_000 * group, count, learned, by_hand))
            progress(f"group {group}: {rows[-1]['pairs']} pairs, {rows[-1]['pairs_by_hand']}")
        ratio, power = mean_and_power([r["pairs"] / r["pairs_by_hand"] for r in rows])
        valid, valid_power = mean_and_power([r["valid"] / count for r in rows])
        missing = set(NAMED) - {p.op for p in named}
        checks = [
            Check("named functions without rules", len(missing), "<=", 0),
            Check("wrong sizes on held-out valid calls of the named functions", ours["wrong"],
                  "<=", t["wrong_sizes_of_named_functions"]),
            Check("held-out invalid calls that their rules reject", ours["rejected"], ">=",
                  t["invalid_calls_rejected_of_named_functions"]),
            Check("share of generated networks that run", valid, ">=", t["valid_networks"],
                  valid_power),
            Check("functions", len({p.op for p in learned}), ">=", t["functions"]),
            Check("operator pairs over the hand-written kind's", ratio, ">=",
                  t["pairs_over_hand_written"], power),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            "share of generated networks that run": measured(valid, "1", n=GROUPS),
            "functions": counted(len({p.op for p in learned}), ""),
            "functions with rules": counted(len({p.op for p in ruled}), ""),
            "partial operators": counted(len(learned), ""),
            "partial operators with rules": counted(len(ruled), ""),
            "labelled calls learned from": counted(sum(p.learned_from for p in learned), ""),
            "held-out valid calls of all functions with wrong sizes": counted(
                others["wrong"] / max(others["valid"], 1), "1"
            ),
            "held-out invalid calls of all functions rejected": counted(others["rejected"], "1"),
        }
        tables = {"groups": rows, "held out": [ours, others]}
        return Experiment(figures, checks, list(range(GROUPS)), tables)

    def group(
        self,
        seed: int,
        count: int,
        learned: Sequence[PartialOperator],
        by_hand: Sequence[PartialOperator],
    ) -> dict[str, Any]:
        """Networks of both kinds from one seed: how many run, and the operator pairs in them."""
        start = time.perf_counter()
        valid, pairs = self.reached(seed, count, learned)
        valid_by_hand, pairs_by_hand = self.reached(seed, count, by_hand)
        return {
            "networks": count,
            "valid": valid,
            "pairs": len(pairs),
            "valid_by_hand": valid_by_hand,
            "pairs_by_hand": len(pairs_by_hand),
            "seconds": round(time.perf_counter() - start, 2),
        }

    def reached(
        self, seed: int, count: int, among: Sequence[PartialOperator]
    ) -> tuple[int, set[tuple[str, str]]]:
        """Networks that run, and the pairs of operators in them."""
        valid, pairs = 0, set[tuple[str, str]]()
        for k in range(count):
            program = grow(seed + k, among=among)
            try:
                workload = network(program, seed + k)
                found = edges(workload)
            except Exception:  # the rules were wrong: the network counts as invalid
                continue
            valid += 1
            pairs |= found
        return valid, pairs


def held_out(among: Sequence[PartialOperator]) -> dict[str, Any]:
    """Calls of a seed that nothing was learned from, judged by the rules."""
    total = Judged()
    for p in among:
        calls = [r.call for r in around(p.calls, 60, 12_345, p.positive)]
        assert p.rules is not None
        total = Judged(*map(sum, zip(total, judged(p.rules, calls), strict=True)))
    return {
        "operators": len(among),
        "calls": total.valid + total.refused,
        "valid": total.valid,
        "wrong": total.wrong,
        "valid_but_rejected": total.narrow,
        "invalid": total.refused,
        "rejected": round(1 - total.missed / max(total.refused, 1), 4),
    }
