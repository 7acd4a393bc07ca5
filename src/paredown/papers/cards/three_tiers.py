"""Claim card of SN40L: three memory tiers, a composition of experts, streaming pipelines."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import torch

from paredown import device, zoo
from paredown.cost.fusion import pipelines
from paredown.cost.serving import load
from paredown.cost.serving.composition import (
    footprint,
    misses,
    request,
    slots,
    switch_seconds,
    tiers,
)
from paredown.figure import Figure, predicted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards._decoder import decoder
from paredown.workload import Workload

EXPERTS = 150
"""Of Samba-CoE, each a Llama 2 7B in 16 bits."""
PROMPT, OUTPUT = 512, 20
"""Tokens of a request; the paper's own lengths could not be looked up, so others are tabled."""
RUNS = {
    "prefill of 2048": {"tokens": 2048, "context": 0},
    "prefill of 512": {"tokens": 512, "context": 0},
    "decode after 2048": {"tokens": 1, "context": 2048},
    "decode after 2048, batch 8": {"tokens": 1, "context": 2048, "batch": 8},
}
NETWORKS = {
    "quick": ("mobilenetv2", "vit-s", "convnext-tiny", "densenet121"),
    "full": ("mobilenetv2", "vit-s", "convnext-tiny", "densenet121", "dit-b2", "swin-tiny",
             "efficientnet-b0", "inception-v4"),
}  # fmt: skip
PUBLISHED = {"dgx-h100": (3.7, 15.0), "dgx-a100": (6.6, 31.0)}
"""Overall and switching speed-up over each."""


class SN40LCard(Card):
    """The node's model from its device file, with nothing fitted to the overall figures.

    The DDR rate of the device file is itself derived from the published switching ratios, so these
    are reported and not judged. Nothing is timed: a measured analogue is left out.
    """

    key = "sn40l"
    claim = (
        "fusing operators into streaming pipelines is 2x to 13x faster than running them one by "
        "one; a composition of 150 experts takes up to 19x fewer machines and answers 3.7x faster "
        "than on a DGX H100, 6.6x than on a DGX A100"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "fused_runs_that_move_more": 0,
        "least_fusion_speedup": 2.0,
        "most_fusion_speedup": 13.0,
        "footprint_off_19x": 0.15,
        "overall_speedup_off": 0.3,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Decoder layers and networks of the zoo fused on paper; requests drawn alike."""
        t = self.thresholds
        node, expert = device.load("sn40l"), load("llama-2-7b")
        fused: list[dict[str, Any]] = []
        for name, run in RUNS.items():
            fused.append(fused_row(f"llama-2-7b, {name}", decoder(expert, 2, **run)))
            progress(f"{name}: {fused[-1]['speedup']:.2f}x")
        networks = list(NETWORKS[scale])
        for name in networks:
            with torch.device("meta"):
                model = zoo.create(name).eval()
            fused.append(fused_row(name, capture(Workload(model, zoo.example(name)))))
        decoders = [r["speedup"] for r in fused[: len(RUNS)]]
        size = 2 * expert.parameters
        held = int(tiers(node)[1].capacity_bytes // size)
        machines = {
            n: footprint(held * size, device.load(n).levels[0].capacity_bytes) for n in PUBLISHED
        }
        rows = [overall_row(name, OUTPUT) for name in PUBLISHED]
        longer = [overall_row(name, n) for name in PUBLISHED for n in (50, 100, 200, 500)]
        off = max(abs(r["speedup"] / r["published"] - 1) for r in rows)
        checks = [
            Check("fused runs that move more than unfused ones",
                  sum(r["fused_bytes"] > r["unfused_bytes"] for r in fused), "<=",
                  t["fused_runs_that_move_more"]),
            Check("least speed-up of fusion, four runs of Llama 2 7B", min(decoders), ">=",
                  t["least_fusion_speedup"]),
            Check("most speed-up of fusion, the same", max(decoders), "<=",
                  t["most_fusion_speedup"]),
            Check("DGX nodes for what one node's DDR holds, off 19",
                  abs(machines["dgx-h100"] / 19 - 1), "<=", t["footprint_off_19x"]),
            Check("overall speed-up off the published ones, at most", off, "<=",
                  t["overall_speedup_off"]),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            "experts that one node's DDR holds": predicted(held, ""),
            "DGX nodes that hold as many in HBM": predicted(machines["dgx-h100"], ""),
            "seconds to switch an expert": predicted(switch_seconds(size, node), "s"),
        }
        for row in rows:
            host = row["device"]
            figures[f"overall speed-up over {host}"] = predicted(round(row["speedup"], 2), "1")
            ratio = switch_seconds(size, device.load(host)) / switch_seconds(size, node)
            figures[f"switching ratio to {host} (by construction)"] = predicted(ratio, "1")
        return Experiment(figures, checks, [0], {"fusion": fused, "overall": rows + longer})


def fused_row(name: str, graph: Any) -> dict[str, Any]:
    """One run fused and unfused on an SN40L node."""
    found = pipelines(graph, device.load("sn40l"))
    return {
        "run": name,
        "operators": len(found.alone),
        "groups": len(found.groups),
        "unfused_bytes": found.unfused_traffic,
        "fused_bytes": found.traffic,
        "speedup": found.unfused_seconds / found.seconds,
    }


def overall_row(host: str, output: int) -> dict[str, Any]:
    """A request's mean time on a GPU node over that on an SN40L node, experts drawn alike."""
    expert = load("llama-2-7b")
    draw = random.Random(0)
    asked = [draw.randrange(EXPERTS) for _ in range(4000)]
    seconds: dict[str, float] = {}
    shares: dict[str, float] = {}
    for name in (host, "sn40l"):
        where = device.load(name)
        places = slots(where, 2 * expert.parameters, reserved=2 * expert.parameters)
        shares[name] = misses(asked, places) / len(asked)
        found = request(expert, where, prompt=PROMPT, output=output, miss_share=shares[name])
        seconds[name] = found.seconds
    return {
        "device": host,
        "output": output,
        "miss_share": shares[host],
        "miss_share_sn40l": shares["sn40l"],
        "seconds": seconds[host],
        "seconds_sn40l": seconds["sn40l"],
        "speedup": seconds[host] / seconds["sn40l"],
        "published": PUBLISHED[host][0],
    }
