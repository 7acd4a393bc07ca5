"""`pare down` against every single runtime, side by side, at an equal allowed drop of 1 %.

    python benchmarks/down.py [--networks A,B] [--effort 5m] --json benchmarks/results/down.json

For each network: pare it down for latency alone under `drop <= 1%`, then time the result, loaded
back from disk, interleaved with eager, inductor, ONNX Runtime, OpenVINO f32 and bf16, and OpenVINO
int8 as NNCF makes it. A peer whose drop on the held-out examples exceeds 1 % is printed but does
not count as best. Networks that FILE holds from the same machine and that are not named stay in it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paredown import artefact, quality, runtime
from paredown.measure.child import Jobs, Limits
from paredown.measure.compare import interleave
from paredown.measure.fingerprint import Fingerprint, fingerprint
from paredown.paring import down
from paredown.recipe import parse_inline
from paredown.recipe import run as apply
from paredown.targets import resolve

HERE = Path(__file__).parent
NETWORKS = ("mobilenetv2", "vovnet", "convnext", "vit")
ALLOWED_DROP = 0.01
SECONDS = 12.0


@dataclass(frozen=True)
class Job:
    """One network's interleaved run."""

    target: str
    folder: Path
    threads: int


def peers(workload: Any, threads: int) -> dict[str, Any]:
    """Executables of every single runtime by name; a failure is its text."""
    plans = {
        "eager": ("eager", ""),
        "inductor": ("inductor", ""),
        "inductor-bf16": ("inductor", "bf16"),
        "onnxruntime": ("onnxruntime", ""),
        "openvino-f32": ("openvino", ""),
        "openvino-bf16": ("openvino", "bf16"),
    }
    found: dict[str, Any] = {}
    for name, (backend, steps) in plans.items():
        w = apply(parse_inline(steps), workload).workload if steps else workload
        found[name] = runtime.backend(backend).lower(w, threads=threads)
    found["openvino-int8-nncf"] = nncf_int8(workload, threads)
    return found


