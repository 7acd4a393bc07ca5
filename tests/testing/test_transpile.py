"""Pairs of texts: both sides are the bench's task, graphs stay what they are, scores are earned."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paredown.errors import ArtefactError, InputError, UnknownName
from paredown.kernels.loops import evaluate as truth
from paredown.kernels.loops import for_cpu, for_threads, parse, print_cpp, print_cuda, transpile
from paredown.kernels.loops.compiled import Library
from paredown.testing.bench import KernelBackend, judge
from paredown.testing.transpile import Graph, grow, harness, make_pair, pairs, sketches, subject
from paredown.testing.transpile.graphs import OPERATORS, PLACEHOLDER, Node
from paredown.testing.transpile.operators import written
from paredown.testing.transpile.pairs import read_pairs, write_pairs
from paredown.testing.transpile.subjects import Subject
from paredown.testing.transpile.tune import candidates, tune


def by_truth(one: Subject) -> KernelBackend:
    """The operator itself as a backend, without any loop."""

    def call(*tensors: Tensor) -> Any:
        found = truth(one.written.op, [t.numpy() for t in tensors] + one.written.weights)
        out = tuple(torch.from_numpy(a) for a in found)
        return out[0] if len(out) == 1 else out

    return KernelBackend("truth", lambda _task, _threads: call)


SMALL = [n for n in written() if subject(n).written.op.floating() < 100_000]
LARGE = [n for n in written() if n not in SMALL]


def is_its_task(name: str) -> None:
    one = subject(name)
    assert judge(one.task, by_truth(one)).outcome == "correct"


@pytest.mark.parametrize("name", SMALL)
def test_a_small_operator_is_its_task(name: str) -> None:
    is_its_task(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_operator_is_its_task(name: str) -> None:
    is_its_task(name)


def test_every_operator_has_a_text_that_reads_back() -> None:
    assert len(written()) == 36
    for name in written():
        program = for_threads(sketches.for_threads(subject(name).written.op))
        text = print_cuda(program)
        assert parse(text) == program, name
        assert "__global__" not in transpile(text)
    with pytest.raises(UnknownName, match="cumulative-sum"):
        subject("cumulative-sum")


def test_graphs_grow_without_cycles_and_mean_the_same_everywhere() -> None:
    graphs = [grow(seed) for seed in range(24)]
    assert {n.op for g in graphs for n in g.nodes} == {*OPERATORS, PLACEHOLDER}
    assert len(OPERATORS) == 12
    assert any(len({r for n in g.nodes for r in n.reads}) < sum(len(n.reads) for n in g.nodes)
               for g in graphs)  # fmt: skip
    for graph in graphs:
        assert all(r < at for at, n in enumerate(graph.nodes) for r in n.reads)
        assert sum(n.op != PLACEHOLDER for n in graph.nodes) == 5
        inputs = graph.task().inputs(1)[0]
        out = graph.run(*inputs)
        assert [tuple(t.shape) for t in out] == [graph.nodes[n].shape for n in graph.results]
        again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
        assert again == graph
        assert judge(graph.task(), by_truth(subject(graph))).outcome == "correct", graph.name
    assert grow(3) == graphs[3]
    assert len({g.name for g in graphs}) > 20


def test_a_graph_that_is_none_is_refused() -> None:
    x = Node(PLACEHOLDER, (), (3, 4))
    for node, why in (
        (Node("cos", (1,), (3, 4)), "does not come before"),
        (Node("cos", (0,), (4, 3)), r"gives \(3, 4\), not \(4, 3\)"),
        (Node("matmul", (0, 0), (3, 4)), "does not take"),
        (Node("round", (0,), (3, 4)), "does not take"),
    ):
        with pytest.raises(InputError, match=why):
            Graph((x, node))
    with pytest.raises(InputError, match="no graph"):
        Graph.from_json([["cos"]])
    # Results that single precision does not settle are no task.
    powers = (Node("matmul", (n, n), (48, 48)) for n in range(4))
    start = Node(PLACEHOLDER, (), (48, 48))
    big = Graph((start, *powers, Node("tan", (4,), (48, 48))))
    assert not big.settled()
    assert big.results == [5]


def test_random_schedules_give_the_same_result() -> None:
    rows = [
        [PLACEHOLDER, [], [2, 9, 10]],
        ["tanh", [0], [2, 9, 10]],
        [PLACEHOLDER, [], [12, 10]],
        ["dense", [1, 2], [2, 9, 12]],
        ["abs", [3], [2, 9, 12]],
    ]
    graph = Graph.from_json(rows)
    one = subject(graph)
    choose = random.Random(0)
    schedules = [sketches.for_cpu(one.written.op, choose) for _ in range(6)]
    programs = [for_cpu(s, f"run_{n}") for n, s in enumerate(schedules)]
    assert len({print_cpp(p).replace(f"run_{n}", "") for n, p in enumerate(programs)}) > 2
    found = Library([print_cpp(p) for p in programs], ["-O1"])
    inputs = [t.numpy() for t in graph.task().inputs(1)[0]]
    (wanted,) = truth(one.written.op, inputs)
    for s, p in zip(schedules, programs, strict=True):
        shapes = s.op.tensors()
        made = [np.full(shapes[q.name].shape, np.nan, np.float32) for q in p.parameters[2:]]
        found.function(p.name, len(p.parameters))(*(a.ctypes.data for a in (*inputs, *made)))
        np.testing.assert_allclose(made[0], wanted, 1e-5, 1e-5)
    names = [repr(s.steps) for s, _ in candidates(one.written.op, 5, 0)]
    assert len(set(names)) == 5
    assert names == [repr(s.steps) for s, _ in candidates(one.written.op, 5, 0)]
    with pytest.raises(InputError, match="trials"):
        tune(one.written.op, inputs, trials=0)


def test_a_pair_is_kept_as_it_was_made_and_scored_by_the_gates(tmp_path: Path) -> None:
    one = subject("max-columns")
    pair = make_pair(one, trials=2, seconds=0.001, machine="here")
    assert "__global__" in pair.cuda.text
    assert 'extern "C"' in pair.cpp.text
    assert max(pair.errors.values()) == 0.0
    path = write_pairs(tmp_path / "pairs.jsonl", [pair, pair])
    assert read_pairs(path) == [pair, pair]
    lines = path.read_text().splitlines()
    changed = [lines[0], lines[1].replace("acc_t0", "acc_t9")]
    path.write_text("\n".join(changed))
    with pytest.raises(ArtefactError, match=r"line 2: .*wrong hash"):
        read_pairs(path)
    path.write_text("{}")
    with pytest.raises(ArtefactError, match=r"line 1: .*schema"):
        read_pairs(path)
    with pytest.raises(ArtefactError, match="no file"):
        read_pairs(tmp_path / "absent")

    def scored(text: str) -> tuple[str, str]:
        row = harness.score(pair.to_json(), text, (1,), 0.0)
        return row["outcome"], row["reason"]

    right = transpile(pair.cuda.text)
    assert scored(right) == ("correct", "")
    assert scored(right.replace("-3e+38", "5.0"))[0] == "wrong"
    outcome, reason = scored(right.replace("float", "flaot", 1))
    assert outcome == "no kernel"
    assert "refused the text" in reason
    assert pairs.SCHEMA == 1


@pytest.mark.slow
def test_a_translator_that_raises_or_crashes_costs_its_pair_only() -> None:
    pair = make_pair(subject("max-columns"), trials=2, seconds=0.001)
    good = transpile(pair.cuda.text)
    bad = 'extern "C" void run(const float*, float* y) { *(volatile float*)nullptr = y[0]; }'
    given = iter([good, bad, None])

    def translate(text: str) -> str:
        answer = next(given)
        if answer is None:
            raise ValueError("no idea")
        return answer

    rows = harness.evaluate(translate, [pair] * 3, threads=(1, 2), seconds=0.05)
    assert [r["outcome"] for r in rows] == ["correct", "raised", "no kernel"]
    assert rows[2]["reason"] == "ValueError: no idea"
    assert set(rows[0]["times"]) == {"1", "2"}
    found = harness.summary(rows)
    assert (found["compile"], found["correct"]) == (2 / 3, 1 / 3)
    assert found["ratios"]["1"]["translated"] == pytest.approx(rows[0]["times"]["1"]["translated"])
