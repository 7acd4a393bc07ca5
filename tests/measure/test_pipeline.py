"""The served pipeline: brokers keep every message, spans add up, pictures become right tensors."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from paredown.cli import main
from paredown.errors import InputError, MeasurementError, NotApplicable
from paredown.measure import pictures, pipeline
from paredown.measure.brokers import KINDS, Broker, Kind, Message, broker
from paredown.measure.served import Spans, Stage, serve
from paredown.report.pipeline import pipeline as shown
from paredown.workload import Workload


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_hands_over_every_message_once_and_in_order(kind: Kind) -> None:
    arrays = [np.full((i, 3), i, np.float32) for i in range(12)]
    with broker(kind) as way:
        assert way.get(wait=False) is None
        for i, a in enumerate(arrays):
            way.put(Message(i, a, float(i)))
        for i, a in enumerate(arrays):
            got = way.get()
            assert got is not None
            assert (got.request, got.sent, got.array.dtype) == (i, float(i), a.dtype)
            np.testing.assert_array_equal(got.array, a)
        assert way.get(wait=False) is None


def test_a_broker_that_died_is_no_hang() -> None:
    with Broker("log") as way:
        way._process.kill()
        way._process.wait()
        with pytest.raises((MeasurementError, ConnectionError)):
            way.put(Message(0, np.zeros(1), 0.0))
        with pytest.raises((MeasurementError, ConnectionError)):
            way.get()


def slow(seconds: float, fan_out: int = 1):
    def make():
        def work(arrays, spans: Spans):
            with spans.span("work"):
                threading.Event().wait(seconds)
            return [[a + i for i in range(fan_out)] for a in arrays]

        return work

    return make


@pytest.mark.parametrize("kind", ["queue", "memory"])
def test_spans_add_up_and_littles_law_holds(kind: Kind) -> None:
    stages = [Stage("a", slow(0.01), workers=2), Stage("b", slow(0.008), given=kind)]
    log = serve(stages, [np.arange(4.0)], concurrency=3, requests=24)
    assert sorted(log.trace.ended) == sorted(log.trace.ended)
    assert len(log.services["a"]) == len(log.services["b"]) == 24
    # Nothing is counted twice; what no span sees is what a busy machine does between two of them.
    assert 0.6 < np.median(log.covered()) <= 1 + 1e-9
    assert max(log.covered()) <= 1 + 1e-9
    assert log.trace.littles_ratio == pytest.approx(1, abs=0.5)


def test_every_job_of_a_request_is_awaited() -> None:
    seen: list[float] = []

    def keep():
        def work(arrays, spans: Spans):
            seen.extend(float(a[0]) for a in arrays)
            return [[] for _ in arrays]

        return work

    stages = [Stage("a", slow(0, fan_out=3)), Stage("b", keep, batch=2)]
    log = serve(stages, [np.zeros(1), np.full(1, 10.0)], concurrency=2, requests=8)
    assert sorted(seen) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, *[10] * 4, *[11] * 4, *[12] * 4]
    assert len(log.services["b"]) <= 24
    with pytest.raises(InputError, match="too few"):
        serve(stages, [np.zeros(1)], concurrency=4, requests=8)


def test_what_a_stage_raises_is_raised() -> None:
    def make():
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        serve([Stage("a", make)], [np.zeros(1)], concurrency=1, requests=3)


def test_a_file_becomes_the_tensor_of_its_pixels() -> None:
    file = pictures.stored(48, "png", seed=1)
    pixels = np.asarray(Image.open(io.BytesIO(file.tobytes())))
    np.testing.assert_array_equal(pixels, pictures.picture(48, seed=1))
    spans = Spans()
    ((made,),) = pictures.preprocess(48, 48)()([file], spans)
    want = (pixels / 255 - np.array(pictures.MEAN)) / np.array(pictures.STD)
    np.testing.assert_allclose(made, want.transpose(2, 0, 1), atol=1e-5)
    assert set(spans.seconds) == {"decode", "resize", "normalise"}
    images = [Image.fromarray(pixels)]
    ((again,),) = pictures.preprocess(48, 48, decoded=images)()([np.zeros(1, int)], Spans())
    np.testing.assert_array_equal(again, made)
    assert pictures.preprocess(8, 16, 1)()([file], Spans())[0][0].shape == (1, 8, 16)


class Tiny(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def test_the_network_stage_is_the_network() -> None:
    torch.manual_seed(0)
    w = Workload(Tiny(), (torch.zeros(2, 3, 8, 8),))
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        want = w.model(x)
    got = pipeline.network(w, "eager")()([a for a in x.numpy()], Spans())
    np.testing.assert_allclose(np.stack([g[0] for g in got]), want.numpy(), atol=1e-6)


def test_a_profile_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "RUN_S", 0.02)
    monkeypatch.setattr(pipeline, "tell", lambda _: None)
    monkeypatch.setattr(pipeline, "FEWEST", 9)
    monkeypatch.setattr(pipeline, "KINDS", ("queue", "log"))
    w = Workload(Tiny(), (torch.zeros(1, 3, 8, 8),), name="tiny")
    doc = pipeline.profile(w, backend="eager", sizes=(16,), concurrency=2)
    assert [r.broker for r in doc.runs][-1] == "log"
    row = doc.pictures[0]
    assert set(row.stages) == set(pipeline.STAGES)
    assert 0 < row.outside.known() < 1
    assert row.without_network.known() == pytest.approx(1 / row.outside.known())
    assert type(doc).model_validate_json(doc.to_json()) == doc
    assert shown(doc)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 4, 8, 8)])
def test_what_reads_no_pictures_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotApplicable, match="tiny"):
        pipeline.image_of(Workload(Tiny(shape[1]), (torch.zeros(shape),), name="tiny"))


def test_options_that_belong_to_the_other_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "x.py", "--pipeline", "--train"]) == 2
    assert "--train cannot be given with --pipeline" in capsys.readouterr().err
    assert main(["profile", "x.py", "--pixels", "64"]) == 2
    assert "--pixels needs --pipeline" in capsys.readouterr().err
