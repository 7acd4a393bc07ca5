"""Ours beside other toolkits at equal bits or sparsity: same network, calibration data and run.

Both sides are judged on the deciding examples, paired example by example, and timed in turns. Each
peer stands as its documentation has a user call it; what differs from its defaults is in
techniques.yaml. A peer that cannot be imported or run fails its row with the reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from technique_families import SECONDS, TARGETS, undisturbed
from technique_results import by_interval, read_plan
from torch import nn

from paredown import quality, recipe, runtime
from paredown.graph.capture import capture
from paredown.measure.child import Jobs, Limits
from paredown.measure.compare import interleave
from paredown.recipe import parse_inline
from paredown.runtime.facade import Facade
from paredown.targets import resolve
from paredown.techniques.recover import fresh_norms
from paredown.workload import Workload, stored_bytes

GROUP = 32
INT4 = f"weight-only:bits=4,group_size={GROUP},clip=true"
SLACK_OF_SIZE = 0.01


@dataclass
class Side:
    """One toolkit's network: ``module`` takes any batch, ``run`` is timed on the example inputs."""

    module: nn.Module
    run: Callable[..., Any]
    size: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    hasten: Callable[[], None] = lambda: None
    """Called before timing: replaces ``run`` by something faster where there is such."""


@dataclass(frozen=True)
class Job:
    """One row: what to build of which network, and what to compare."""

    peer: str
    target: str
    metrics: tuple[str, ...]
    threads: int
    real_time: bool


def row(
    name: str, plan: dict[str, Any], metrics: tuple[str, ...], real_time: bool, limit: float
) -> dict[str, Any]:
    """One peer on one network, within ``limit`` seconds."""
    peer, network = name.split("/")
    job = Job(peer, f"{TARGETS}:{network}", metrics, plan["threads"], real_time)
    return Jobs().run(compare, job, limits=Limits.default(limit))


def compare(job: Job) -> dict[str, Any]:
    """The job: both sides built, judged, timed."""
    torch.set_num_threads(job.threads)
    original = resolve(job.target)
    ours, theirs = PEERS[job.peer](original, job.threads)
    found: dict[str, Any] = {}
    if "score" in job.metrics:
        found["score"] = scored(original, ours, theirs)
    if "size" in job.metrics:
        found["size"] = sized(ours, theirs)
    if "latency" in job.metrics:
        ours.hasten()
        theirs.hasten()
        found["latency"] = timed(original, ours, theirs, job.real_time)
    return {"metrics": found, "ours": ours.notes, "theirs": theirs.notes}


def scored(original: Workload, ours: Side, theirs: Side) -> dict[str, Any]:
    """Our score less theirs, over the same examples."""
    a, b = (quality.judge(original.verify, s.module) for s in (ours, theirs))
    gap = quality.drop(a, b)
    low, high = gap.spread
    return {
        "ours": float(a.mean()),
        "theirs": float(b.mean()),
        "value": gap.value,
        "interval": [low, high],
        "verdict": by_interval(low, high, 0.0),
    }


def sized(ours: Side, theirs: Side) -> dict[str, Any]:
    """Their bytes over ours, counted."""
    ratio = theirs.size / ours.size
    verdict = by_interval(ratio, ratio, 1.0, SLACK_OF_SIZE)
    return {"ours": ours.size, "theirs": theirs.size, "value": ratio, "verdict": verdict}


def timed(original: Workload, ours: Side, theirs: Side, real_time: bool) -> dict[str, Any]:
    """Their latency over ours, in turns."""
    args = original.inputs
    with torch.inference_mode(), undisturbed(real_time):
        c = interleave(
            [("ours", lambda: ours.run(*args)), ("theirs", lambda: theirs.run(*args))],
            seconds=SECONDS,
        )
    low, high = c["theirs"].ratio.spread
    return {
        "ours": c["ours"].latency.value,
        "theirs": c["theirs"].latency.value,
        "value": c["theirs"].ratio.value,
        "interval": [low, high],
        "a_a": c.a_a.value,
        "verdict": by_interval(low, high, 1.0),
    }


def own(original: Workload, steps: str, backend: str, threads: int) -> Side:
    """Ours: a recipe lowered. Its size is that of its tensors in eager, else of its files."""
    made = recipe.run(parse_inline(steps), original)
    return lowered(made.workload, backend, threads, steps)


