"""A served vision network: where a picture's time goes, and what many at a time reach."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from paredown.report import units
from paredown.report.cells import known, legend, table
from paredown.result import PipelineDoc


def pipeline(doc: PipelineDoc) -> list[RenderableType]:
    """Stages by size of picture, then ways to serve, predicted beside measured."""
    c, h, w = doc.shape
    head = Text(
        f"{doc.target} on {doc.backend}, batch {doc.batch} of {c} x {h} x {w}, {doc.cores} cores",
        style="bold",
    )
    sizes = [f"{p.pixels} px" for p in doc.pictures]
    one = table("One request at a time", "", *sizes, right=range(1, len(sizes) + 1))
    one.add_row(f"{doc.codec} file", *[known(p.file_bytes) for p in doc.pictures])
    for stage in doc.pictures[0].stages:
        one.add_row(stage, *[known(p.stages[stage]) for p in doc.pictures])
    one.add_row("arrival to end", *[known(p.latency) for p in doc.pictures])
    shares = [Text(f"{p.outside.known():.0%} {units.MARKS['measured']}") for p in doc.pictures]
    one.add_row("outside the network", *shares)
    one.add_row("gain, network of no time", *[known(p.without_network) for p in doc.pictures])
    one.add_row("gain, network alone", *[known(p.without_the_rest) for p in doc.pictures])
    many = table("Many at a time", "pixels", "handed over by", "workers", "at a time", "bottleneck",
                 "throughput", "predicted", "latency", "predicted", "alone", "handing over",
                 right=(0, 2, 3, 5, 6, 7, 8, 9, 10))  # fmt: skip
    for r in doc.runs:
        many.add_row(
            str(r.pixels), "nothing (fused)" if r.broker == "fused" else r.broker, str(r.workers),
            str(r.concurrency), r.bottleneck, known(r.throughput), known(r.throughput_predicted),
            known(r.latency), known(r.latency_predicted), known(r.alone),
            known(r.handing) if r.handing else "",
        )  # fmt: skip
    shown = [doc.pictures[0].latency, doc.pictures[0].file_bytes, doc.pictures[0].without_network]
    return [head, one, "", many, legend(shown), *map(Text, doc.notes)]