def nncf_int8(workload: Any, threads: int) -> Any:
    """OpenVINO int8 by NNCF's post-training quantization with its defaults, bf16 elsewhere."""
    from paredown.runtime._quiet import no_telemetry

    no_telemetry()
    import nncf
    import openvino as ov

    example = workload.inputs
    model = ov.convert_model(torch.export.export(workload.model.eval(), example))
    model.reshape({i: list(x.shape) for i, x in enumerate(example)})
    calls = list(workload.calibration_inputs()) if workload.calibration else [(example, {})]
    data = nncf.Dataset([[x.numpy() for x in args] for args, _ in calls])
    # Network type matters to NNCF: its own advice for transformers is to name it.
    heads = any(isinstance(m, torch.nn.LayerNorm) for m in workload.model.modules())
    kind = nncf.ModelType.TRANSFORMER if heads else None
    quantized = nncf.quantize(model, data, subset_size=len(calls), model_type=kind)
    compiled = ov.Core().compile_model(
        quantized,
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()

    def call(*args: torch.Tensor) -> torch.Tensor:
        request.infer([a.numpy() for a in args], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return call


def measure(job: Job) -> list[dict[str, Any]]:
    """One network: check outputs and scores, then time everything in turns."""
    torch.set_num_threads(job.threads)
    workload = resolve(job.target)
    subjects = peers(workload, job.threads)
    pared = artefact.load(job.folder, threads=job.threads, source=workload)
    subjects = {"pared": pared.executable, **subjects}
    before = scores(workload, workload.model)
    calls = list(workload.calibration_inputs())[:32]
    rows: dict[str, dict[str, Any]] = {}
    for name, executable in subjects.items():
        model = One(executable)
        drop = quality.drop(before, scores(workload, model))
        rows[name] = {
            "backend": name,
            "drop": drop.value,
            "drop_interval": drop.spread,
            "examples": drop.n,
            "fidelity": quality.compare(workload.model, model, calls).value,
            "gate": drop.known() <= ALLOWED_DROP + 1e-9,
        }
    args = workload.inputs
    with torch.inference_mode():
        c = interleave([(n, lambda e=e: e(*args)) for n, e in subjects.items()], seconds=SECONDS)
    for t in c.timings:
        low, high = t.latency.spread or (None, None)
        rows[t.name] |= {
            "median_s": t.latency.value,
            "q20_s": low,
            "q80_s": high,
            "over_pared": t.ratio.value,
            "over_pared_interval": t.ratio.spread,
            "a_a": c.a_a.value,
        }
    return list(rows.values())


class One(torch.nn.Module):
    """A batch-1 executable behind a module that takes any batch."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.as_tensor(self.run(row)).clone() for row in x.split(1)])


def scores(workload: Any, model: torch.nn.Module) -> Any:
    with torch.inference_mode():
        return quality.scores(workload.verify(model.eval()))


def best_peer(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest single runtime that keeps the quality."""
    fit = [r for r in rows if r["backend"] != "pared" and r["gate"]]
    return min(fit, key=lambda r: r["over_pared"])


def reached(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures asked for, by how CONTRACTS reads intervals: "not slower" holds where
    the interval allows it, "faster" where its lower end reaches the figure.
    """
    intervals = {n["network"]: best_peer(n["rows"])["over_pared_interval"] for n in networks}
    return {
        "quality kept": [n["network"] for n in networks if n["rows"][0]["gate"]],
        "never slower than 1.02x": all(high >= 1 / 1.02 for _, high in intervals.values()),
        "at least 1.25x faster": [name for name, (low, _) in intervals.items() if low >= 1.25],
    }


def summary(network: str, rows: list[dict[str, Any]]) -> str:
    """The line for people: the best peer that keeps the quality, and the factor."""
    best = best_peer(rows)
    low, high = best["over_pared_interval"]
    return (
        f"{network}: {best['over_pared']:.2f}x the best peer ({best['backend']}), "
        f"interval {low:.2f} to {high:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--effort", default="5m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from paredown.report.progress import on_stderr

    names = options.networks.split(",")
    networks = kept(options.json, names)
    for name in names:
        target = f"{HERE / 'nets.py'}:{name}"
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            result = down(
                target,
                # No network gets there: the search then lowers the latency as far as it can.
                to=["latency <= 0.01x", f"drop <= {ALLOWED_DROP}"],
                effort=options.effort,
                threads=options.threads,
                out=Path(scratch) / name,
                progress=on_stderr(),
            )
            rows = Jobs().run(
                measure,
                Job(target, result.folder, options.threads),
                limits=Limits.default(900),
            )
        line = summary(name, rows)
        print(line, flush=True)
        networks.append(
            {
                "network": name,
                "recipe": result.doc.recipe,
                "summary": line,
                "rows": rows,
                "trials": len(result.doc.trials),
                "seconds": round(time.monotonic() - start, 1),
                "date": datetime.date.today().isoformat(),
                "command": " ".join(["python", *sys.argv]),
            }
        )
        # After each network: an hour's run cut off keeps what it has.
        body = document(networks)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(body, indent=1) + "\n")
    print(reached(networks))


def kept(file: Path | None, names: list[str]) -> list[dict[str, Any]]:
    """Results in ``file`` that were measured on this machine and are not measured anew."""
    if file is None or not file.exists():
        return []
    body = json.loads(file.read_text())
    if Fingerprint.model_validate(body["machine"]).key != fingerprint().key:
        return []
    return [n for n in body["networks"] if n["network"] not in names]


def document(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """The results with this machine's fingerprint."""
    return {
        "schema": 1,
        "machine": fingerprint().model_dump(),
        "reached": reached(networks),
        "networks": networks,
    }


if __name__ == "__main__":
    main()
