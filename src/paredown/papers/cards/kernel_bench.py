"""Claim card of MultiKernelBench (arXiv:2507.17773): does the bench tell kernels apart?

No language model writes kernels here: the paper's scores of seven of them are not reproduced.
What is tested is the bench, with planted bugs and with this package's runtimes as its subjects.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from paredown.figure import Figure, counted
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.testing.bench import BACKENDS, CATEGORIES, KernelBackend, judge, summary, tasks
from paredown.testing.bench.mutants import MUTANTS, own_kernel

KNOWN = ("softmax", "linear", "layer-norm")
SUBJECTS = ("native", "onnxruntime", "openvino")
APART = 0.2


class MultiKernelBenchCard(Card):
    """Every planted bug on three tasks, then every task on the reference and three runtimes."""

    key = "multikernelbench"
    claim = (
        "one task set with one interface judges kernels of several backends: planted bugs and code "
        "that only calls the framework are all rejected, right kernels are not, and how many tasks "
        "of a category are passed differs between backends"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "bugs_missed": 0,
        "right_kernels_rejected": 0,
        "categories_without_a_task": 0,
        "reference_pass": 1.0,
        "wrong_results_of_runtimes": 0,
        "categories_apart": 3,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Exact counts; with ``full`` scale every right kernel is timed too."""
        t = self.thresholds
        torch.set_num_threads(1)
        missed: list[str] = []
        rejected = 0
        for name in KNOWN:
            (task,) = tasks([name])
            rejected += judge(task, KernelBackend("own", own_kernel)).outcome != "correct"
            for bug, make in MUTANTS.items():
                if judge(task, KernelBackend(bug, make)).outcome not in ("wrong", "framework"):
                    missed.append(f"{bug} in {name}")
        progress(f"{len(MUTANTS)} bugs in {len(KNOWN)} tasks, missed {missed}")
        seconds = 0.0 if scale == "quick" else 1.0
        verdicts = [judge(task, BACKENDS["eager"]) for task in tasks()]
        for backend in SUBJECTS:
            verdicts += [judge(task, BACKENDS[backend], seconds=seconds) for task in tasks()]
            progress(backend)
        rows = summary(verdicts)
        share = {(r["backend"], r["category"]): r["pass"] for r in rows}
        apart = [
            c for c in CATEGORIES
            if max(share[b, c] for b in SUBJECTS) - min(share[b, c] for b in SUBJECTS) >= APART
        ]  # fmt: skip
        empty = [c for c in CATEGORIES if not tasks([c])]
        wrong = [v for v in verdicts if v.outcome == "wrong"]
        checks = [
            Check("planted bugs missed", len(missed), "<=", t["bugs_missed"]),
            Check("right kernels rejected", rejected, "<=", t["right_kernels_rejected"]),
            Check("categories without a task", len(empty), "<=", t["categories_without_a_task"]),
            Check("share of tasks that the reference passes", share["eager", "all"], ">=",
                  t["reference_pass"]),
            Check("wrong results of three runtimes", len(wrong), "<=",
                  t["wrong_results_of_runtimes"]),
            Check("categories whose pass rates differ by a fifth", len(apart), ">=",
                  t["categories_apart"]),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            "tasks": counted(len(tasks()), ""),
            "planted bugs tried": counted(len(MUTANTS) * len(KNOWN), ""),
            **{f"passed, {b}": counted(round(share[b, "all"], 4), "1") for b in SUBJECTS},
        }
        found: list[dict[str, Any]] = [
            {"backend": v.backend, "task": v.task, "outcome": v.outcome, "reason": v.reason,
             "ratio": v.ratio}
            for v in verdicts if v.outcome != "correct" or v.ratio is not None
        ]  # fmt: skip
        return Experiment(figures, checks, [1024], {"categories": rows, "outcomes": found})
