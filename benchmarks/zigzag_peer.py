"""ZigZag's side of `zigzag.py`: run in the peer's own environment, jobs and answers as JSON lines.

The first line holds the accelerator and LOMA's limit of loop factors; every further one a layer and
its mapping. Each answer has the mapping of least energy and that of least latency among all that
ZigZag tries: cycles in their parts, energy, and bits by operand, memory and direction.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
from zigzag.stages.main import MainStage
from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
from zigzag.stages.parser.workload_parser import WorkloadParserStage
from zigzag.stages.stage import Stage
from zigzag.stages.workload_iterator import WorkloadStage


class BothStage(Stage):  # type: ignore[misc]
    """Of all mappings the one of least energy and the one of least latency, in one pass."""

    def run(self) -> Any:
        """Two evaluations, energy first."""
        best: list[Any] = [None, None]
        below = self.list_of_callables[0](self.list_of_callables[1:], **self.kwargs)
        for found, extra in below.run():
            keys = (
                (found.energy_total, found.latency_total2),
                (found.latency_total2, found.energy_total),
            )
            for i, key in enumerate(keys):
                if best[i] is None or key < best[i][0]:
                    best[i] = (key, found, extra)
        for _, found, extra in best:
            yield found, extra


def told(found: Any) -> dict[str, Any]:
    """One evaluation as plain numbers."""
    bits: dict[str, dict[str, float]] = {}
    for operand, levels in found.memory_word_access.items():
        memory_operand = found.memory_operand_links.layer_to_mem_op(operand)
        for i, accesses in enumerate(levels):
            level = found.accelerator.get_memory_level(memory_operand, i)
            bits[f"{operand}@{level.name}"] = {
                str(way): count * (level.get_max_bandwidth(memory_operand, way) or 0)
                for way, count in accesses.data.items()
                if count
            }
    return {
        "energy": found.energy_total,
        "mac_energy": found.mac_energy,
        "cycles": found.latency_total2,
        "computing": found.ideal_temporal_cycle,
        "stalls": found.stall_slack_comb,
        "loading": found.data_onloading_cycle,
        "unloading": found.data_offloading_cycle,
        "drain": found.systolic_drain_cycle,
        "bits": bits,
        "loops": str(found.temporal_mapping.mapping_dic_stationary),
    }


def evaluated(job: dict[str, Any], setup: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The two evaluations of one layer."""
    for name, body in (
        ("layer", [job["layer"]]),
        ("mapping", [job["mapping"]]),
        ("accelerator", setup["accelerator"]),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    from zigzag.mapping.temporal_mapping import TemporalMappingType

    stages = [
        WorkloadParserStage,
        AcceleratorParserStage,
        WorkloadStage,
        BothStage,
        SpatialMappingGeneratorStage,
        TemporalMappingGeneratorStage,
        CostModelStage,
    ]
    found = MainStage(
        stages,
        accelerator=str(folder / "accelerator.yaml"),
        workload=str(folder / "layer.yaml"),
        mapping=str(folder / "mapping.yaml"),
        loma_lpf_limit=setup["factors"],
        loma_show_progress_bar=False,
        nb_mappings_generated=1,
        enable_mix_spatial_mapping_generation=False,
        access_same_data_considered_as_no_access=True,
        temporal_mapping_type=TemporalMappingType("uneven"),
    ).run()
    return [told(evaluation) for evaluation, _ in found]


def main() -> int:
    """A line of JSON out for each line in after the first."""
    logging.disable(logging.CRITICAL)
    setup = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(evaluated(json.loads(line), setup, Path(folder))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
