"""Scoring a translator: does its C++ compile, is it right, how fast beside the tuned side?

The metrics of HPCTransEval (Lv et al. 2025, arXiv:2506.10401): compile rate, share right, ratio of
times to the tuned C++; here with the kernel bench's gates (five sets of inputs, its tolerances, own
work), each pair in a process of its own, and times from one interleaved run. A translator is any
function from CUDA-like text to C++ text with ``extern "C" void run(...)`` of the same buffers;
``paredown.kernels.loops.transpile`` is the baseline by rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import exp, log
from typing import Any

from paredown.errors import CandidateFailed
from paredown.testing.transpile.pairs import Pair

Translator = Callable[[str], str]
Row = dict[str, Any]
LIMIT_S = 120.0
"""For compiling, checking and timing one translation."""


def evaluate(
    translate: Translator,
    pairs: Iterable[Pair],
    *,
    name: str = "translated",
    threads: Sequence[int] = (1,),
    seconds: float = 0.0,
    say: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """A row per pair: the bench's verdict and, with ``seconds`` to spend on each count of threads,
    ``times``: by threads, how much longer the translation and eager take than the tuned side.
    """
    from paredown.measure.child import Jobs, Limits

    jobs = Jobs()
    rows: list[Row] = []
    for pair in pairs:
        row: Row = {"task": pair.name, "category": pair.category, "backend": name, "reason": "",
                    "error": None, "times": {}}  # fmt: skip
        try:
            text = translate(pair.cuda.text)
        except Exception as e:  # a translator is foreign code: whatever it raises is the finding
            row |= {"outcome": "no kernel", "reason": f"{type(e).__name__}: {e}"[:300]}
        else:
            try:
                row |= jobs.run(score, pair.to_json(), text, tuple(threads), seconds,
                                limits=Limits.default(LIMIT_S))  # fmt: skip
            except CandidateFailed as e:
                row |= {"outcome": "raised", "reason": str(e)}
        say(row)
        rows.append(row)
    return rows


def score(pair_json: Row, text: str, threads: Sequence[int], seconds: float) -> Row:
    """In a child: one translation judged and, where it is right, timed."""
    import torch

    from paredown.measure.compare import interleave
    from paredown.testing.bench import Kernel, KernelBackend, Task, judge
    from paredown.testing.transpile.subjects import subject

    pair = Pair.from_json(pair_json)
    one = subject(pair.source)
    torch.set_num_threads(1)
    translated = one.backend("translated", text, pair.cuda.buffers, 1)
    made: dict[int, Kernel] = {}

    def make(task: Task, count: int) -> Kernel:
        made[1] = translated.make(task, count)
        return made[1]

    found = judge(one.task, KernelBackend("translated", make))
    row: Row = {"outcome": found.outcome, "reason": found.reason, "error": found.error}
    if found.outcome != "correct" or not seconds:
        return row
    inputs, reference = one.task.inputs(1)[0], one.task.reference()
    times: Row = {}
    for count in threads:
        torch.set_num_threads(count)
        again = one.backend("translated", text, pair.cuda.buffers, count)
        ours = made.get(count) or again.make(one.task, count)
        best = one.backend("tuned", pair.cpp.text, pair.cpp.buffers, count).make(one.task, count)
        with torch.inference_mode():
            done = interleave(
                [("tuned", lambda k=best: k(*inputs)), ("translated", lambda k=ours: k(*inputs)),
                 ("eager", lambda: reference(*inputs))],
                seconds=seconds,
            )  # fmt: skip
        times[str(count)] = {
            "tuned_s": done["tuned"].latency.known(),
            "translated": done["translated"].ratio.known(),
            "spread": done["translated"].ratio.spread,
            "eager": done["eager"].ratio.known(),
            "a_a": done.a_a.known(),
        }
    return {**row, "times": times}


def summary(rows: Sequence[Row]) -> Row:
    """Shares compiled and right, and geometric means of the ratios by threads."""
    out: Row = {
        "pairs": len(rows),
        "compile": sum(r["outcome"] != "no kernel" for r in rows) / max(len(rows), 1),
        "correct": sum(r["outcome"] == "correct" for r in rows) / max(len(rows), 1),
        "ratios": {},
    }
    for count in sorted({c for r in rows for c in r["times"]}):
        timed = [r["times"][count] for r in rows if count in r["times"]]
        out["ratios"][count] = {
            k: exp(sum(log(t[k]) for t in timed) / len(timed)) for k in ("translated", "eager")
        }
    return out
