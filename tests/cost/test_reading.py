"""Surrogates that read: tokens say what is there, readers learn it and are the same each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.cost.reading import Ridge, Vocabulary, tokens
from paredown.cost.reading.networks import KINDS, Reader, ranked
from paredown.cost.reading.tokens import PAD, UNKNOWN
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.graph.text import text
from paredown.measure.subgraphs import Drawn, draw, label
from paredown.papers.cards import texts as card

LINE = "conv(In0, Param[8x3x3x3 float32], -, [1^2], F, 2, 1e-05) = %1:1x8x4x4 float32"


def test_tokens_by_hand() -> None:
    assert tokens(LINE, "operators") == ["conv", "d4", "d13", "d9", "d9", "float32"]
    assert tokens(LINE) == [
        "conv", "In0", "Param", "d13", "d8", "d8", "d8", "float32", "-", "[1^2]", "F", "d6",
        "1e-05",
        "=", "%1", "d4", "d13", "d9", "d9", "float32",
    ]  # fmt: skip
    assert tokens("In0:1 float32\nrelu(%40) = %41:() float32\nOut(%41)") == [
        "relu", "%32", "=", "%32", "float32",
    ]  # fmt: skip


def test_a_vocabulary_pads_cuts_and_knows_what_it_does_not_know() -> None:
    known = Vocabulary.of([["a", "b", "a"], ["a", "b"], ["c"]])
    assert known.number == {"a": 2, "b": 3}
    assert len(known) == 4
    found = known.encoded([["b", "c", "a", "a"], []])
    assert found.tolist() == [[3, UNKNOWN, 2], [PAD] * 3]
    with pytest.raises(InputError, match="needs texts"):
        Vocabulary.of([])


def texts(count: int) -> tuple[list[list[str]], list[float]]:
    """Words in any order; the label counts one of them, in logarithms."""
    rng = np.random.default_rng(0)
    made = [[str(w) for w in rng.choice(["a", "b", "c"], 12)] for _ in range(count)]
    return made, [float(np.log1p(t.count("a"))) for t in made]


@pytest.mark.parametrize("kind", KINDS)
def test_readers_learn_and_repeat(kind: str) -> None:
    words, labels = texts(120)
    made = [Reader(kind).fit(words[:90], labels[:90], epochs=15, seed=1) for _ in range(2)]
    said = [m.predict(words[90:]) for m in made]
    np.testing.assert_array_equal(*said)
    assert np.corrcoef(said[0], labels[90:])[0, 1] > 0.8


def test_ranking_and_ridge() -> None:
    words, labels = texts(120)
    order = Reader("bag", loss="rank").fit(words[:90], labels[:90], epochs=15)
    assert np.corrcoef(order.predict(words[90:]), labels[90:])[0, 1] > 0.8
    ridge = Ridge(buckets=256).fit(words[:90], labels[:90]).predict(words[90:])
    assert np.corrcoef(ridge, labels[90:])[0, 1] > 0.9
    said, true = torch.tensor([0.0, 0.05, 1.0]), torch.tensor([1.0, 2.0, 2.0])
    # Pairs that differ: (second, first) is 0.05 apart, (third, first) enough.
    assert float(ranked(said, true)) == pytest.approx((0.05 + 0) / 2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="readers are"):
        Reader("gpt")
    with pytest.raises(InputError, match="three of each"):
        Reader("bag").fit([["a"]], [1.0])
    with pytest.raises(InputError, match="three of each"):
        Ridge().fit([["a"]] * 3, [1.0])


def test_subgraphs_are_drawn_again_alike_and_timed() -> None:
    one, again = draw(5), draw(5)
    assert isinstance(one.model, Drawn)
    assert text(capture(one), "nodes") == text(capture(again), "nodes")
    assert torch.equal(one.inputs[0], again.inputs[0])
    seen = {n for s in range(60) for n in draw(s).model.names}  # type: ignore[union-attr]
    assert {"conv", "linear", "add", "softmax", "mean"} <= seen
    found = label(one)
    assert found.seconds > 0
    assert found.peak_bytes > 0
    assert found.calls <= found.topology.count(" ") + 1


def test_topologies_are_held_out_whole() -> None:
    data = [card.Label(f"t{i % 11}", "", 1.0 + i, 10 + i, i, i, 1) for i in range(40)]
    train, test = card.divided(data)
    assert len(train) + len(test) == 40
    assert not {x.topology for x in train} & {x.topology for x in test}
    assert {x.topology for x in test} == {"t4", "t9"}
    perfect = card.score(card.values(test, "latency"), card.values(test, "latency"))
    assert perfect == {"error": 0, "relative": 0, "tau": pytest.approx(1)}
