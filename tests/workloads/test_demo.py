"""The demo's target as committed: the file its docstring names, the accuracy it states."""

import hashlib
import importlib.util
from pathlib import Path

import pytest

from paredown.workloads import digits

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_digits", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_weights_are_those_the_docstring_names(example):
    data = example.WEIGHTS.read_bytes()
    assert len(data) < 5_000_000
    assert hashlib.sha256(data).hexdigest() in example.__doc__


@pytest.mark.slow
def test_held_out_accuracy_is_the_one_stated(example):
    work = example.target()
    scores = work.verify(work.model)
    assert len(scores) == 917
    assert f"{scores.mean():.4f}" in example.__doc__
    assert scores.mean() >= 0.985


def test_workload_is_complete_and_runs(example):
    work = example.target()
    assert work.call().shape == (1, 10)
    assert len(work.calibration) == 128
    assert work.calibration[0].shape == work.inputs[0].shape == (1, 1, 96, 96)
    assert work.training is not None
    assert work.scale == 1.0
    trained_on = work.training.batches.labels
    judged = work.evaluate(work.model)
    scans = len(judged) // (1 + digits.COPIES)
    assert scans == 160
    assert len(trained_on) + scans <= 897
