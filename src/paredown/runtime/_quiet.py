"""Silence that is asked for: no telemetry, no third-party chatter while a model is converted."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager


def no_telemetry() -> None:
    """Make ``import openvino_telemetry`` fail, which openvino and nncf answer with a silent stub.

    To be called before either is imported; needs no network and writes no consent file.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@contextmanager
def quiet() -> Generator[None]:
    """Drop warnings that exporters log and raise about their own tables; errors still surface."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
