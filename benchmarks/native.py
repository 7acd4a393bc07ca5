"""The native engine beside OpenVINO, ONNX Runtime, inductor and eager, network by network.

    python benchmarks/native.py [--networks A,B] [--precision fp32,bf16,int8] [--batch 1,8]
                                [--threads 2] [--seconds 10] [--backends A,B] --json FILE

All backends of one row group run in one child process, taking turns (`measure.compare`), at the
same precision and threads, and are timed only after their outputs passed the lowering gate.
`max_error` is the largest relative RMS error of an output: against the torch model of the same
precision, for `openvino-nncf` (NNCF's own quantization, a different int8 network) against the
float model. `peak_fraction` is the bound over the median, the bound being the larger of the
multiply-accumulates at this machine's measured peak and the weights' bytes at the measured
bandwidth of the level that holds them (`pare calibrate`). A backend that fails is a row with a
`reason`, a network that fails is rows of them; the file is written after each group, where rows of
groups (a network, a precision, a batch) that were not asked for now stay as they were.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

from paredown import runtime
from paredown.cost.price import level_for
from paredown.errors import ParedownError
from paredown.graph.capture import capture
from paredown.measure import calibrate
from paredown.measure.child import Jobs, Limits, one_line
from paredown.measure.compare import interleave
from paredown.measure.fingerprint import fingerprint
from paredown.recipe import parse_inline
from paredown.recipe import run as apply
from paredown.result import Fingerprint
from paredown.runtime.gate import gate
from paredown.targets import resolve

NETWORKS = (
    "mobilenetv2",
    "resnet50",
    "vovnet39",
    "convnext-tiny",
    "inceptionnext-tiny",
    "vit-s",
    "swin-tiny",
    "bert-base",
)
RECIPES = {"fp32": "", "bf16": "bf16", "int8": "static-int8 + bf16"}
"""What is not int8 is bf16: so OpenVINO, and with it NNCF's row, has it by default here."""
FLOAT_REST = "static-int8"
"""ONNX Runtime's: its CPU kernels know no bf16."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
NNCF = "openvino-nncf"
BACKENDS = ("native", "openvino", "onnxruntime", "inductor", "eager", NNCF)
NNCF_ERROR = 0.5
"""What a quantization of its own may differ from the float model; noise alone is above 1."""
BERT_TOKENS = 128
EMPTY = dict.fromkeys(("median_s", "q20_s", "q80_s", "max_error", "gate", "peak_fraction"))


@dataclass(frozen=True)
class Job:
    """One network at one precision and batch."""

    network: str
    precision: str
    batch: int
    threads: int
    seconds: float
    backends: tuple[str, ...]


def workload_of(network: str, batch: int) -> Any:
    """A network by its zoo name, `bert-base`, or any target; random weights, a batch of noise."""
    if network == "bert-base":
        found = bert_base()
    else:
        target = network if ":" in network else f"zoo:{network}"
        found = resolve(target, random_weights=True)
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(_batched(x, batch, generator) for x in found.inputs)
    kwargs = {k: _batched(x, batch, generator) for k, x in found.kwargs.items()}
    return replace(found, inputs=inputs, kwargs=kwargs, calibration=None)


def _batched(x: Any, batch: int, generator: torch.Generator) -> Any:
    """`x` with `batch` examples: floats as noise, integers repeated."""
    if not isinstance(x, torch.Tensor) or x.ndim == 0:
        return x
    shape = (batch, *x.shape[1:])
    if x.is_floating_point():
        return torch.randn(shape, generator=generator).to(x.dtype)
    return x[:1].expand(shape).contiguous()


def bert_base() -> Any:
    """BERT-base as its configuration makes it, 128 tokens."""
    from transformers import BertConfig, BertModel

    from paredown.workload import Workload

    torch.manual_seed(0)
    model = BertModel(BertConfig(), add_pooling_layer=False).eval()
    tokens = torch.randint(0, 30000, (1, BERT_TOKENS))
    kwargs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Workload(model, (), kwargs, name="bert-base")


def executable_of(job: Job, backend: str, workload: Any) -> Any:
    """A backend's executable. Raises what the backend raises."""
    if backend == NNCF:
        from down import nncf_int8

        return nncf_int8(workload, job.threads)
    made = runtime.backend(backend)
    if why := made.available():
        raise ParedownError(why)
    if reasons := made.supports(workload, None):
        raise ParedownError("; ".join(reasons))
    return made.lower(workload, threads=job.threads)