def lowered(made: Workload, backend: str, threads: int, steps: str) -> Side:
    """A pared workload as a side; see `own`."""
    executable = runtime.backend(backend).lower(made, threads=threads)
    if backend == "eager":
        size = stored_bytes(made.model)
    else:
        with tempfile.TemporaryDirectory() as folder:
            files = executable.save(Path(folder))
            size = sum((Path(folder) / f).stat().st_size for f in files)
    return Side(Facade(executable, made), executable, size, {"recipe": steps})


class Rows(nn.Module):
    """A batch-1 call behind a module that takes any batch."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.as_tensor(self.run(r)).clone() for r in x.split(1)])


def has_norms(model: nn.Module) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def openvino_of(original: Workload) -> Any:
    """The network as an OpenVINO model of the example's shapes."""
    import openvino as ov

    from paredown.runtime._quiet import no_telemetry

    no_telemetry()
    model = ov.convert_model(torch.export.export(original.model.eval(), original.inputs))
    model.reshape({i: list(x.shape) for i, x in enumerate(original.inputs)})
    return model


def compiled(model: Any, threads: int, size: int | None = None) -> Side:
    """An OpenVINO model compiled for latency on these threads."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def call(*args: torch.Tensor) -> torch.Tensor:
        request.infer([a.numpy() for a in args], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return Side(Rows(call), call, size)


def nncf_int8(original: Workload, threads: int) -> tuple[Side, Side]:
    """Static int8 of both, on the same calibration inputs; bf16 around it on both sides."""
    import nncf

    model = openvino_of(original)
    data, how = nncf_calibration(original)
    theirs = nncf.quantize(model, data, **how)
    return own(original, floats_of(original) + " + static-int8", "native", threads), compiled(
        theirs, threads
    )


def nncf_calibration(original: Workload) -> tuple[Any, dict[str, Any]]:
    """The calibration inputs as NNCF takes them, and what else it is told."""
    import nncf

    calls = [args for args, _ in original.calibration_inputs()]
    attends = any(isinstance(m, nn.LayerNorm) for m in original.model.modules())
    kind = nncf.ModelType.TRANSFORMER if attends else None
    data = nncf.Dataset([[x.numpy() for x in args] for args in calls])
    return data, {"subset_size": len(calls), "model_type": kind}


def floats_of(original: Workload) -> str:
    """The steps before our int8: batch norms folded, bf16 around."""
    return ("fold-norm + " if has_norms(original.model) else "") + "bf16"


def nncf_control(original: Workload, threads: int) -> tuple[Side, Side]:
    """Int8 layers as many as a drop on `evaluate`'s examples allows, on both sides."""
    import nncf

    from paredown.techniques.quantize.drop_control import within_drop
    from paredown.techniques.quantize.static_int8 import StaticInt8

    allowed = read_plan("quick")["allowed_drop"]
    data, how = nncf_calibration(original)

    before = quality.judge(original.evaluate, original.model)
    examples = nncf.Dataset(list(range(len(before))))

    def judged(model: Any, asked: Any) -> tuple[float, list[float]]:
        # Its compiled model takes the example's shapes: one call an example.
        def call(x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(model([x.numpy()])[0].copy())

        scores = quality.judge(original.evaluate, Rows(call))[list(asked)]
        return float(scores.mean()), scores.tolist()

    theirs = nncf.quantize_with_accuracy_control(
        openvino_of(original), data, examples, judged, max_drop=allowed, **how
    )
    floats = recipe.run(parse_inline(floats_of(original)), original).workload
    found = within_drop(floats, StaticInt8(), allowed, before=before)
    note = f"{floats_of(original)} + static-int8 within a drop of {allowed}"
    ours = lowered(found.change.workload, "native", threads, note)
    ours.notes["left in float"] = list(found.left)
    return ours, compiled(theirs, threads)


def nncf_int4(original: Workload, threads: int) -> tuple[Side, Side]:
    """Int4 weights in groups, embeddings too; the rest in float32 on both sides."""
    import nncf
    import openvino as ov

    model = nncf.compress_weights(
        openvino_of(original),
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        ratio=1.0,
        group_size=GROUP,
        all_layers=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
        size = sum(f.stat().st_size for f in Path(folder).iterdir())
    return own(original, INT4 + ",embeddings=true", "openvino", threads), compiled(
        model, threads, size
    )


def torch_pruning(original: Workload, threads: int) -> tuple[Side, Side]:
    """A quarter of the channels cut by us, theirs cut to as many MACs; neither is trained, both get
    batch-norm statistics of the same batches.
    """
    import torch_pruning as tp

    steps = "structured-pruning:share=0.25"
    ours = recipe.run(parse_inline(steps), original).workload.own()
    wanted = capture(ours).macs
    head = [m for m in original.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1].weight

    def cut(share: float) -> tuple[nn.Module, int]:
        model = original.own().model.eval()
        last = next(
            m
            for m in reversed(list(model.modules()))
            if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.shape == head.shape
        )
        for p in model.parameters():
            p.requires_grad_(True)
        tp.pruner.MetaPruner(
            model,
            original.inputs[0],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=[last],
        ).step()
        return model, capture(Workload(model.eval(), original.inputs)).macs

    # The least share that leaves no more MACs than ours.
    low, high = 0.0, 0.6
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if cut(middle)[1] <= wanted else (middle, high)
    model, macs = cut(high)
    before = capture(original).macs
    for cut_one in (ours.model, model):
        torch.manual_seed(0)
        fresh_norms(cut_one, original.training)
    return (
        Side(ours.model.eval(), ours.model, notes={"recipe": steps, "macs": wanted / before}),
        Side(model.eval(), model, notes={"share": high, "macs": macs / before}),
    )


def eager(model: nn.Module, size: int | None = None) -> Side:
    """A module as it is."""
    return Side(model.eval(), model, size)


def torchao_dynamic(original: Workload, threads: int) -> tuple[Side, Side]:
    """Int8 linears, activation ranges per row at run time; theirs as fast as torch makes it."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = original.own().model.eval()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    theirs = eager(model)

    def hasten() -> None:
        faster = torch.compile(model)
        with torch.inference_mode():
            faster(*original.inputs)
            c = interleave(
                [(n, lambda f=f: f(*original.inputs)) for n, f in (("e", model), ("c", faster))],
                seconds=2.0,
            )
        if c["c"].ratio.value < 1:
            theirs.run = faster
        theirs.notes["compiled"] = theirs.run is faster

    theirs.hasten = hasten
    return own(original, "dynamic-int8", "eager", threads), theirs


def torchao_int4(original: Workload, threads: int) -> tuple[Side, Side]:
    """Int4 weights in groups, float32 around them; clipped by least error on our side."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model = original.own().model.eval()
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)))
    return own(original, INT4, "eager", threads), eager(model)


