"""What ``pare profile --pipeline`` writes: stages around a vision network, and ways to serve it."""

from __future__ import annotations

from typing import Literal

from paredown.documents.base import Document, Fingerprint, Record
from paredown.figure import Figure


class PipelinePicture(Record):
    """One request at a time, pictures of one size: seconds of each stage, and the whole."""

    pixels: int
    file_bytes: Figure
    stages: dict[str, Figure]
    latency: Figure
    spans: Figure
    """Sum of a request's logged spans over its time; 1 where none is missing."""
    outside: Figure
    """Share of the time that is not the network's."""
    without_network: Figure
    """Amdahl's bound: how much faster with a network that takes no time."""
    without_the_rest: Figure


class PipelineRun(Record):
    """Many requests at a time: predicted from one at a time, and measured.

    ``broker``: ``fused`` (nothing is handed over), ``queue`` (in this process), or a broker process
    with ``memory``, a ``log`` on disk, a ``synced log``. ``workers`` are those in front of the
    network, of everything where fused. ``bottleneck`` names a station, or ``cores``.
    """

    pixels: int
    broker: Literal["fused", "queue", "memory", "log", "synced log"]
    workers: int
    concurrency: int
    bottleneck: str
    bound: Figure
    throughput_predicted: Figure
    throughput: Figure
    latency_predicted: Figure
    latency: Figure
    alone: Figure
    """Latency with one request at a time."""
    handing: Figure | None = None
    """Seconds from sending to taking, one request at a time."""
    littles_ratio: Figure
    """Throughput x mean latency / requests present: 1 by Little's law."""


class PipelineDoc(Document):
    """What ``pare profile --pipeline`` writes; ``shape`` is (channels, height, width)."""

    kind: Literal["pipeline"] = "pipeline"
    target: str
    backend: str
    batch: int
    shape: list[int]
    codec: str
    cores: int
    pictures: list[PipelinePicture]
    runs: list[PipelineRun]
    fingerprint: Fingerprint
    notes: list[str] = []