def measure(job: Job) -> list[dict[str, Any]]:
    """The rows of one network: outputs checked first, then all backends in turns."""
    torch.set_num_threads(job.threads)
    plain = workload_of(job.network, job.batch)
    workload = rewritten(plain, RECIPES[job.precision])
    # NNCF's converter takes positional tensors only.
    fits = {NNCF: job.precision == "int8" and not plain.kwargs}
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Any] = {}
    for backend in (b for b in job.backends if fits.get(b, True)):
        row = rows[backend] = head(job, backend) | EMPTY
        try:
            own = plain if backend == NNCF else workload
            if job.precision == "int8" and backend == "onnxruntime":
                own, row["recipe"] = rewritten(plain, FLOAT_REST), FLOAT_REST
            executable = executable_of(job, backend, own)
            row |= checked(executable, own, backend)
        except Exception as e:  # a peer's own failure, of whatever kind, is a row
            row["reason"] = one_line(e)
            continue
        if row["gate"]:
            runs[backend] = (executable, own)
        else:
            row["reason"] = f"outputs differ by {row['max_error']:.2g}: not timed"
    floor = bound(plain, job)
    if runs:
        subjects = [(name, _run(*pair)) for name, pair in runs.items()]
        with torch.inference_mode():
            timed = interleave(subjects, seconds=job.seconds)
        for t in timed.timings:
            low, high = t.latency.spread or (None, None)
            median = t.latency.known()
            rows[t.name] |= {
                "median_s": median,
                "q20_s": low,
                "q80_s": high,
                "peak_fraction": floor / median,
                "over_first": t.ratio.value,
                "over_first_interval": t.ratio.spread,
                "a_a": timed.a_a.value,
            }
    return list(rows.values())


def rewritten(workload: Any, steps: str) -> Any:
    return apply(parse_inline(steps), workload).workload if steps else workload


def _run(executable: Any, workload: Any) -> Any:
    return lambda: executable(*workload.inputs, **workload.kwargs)


def checked(executable: Any, workload: Any, backend: str) -> dict[str, Any]:
    """`max_error` and `gate`; for native also the share of time that torch takes."""
    if backend == NNCF:
        with torch.inference_mode():
            want = workload.model(*workload.inputs).double()
            got = executable(*workload.inputs).double()
        error = float((got - want).square().mean().sqrt() / want.square().mean().sqrt())
        return {"max_error": error, "gate": math.isfinite(error) and error <= NNCF_ERROR}
    seen = gate(executable, workload, calls=1)
    more: dict[str, Any] = {}
    if backend == "native":
        shares = zip(executable.plan.steps, executable.shares(), strict=True)
        more = {"isa": executable.isa, "torch_share": sum(p for s, p in shares if s.fallback)}
    return {"max_error": seen.error, "gate": seen.passed, **more}


def bound(workload: Any, job: Job) -> float:
    """Seconds that no backend can beat: work at the peak, or weights at their bandwidth."""
    device = calibrate.this()
    graph = capture(workload)
    macs = sum(n.macs or 0 for n in graph.nodes)
    weights = sum(p.numel() for p in workload.model.parameters()) * WEIGHT_BYTES[job.precision]
    peak = device.peak_macs_s[DTYPES[job.precision]] * min(1.0, job.threads / device.threads)
    return max(macs / peak, weights / level_for(device, weights).read_bytes_s)


def head(job: Job, backend: str) -> dict[str, Any]:
    return {
        "network": job.network,
        "precision": job.precision,
        "batch": job.batch,
        "threads": job.threads,
        "backend": backend,
    }


