"""Claim card of HPCTransCompile (arXiv:2506.10401): are tuned pairs worth learning from?

The paper's language models are not trained here. What is tested is what they are trained on and
scored with: pairs that are right on both sides, and C++ that is clearly faster than what a
translation by rule makes of the CUDA-like side.
"""

from __future__ import annotations

from math import exp, log
from typing import Any, ClassVar

from paredown.errors import LoweringError, ParedownError
from paredown.figure import Figure, counted, measured
from paredown.kernels.loops import transpile
from paredown.kernels.loops.compiled import compiler
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.testing.transpile import evaluate, grow, make_pair, subject, summary, written
from paredown.testing.transpile.pairs import Pair

LEFT_OUT = (
    "conv-3x3-stride-2", "conv-norm-relu", "product-batched", "attention-causal", "sgd", "deviation"
)  # fmt: skip
"""Of each of these another much alike is among the thirty operators."""
QUICK = (
    "product", "linear", "conv-3x3", "softmax", "layer-norm", "attention", "linear-gelu",
    "conv-pool-swish", "max-pool", "gelu",
)  # fmt: skip
"""The kinds that the claim names: products, convolutions, softmax, norms, fused chains; and one of
pooling and of elementwise functions, where there is least to gain."""
TRIALS = {"quick": 4, "full": 10}
SECONDS = {"quick": 0.1, "full": 2.0}
"""Of timing per operator and count of threads; six half rounds are always run."""
GRAPHS = {"quick": 3, "full": 20}
THREADS = {"quick": (1,), "full": (1, 2)}


class HPCTransCompileCard(Card):
    """Ten operators as pairs (full scale: thirty): tuned C++ beside the translation by rule."""

    key = "hpctranscompile"
    claim = (
        "pairs of CUDA and CPU code from schedules tuned by measurement are right on both sides, "
        "and the tuned CPU side is well ahead of a plain translation: there is speed to be learnt "
        "(the paper's figure, 43.8 % more speed of what trained models translate, is not tested)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "pairs_right": 1.0,
        "translations_right": 1.0,
        "tuned_over_naive_1_thread": 1.4,
        "tuned_over_naive_2_threads": 1.4,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Pairs of operators, timed, and of some random graphs, not timed."""
        try:
            compiler()
        except LoweringError as e:
            return Experiment({}, [], [0], untestable=str(e))
        t = self.thresholds
        whole = [n for n in written() if n not in LEFT_OUT]
        names = list(QUICK) if scale == "quick" else whole
        graphs = [grow(seed) for seed in range(GRAPHS[scale])]
        pairs: list[Pair] = []
        failed: list[dict[str, Any]] = []
        for source in (*names, *graphs):
            one = subject(source)
            try:
                pairs.append(make_pair(one, trials=TRIALS[scale], seconds=0.003))
            except ParedownError as e:
                failed.append({"operator": one.task.name, "why": str(e)})
        progress(f"{len(pairs)} pairs right on both sides, {len(failed)} not")
        timed = [p for p in pairs if "task" in p.source]
        rows = evaluate(transpile, timed, threads=THREADS[scale], seconds=SECONDS[scale])
        rows += evaluate(transpile, [p for p in pairs if "graph" in p.source])
        found = summary(rows)
        progress(f"translated by rule: {found['correct']:.0%} right")
        checks = [
            Check("share of pairs right on both sides", len(pairs) / (len(pairs) + len(failed)),
                  ">=", t["pairs_right"]),
            Check("share of translations by rule that are right", found["correct"], ">=",
                  t["translations_right"]),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            "operators": counted(len(names), ""),
            "graphs": counted(len(graphs), ""),
            "translations that compile": counted(found["compile"], "1"),
        }
        for count, key in zip((1, 2), list(t)[2:], strict=True):
            words = f"{count} thread{'s' * (count > 1)}"
            if count not in THREADS[scale]:
                figures[f"translated over tuned, {words}"] = Figure(
                    value=None, unit="x", how="unavailable", reason="needs --scale full"
                )
                continue
            times = [r["times"][str(count)] for r in rows if str(count) in r["times"]]
            naive, power = geometric(times, "translated"), timing_power(times)
            checks.append(Check(f"tuned over translated by rule, {words}", naive, ">=", t[key],
                                power, "x"))  # fmt: skip
            figures[f"translated over tuned, {words}"] = measured(
                naive, "x", spread=(naive - power, naive + power), n=len(times)
            )
            eager = geometric(times, "eager")
            figures[f"eager over tuned, {words}"] = measured(eager, "x", n=len(times))
        table = [
            {"operator": p.name, "trials": p.trials, "tuned_us": round(1e6 * p.seconds, 2),
             **{f"{k}_{c}": round(r["times"][str(c)][k], 2) for c in THREADS[scale]
                for k in ("translated", "eager") if str(c) in r["times"]}}
            for p, r in zip(timed, rows, strict=False)
        ]  # fmt: skip
        return Experiment(figures, checks, [0], {"operators": table, "failed": failed})


def geometric(times: list[dict[str, Any]], key: str) -> float:
    """Geometric mean of a ratio over operators."""
    return exp(sum(log(t[key]) for t in times) / len(times))


def timing_power(times: list[dict[str, Any]]) -> float:
    """What error of timing can do to that mean.

    The operators are the set that is judged, no sample of a larger one, so only timing is in
    doubt: per operator the wider side of the ratio's interval or the A/A ratio's distance from 1,
    whichever is larger, all of them taken to err the same way.
    """
    doubts: list[float] = []
    for t in times:
        low, high = (log(x / t["translated"]) for x in t["spread"])
        doubts.append(max(-low, high, abs(log(t["a_a"]))))
    middle = geometric(times, "translated")
    return middle * (exp(sum(doubts) / len(doubts)) - 1)