def neural_compressor_int4(original: Workload, threads: int) -> tuple[Side, Side]:
    """Their round-to-nearest in asymmetric groups."""
    from neural_compressor.torch.quantization import RTNConfig, convert, prepare

    how = RTNConfig(dtype="int", bits=4, use_sym=False, group_size=GROUP)
    model = convert(prepare(original.own().model.eval(), how))
    return own(original, INT4, "eager", threads), eager(model)


def bitsandbytes_nf4(original: Workload, threads: int) -> tuple[Side, Side]:
    """NormalFloat weights with double quantization, float32 around them."""
    import bitsandbytes as bnb

    model = original.own().model.eval()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    # Its CPU kernel takes rows in blocks of 32: a classifier's few stay in float on both sides.
    left = [n for n, m in linears.items() if m.out_features % 32]
    for path, old in [(n, m) for n, m in linears.items() if n not in left]:
        new = bnb.nn.Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=torch.float32,
            compress_statistics=True,
            quant_type="nf4",
        )
        new.load_state_dict(old.state_dict())
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.to("cpu"))
    packed = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    if any(m.weight.dtype != torch.uint8 for m in packed):
        raise RuntimeError("bitsandbytes left weights unpacked on this CPU")
    return own(original, "".join(["nf4", *(f"!{n}" for n in left)]), "eager", threads), eager(
        model, stored_bytes(model)
    )


PEERS: dict[str, Callable[[Workload, int], tuple[Side, Side]]] = {
    "nncf-int8": nncf_int8,
    "nncf-accuracy-control": nncf_control,
    "nncf-int4-weights": nncf_int4,
    "torch-pruning": torch_pruning,
    "torchao-dynamic-int8": torchao_dynamic,
    "torchao-int4-weights": torchao_int4,
    "neural-compressor-int4-weights": neural_compressor_int4,
    "bitsandbytes-nf4": bitsandbytes_nf4,
}