def rows_of(jobs: Jobs, job: Job, limit_s: float) -> list[dict[str, Any]]:
    """A network's rows; where its child fails, rows that say why."""
    try:
        return jobs.run(measure, job, limits=Limits.default(limit_s))
    except ParedownError as e:
        return [head(job, b) | EMPTY | {"gate": False, "reason": one_line(e)} for b in job.backends]


def summary(rows: list[dict[str, Any]]) -> str:
    """One line for people: each backend's median, and the best peer over native."""
    first = rows[0]
    title = f"{first['network']} {first['precision']} batch {first['batch']}:"
    timed = [r for r in rows if r["median_s"] is not None]
    parts = [f"{r['backend']} {1e3 * r['median_s']:.2f} ms" for r in timed]
    parts += [f"{r['backend']} - ({r['reason'][:60]})" for r in rows if r["median_s"] is None]
    best = best_ratio(rows)
    return f"{title} {', '.join(parts)}" + (f"; best peer {best:.2f}x" if best else "")


def best_ratio(rows: list[dict[str, Any]]) -> float | None:
    """The best peer's time over native's, from paired half rounds; None where one is missing."""
    peers = [r for r in rows if r["median_s"] is not None and r["backend"] != "native"]
    ours = [r for r in rows if r["median_s"] is not None and r["backend"] == "native"]
    return min(float(r["over_first"]) for r in peers) if ours and peers else None


def means(groups: list[list[dict[str, Any]]]) -> list[str]:
    """The geometric mean of the best peer over native, by precision and batch."""
    found: dict[tuple[str, int], list[float]] = {}
    for rows in groups:
        if (ratio := best_ratio(rows)) is not None:
            found.setdefault((rows[0]["precision"], rows[0]["batch"]), []).append(ratio)
    return [
        f"{precision} batch {batch}: geometric mean {geometric_mean(v):.2f}x the best "
        f"peer, worst {min(v):.2f}x, {len(v)} networks"
        for (precision, batch), v in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--precision", default="fp32,bf16,int8")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each group")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for each group at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    precisions = options.precision.split(",")
    if unknown := set(precisions) - set(RECIPES):
        parser.error(f"--precision takes {', '.join(RECIPES)}, not {', '.join(sorted(unknown))}")
    backends = tuple(options.backends.split(","))
    if unknown := set(backends) - set(BACKENDS):
        parser.error(f"--backends takes {', '.join(BACKENDS)}, not {', '.join(sorted(unknown))}")
    jobs, groups = Jobs(), []
    here = fingerprint()
    machine = here.model_dump()
    if options.json and options.json.exists():
        held = Fingerprint.model_validate(json.loads(options.json.read_text())["machine"])
        if held.key != here.key:
            parser.error(f"{options.json} holds rows of another machine: name another file")
    for network in options.networks.split(","):
        for precision in precisions:
            for batch in map(int, options.batch.split(",")):
                job = Job(network, precision, batch, options.threads, options.seconds, backends)
                groups.append(rows_of(jobs, job, options.limit))
                print(summary(groups[-1]), flush=True)
                if options.json:
                    write(options.json, machine, groups)
    print("\n".join(means(groups)))


Key = tuple[str, str, int]


def key_of(row: dict[str, Any]) -> Key:
    """The group that a row is of."""
    return row["network"], row["precision"], row["batch"]


def write(path: Path, machine: dict[str, Any], groups: list[list[dict[str, Any]]]) -> None:
    """The document as far as it goes, with what an earlier command left in it."""
    new = {key_of(rows[0]): rows for rows in groups if rows}
    old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    command = " ".join(["python", *sys.argv])
    kept = [r | {"command": r.get("command", old["command"])} for r in old.get("rows", [])]
    rows = [r for r in kept if key_of(r) not in new]
    rows += [r | {"command": command} for group in new.values() for r in group]
    place = {name: i for i, name in enumerate(NETWORKS)}
    rows.sort(
        key=lambda r: (
            place.get(r["network"], len(place)),
            list(RECIPES).index(r["precision"]),
            r["batch"],
        )
    )
    body = {"schema": 1, "command": command, "machine": machine, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
