"""Documents as paredown writes them, built from a small MobileNetV2's real shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paredown.figure import Figure, counted, measured, predicted, unavailable
from paredown.manifest import FileInfo, Manifest, SourceInfo
from paredown.result import (
    CardsDoc,
    CheckDoc,
    CompareDoc,
    ConstraintResult,
    DeviceDoc,
    DoctorDoc,
    DoctorRow,
    DownDoc,
    Finding,
    Fingerprint,
    MemoryPoint,
    ModuleRow,
    OperatorRow,
    PaperRow,
    PapersDoc,
    PlanDoc,
    PricedShare,
    ProfileDoc,
    ShowDoc,
    Side,
    SiteReport,
    TechniqueRow,
    TechniquesDoc,
    TensorInfo,
    Totals,
    Trial,
    ZooDoc,
    ZooRow,
)

PEAK = {"float32": 75e9, "int8": 1.1e12}
BANDWIDTH = 11.4e9
OVERHEAD = {"eager": 4.2e-6, "openvino": 1.1e-6}


@dataclass(frozen=True)
class Conv:
    """One convolution of the network: channels, output side, kernel, groups."""

    path: str
    cin: int
    cout: int
    side: int
    kernel: int
    groups: int = 1
    stride: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates for a batch of one."""
        return self.side**2 * self.cout * (self.cin // self.groups) * self.kernel**2

    @property
    def params(self) -> int:
        """Weights without bias."""
        return self.cout * (self.cin // self.groups) * self.kernel**2


def network(width: float = 1.0, resolution: int = 96) -> list[Conv]:
    """The convolutions of a MobileNetV2 (expansion 6) with its usual stages."""
    w = lambda c: max(8, int(c * width / 8) * 8)  # noqa: E731
    side = resolution // 2
    out = [Conv("stem", 1, w(32), side, 3, 1, 2)]
    cin, index = w(32), 0
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for t, c, n, s in stages:
        for i in range(n):
            stride, mid, cout = (s if i == 0 else 1), cin * t, w(c)
            path = f"blocks.{index}"
            if t != 1:
                out.append(Conv(f"{path}.expand", cin, mid, side, 1))
            side //= stride
            out.append(Conv(f"{path}.depthwise", mid, mid, side, 3, mid, stride))
            out.append(Conv(f"{path}.project", mid, cout, side, 1))
            cin, index = cout, index + 1
    return [*out, Conv("head", cin, 10, 1, 1)]


def operators(
    net: list[Conv],
    *,
    dtype: str = "float32",
    backend: str = "eager",
    timed: bool = True,
    repeat: int = 1,
) -> list[OperatorRow]:
    """Operator rows priced as a roofline with the overhead of each call."""
    rows: list[OperatorRow] = []
    size = 4 if dtype == "float32" else 1
    for conv in net * repeat:
        plain = (conv.macs, conv.side**2 * conv.stride**2 * conv.cin, conv.side**2 * conv.cout)
        kinds = [("aten::convolution", *plain, conv.params)]
        if backend == "eager":
            kinds += [
                ("aten::native_batch_norm", plain[2], plain[2], plain[2], 4 * conv.cout),
                ("aten::hardtanh", 0, plain[2], plain[2], 0),
            ]
        for op, macs, read, written, weights in kinds:
            moved = size * (read + written + weights)
            compute, memory = macs / PEAK[dtype], moved / BANDWIDTH
            seconds = max(compute, memory) * 1.6 + OVERHEAD[backend]
            bound = (
                "overhead"
                if seconds < 2 * OVERHEAD[backend]
                else "compute"
                if compute > memory
                else "memory"
            )
            rows.append(
                OperatorRow(
                    index=len(rows),
                    op=op,
                    module=conv.path,
                    line="examples/digits.py:41",
                    shapes=[
                        [1, conv.cin, conv.side, conv.side],
                        [conv.cout, conv.cin, conv.kernel, conv.kernel],
                    ],
                    dtype=dtype,
                    macs=macs,
                    bytes_read=size * (read + weights),
                    bytes_written=size * written,
                    intensity=macs / moved if macs else None,
                    bound=bound,
                    ideal_s=compute,
                    predicted_s=predicted(seconds, "s"),
                    measured_s=measured(seconds * (1.1 + 0.3 * (len(rows) % 5) / 5), "s")
                    if timed
                    else unavailable("s", "not measured: run with --measure"),
                    gap_s=seconds - compute,
                )
            )
    return rows


def modules(rows: list[OperatorRow], net: list[Conv]) -> list[ModuleRow]:
    """Module rows, children included, from operator rows."""
    params = {c.path: c.params for c in net}
    total = sum(r.predicted_s.known() for r in rows)
    paths = dict.fromkeys(p for c in net for p in _ancestors(c.path))
    out: list[ModuleRow] = []
    for path in paths:
        mine = [
            r for r in rows if r.module == path or r.module.startswith(path + ".") or path == ""
        ]
        seconds = sum(r.predicted_s.known() for r in mine)
        timed = [r.measured_s.value for r in mine if r.measured_s.value is not None]
        out.append(
            ModuleRow(
                path=path,
                cls=_cls(path),
                macs=sum(r.macs or 0 for r in mine),
                params=sum(
                    n
                    for p, n in params.items()
                    if p == path or p.startswith(path + ".") or not path
                ),
                bytes=sum(r.bytes_read + r.bytes_written for r in mine),
                predicted_s=seconds,
                measured_s=sum(timed) if timed else None,
                share=seconds / total,
            )
        )
    return out


def memory(rows: list[OperatorRow], weights: int) -> list[MemoryPoint]:
    """Live bytes: the weights, an operator's inputs and its outputs."""
    return [
        MemoryPoint(index=r.index, live_bytes=weights + r.bytes_read + r.bytes_written)
        for r in rows
    ]


def fingerprint() -> Fingerprint:
    """A two-core server with AMX."""
    return Fingerprint(
        cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        isa=["avx2", "avx512f", "avx512_vnni", "amx_int8"],
        caches={"L1d": 49152, "L2": 2097152, "L3": 110100480},
        cores=2,
        memory_bytes=25769803776,
        kernel="6.1.0-18-cloud-amd64",
        versions={"torch": "2.13.0+cpu", "openvino": "2026.4.1"},
        probe={"peak_macs_s_float32": 7.4e10, "read_bytes_s": 1.14e10},
    )


def profile_doc(*, repeat: int = 1, timed: bool = True) -> ProfileDoc:
    """A profile of the digits network; ``repeat`` 16 gives over 2,000 operators."""
    net = network()
    rows = operators(net, timed=timed, repeat=repeat)
    weights = 4 * sum(c.params for c in net)
    macs = sum(r.macs or 0 for r in rows)
    total = sum(r.predicted_s.known() for r in rows)
    moved = sum(r.bytes_read + r.bytes_written for r in rows)
    return ProfileDoc(
        target="examples/digits.py",
        device="this",
        device_how="measured",
        backend="eager",
        threads=2,
        inputs=[TensorInfo(name="x", shape=[1, 1, 96, 96], dtype="float32")],
        totals=Totals(
            macs=counted(macs, "MAC"),
            params=counted(weights / 4, "1"),
            traffic_bytes=predicted(moved, "B"),
            peak_bytes=predicted(weights + 2_400_000, "B"),
            latency_s=measured(total * 1.2, "s", spread=(total * 1.17, total * 1.24), n=200)
            if timed
            else predicted(total, "s"),
            energy_j=unavailable("J", "no RAPL counter is readable on this machine"),
        ),
        priced_share=PricedShare(operators=0.996, bytes=0.999, time=0.998 if timed else None),
        unpriced=["aten::roi_align"],
        operators=rows,
        modules=modules(rows, net),
        memory=memory(rows, weights),
        waterline=waterline(rows, "float32"),
        notes=["The batch is 1; MACs are logical."],
        fingerprint=fingerprint(),
    )


def waterline(rows: list[OperatorRow], dtype: str) -> dict[str, float]:
    """The water level and the bound on efficiency it gives."""
    level = PEAK[dtype] / BANDWIDTH
    ops = sum(r.macs or 0 for r in rows)
    bound = sum(max(r.macs or 0, (r.bytes_read + r.bytes_written) * level) for r in rows)
    total = sum(r.predicted_s.known() for r in rows)
    return {"intensity": level, "e_max": ops / bound, "e_predicted": ops / (total * PEAK[dtype])}


RECIPE: dict[str, Any] = {
    "schema": 1,
    "paredown": "0.1.0",
    "target": {"ref": "examples/digits.py", "sha256": "6b1f" * 16},
    "steps": [
        {
            "technique": "structured-pruning",
            "settings": {"share": 0.25, "importance": "taylor"},
            "sites": ["blocks.*"],
        },
        {"technique": "fold-norm", "sites": ["*"]},
        {
            "technique": "static-int8",
            "settings": {"percentile": 99.99},
            "sites": ["*"],
            "except": ["head:*"],
        },
    ],
    "lower": {"backend": "openvino", "threads": 2},
    "seed": 0,
}


def trials(count: int = 14) -> list[Trial]:
    """Trials of a search: most done, one skipped, one crashed."""
    names = ["fold-norm", "bf16", "static-int8", "low-rank", "structured-pruning", "dynamic-int8"]
    backends = ["openvino", "onnxruntime", "inductor"]
    out: list[Trial] = []
    for i in range(count):
        latency = 6.1e-3 * (0.9 - 0.055 * min(i, 14)) * (1 + 0.08 * (i % 3))
        recipe = {
            "steps": [
                {"technique": names[i % 6], "settings": {}},
                {"technique": names[(i + 2) % 6]},
            ],
            "lower": {"backend": backends[i % 3], "threads": 2},
        }
        guess = {
            "latency": predicted(latency * (0.8 + 0.07 * (i % 5)), "s"),
            "drop": predicted(0.001 * i, "score"),
        }
        if i == 4:
            out.append(
                Trial(
                    id=i,
                    state="skipped",
                    recipe=recipe,
                    predicted=guess,
                    reason="predicted 1.3x slower than the best so far",
                )
            )
        elif i == 7:
            out.append(
                Trial(
                    id=i,
                    state="failed",
                    recipe=recipe,
                    predicted=guess,
                    seconds=31.0,
                    reason="the candidate's process was killed by signal 11 (segmentation fault)",
                )
            )
        else:
            out.append(
                Trial(
                    id=i,
                    state="done",
                    recipe=recipe,
                    predicted=guess,
                    seconds=4.2 + i % 4,
                    measured={
                        "latency": measured(
                            latency, "s", spread=(latency * 0.98, latency * 1.03), n=120
                        ),
                        "size": counted(9.1e6 * (1 - 0.05 * i), "B"),
                        "drop": measured(max(0.0, 0.0011 * (i - 2)), "score", n=900),
                        "score": measured(0.9356 - max(0.0, 0.0011 * (i - 2)), "score", n=900),
                    },
                )
            )
    return out


def _ratio(value: float) -> Figure:
    return measured(value, "x", spread=(value * 0.985, value * 1.015), n=200)


def down_doc(verdict: str = "met", *, count: int = 14) -> DownDoc:
    """The result of paring the digits network; ``verdict`` sets whether latency is met."""
    met = verdict == "met"
    before, after = network(), network(0.75)
    rows_b = operators(before)
    rows_a = operators(after, dtype="int8", backend="openvino", timed=False)
    ratio = 0.091 if met else 0.14
    pared = Side(
        name="structured-pruning 0.25 + fold-norm + static-int8 on openvino",
        backend="openvino",
        recipe=RECIPE,
        figures={
            "latency": Figure(
                value=5.6e-4,
                unit="s",
                how="measured",
                spread=(5.5e-4, 5.8e-4),
                n=400,
                quantiles={"p50": 5.6e-4, "p95": 6.1e-4, "p99": 7.4e-4},
                over="repeats",
            ),
            "size": counted(1_310_720, "B"),
            "memory": measured(3_400_000, "B"),
            "energy": unavailable("J", "no RAPL counter is readable on this machine"),
            "macs": counted(sum(c.macs for c in after), "MAC"),
            "params": counted(sum(c.params for c in after), "1"),
            "score": measured(0.9311, "score", n=900),
            "drop": measured(0.0044, "score", spread=(-0.0011, 0.0100), n=900),
        },
        ratios={
            "latency": _ratio(ratio),
            "size": counted(0.144, "x"),
            "memory": measured(0.21, "x"),
            "latency:best_single_backend": _ratio(0.62),
        },
    )
    original = Side(
        name="the original",
        backend="eager",
        figures={
            "latency": measured(6.15e-3, "s", spread=(6.0e-3, 6.4e-3), n=400),
            "size": counted(9_100_000, "B"),
            "memory": measured(16_200_000, "B"),
            "energy": unavailable("J", "no RAPL counter is readable on this machine"),
            "macs": counted(sum(c.macs for c in before), "MAC"),
            "params": counted(sum(c.params for c in before), "1"),
            "score": measured(0.9356, "score", n=900),
        },
    )
    single = Side(
        name="openvino bf16",
        backend="openvino",
        figures={
            "latency": measured(9.0e-4, "s", spread=(8.8e-4, 9.3e-4), n=400),
            "size": counted(4_550_000, "B"),
            "memory": unavailable("B", "the allocator of this runtime could not be read"),
            "score": measured(0.9356, "score", n=900),
            "drop": measured(0.0, "score", spread=(0.0, 0.0), n=900),
        },
        ratios={"latency": _ratio(0.147), "size": counted(0.5, "x")},
    )
    constraints = [
        ConstraintResult(
            metric="latency",
            op="<=",
            value=0.1,
            unit="x",
            relative_to="baseline",
            text="latency <= 0.1x",
            achieved=pared.ratios["latency"],
            met=met,
            proven=met,
            why=None if met else "the nearest candidate reached 0.14x",
        ),
        ConstraintResult(
            metric="size",
            op="<=",
            value=0.3,
            unit="x",
            relative_to="baseline",
            text="size <= 0.3x",
            achieved=counted(0.144, "x"),
            met=True,
            proven=True,
        ),
        ConstraintResult(
            metric="drop",
            op="<=",
            value=0.01,
            unit="score",
            relative_to=None,
            text="drop <= 1%",
            achieved=pared.figures["drop"],
            met=True,
            proven=False,
            why="the interval's upper end is above 1 %: more examples would tell",
        ),
    ]
    sites = [
        SiteReport(
            site=f"{c.path}:weight", technique="static-int8", outcome="real", detail="ran as int8"
        )
        for c in after[:-1]
    ]
    sites[3] = SiteReport(
        site=sites[3].site,
        technique="static-int8",
        outcome="simulated",
        detail="openvino ran this convolution in float32: its groups are not a multiple of 4",
    )
    sites.append(
        SiteReport(
            site="head:weight",
            technique="static-int8",
            outcome="refused",
            detail="excepted: quantizing it costs 0.6 % on its own",
        )
    )
    return DownDoc(
        target="examples/digits.py",
        device="this",
        verdict=verdict,
        constraints=constraints,  # type: ignore[arg-type]
        before=original,
        after=pared,
        best_single_backend=single,
        recipe=RECIPE,
        trials=trials(count),
        sites=sites,
        left_out={
            "recover": "needs training data: give the workload `training=TrainingData(...)`",
            "weight-only": "no site on a network whose time is in convolutions",
        },
        binding=None if met else "latency <= 0.1x",
        layers_before=modules(rows_b, before),
        layers_after=modules(rows_a, after),
        memory_before=memory(rows_b, 9_000_000),
        memory_after=memory(rows_a, 1_300_000),
        waterline_before=waterline(rows_b, "float32"),
        waterline_after=waterline(rows_a, "int8"),
        operators_before=rows_b,
        operators_after=rows_a,
        effort_s=171.0,
        seed=0,
        threads=2,
        a_a_ratio=_ratio(1.004),
        folder="pared/digits-20261121T093000Z",
        notes=["`verify` decided the verdict; `evaluate` saw other examples."],
        fingerprint=fingerprint(),
    )


def compare_doc(kind: str = "compare") -> CompareDoc:
    """The three sides of the sample result side by side."""
    doc = down_doc()
    assert doc.best_single_backend is not None
    sides = [doc.before, doc.best_single_backend, doc.after] if kind == "compare" else [doc.before]
    return CompareDoc(
        kind=kind, sides=sides, a_a_ratio=doc.a_a_ratio, threads=2, fingerprint=fingerprint()
    )  # type: ignore[arg-type]


def check_doc() -> CheckDoc:
    """A regression gate that fails on latency."""
    doc = down_doc("infeasible")
    return CheckDoc(
        target=doc.folder,
        device="this",
        verdict="infeasible",
        met=False,
        constraints=doc.constraints,
        fingerprint=fingerprint(),
    )


def plan_doc() -> PlanDoc:
    """What a `down` would try."""
    return PlanDoc(
        target="examples/digits.py",
        device="this",
        constraints=["latency <= 0.1x", "drop <= 1%"],
        candidates=[
            {"recipe": t.recipe, "predicted": {k: v.model_dump() for k, v in t.predicted.items()}}
            for t in trials(6)
        ],
        backends={
            "eager": None,
            "openvino": None,
            "onnxruntime": "not installed: pip install 'paredown[onnx]'",
        },
        techniques={"fold-norm": "14 sites", "recover": "needs training data"},
        effort_s=180.0,
        expected_s=predicted(164.0, "s"),
        disk_bytes=predicted(4.1e7, "B"),
    )


def device_doc() -> DeviceDoc:
    """One device as its TOML holds it."""
    return DeviceDoc(
        devices=[
            {
                "name": "this",
                "title": "Intel Xeon Platinum 8481C, 2 cores",
                "threads": 2,
                "how": "measured",
                "peak_macs_s": {"float32": 7.5e10, "bfloat16": 6.1e11, "int8": 1.1e12},
                "elementwise_s": 1.2e10,
                "levels": [
                    {"name": "L2", "capacity_bytes": 2097152, "read_bytes_s": 6.1e10},
                    {"name": "DRAM", "capacity_bytes": 25769803776, "read_bytes_s": 1.14e10},
                ],
                "overhead_s": {"eager": 4.2e-6},
            }
        ]
    )


def techniques_doc() -> TechniquesDoc:
    """Two techniques, one of which does not apply."""
    return TechniquesDoc(
        target="examples/digits.py",
        techniques=[
            TechniqueRow(
                name="static-int8",
                kind="rewrite",
                family="quantize",
                stage="numeric",
                paper="quant-whitepaper",
                maturity="stable",
                needs=["calibration"],
                touches=["weight_dtype", "activation_dtype"],
                summary="Post-training static int8, per-channel weights.",
                applies=True,
                sites=36,
            ),
            TechniqueRow(
                name="recover",
                kind="rewrite",
                family="distill",
                stage="recovery",
                paper=None,
                maturity="trial",
                needs=["training"],
                touches=["weight_values"],
                summary="Fine-tune towards the original.",
                applies=False,
                sites=0,
                why_not="needs training data",
            ),
        ],
    )


def zoo_doc() -> ZooDoc:
    """Two networks, one of which differs from its paper."""
    return ZooDoc(
        networks=[
            ZooRow(
                name="vovnet39",
                paper="vovnet",
                input=[3, 224, 224],
                params=22_600_296,
                macs=7_072_227_328,
                paper_params=22_600_296,
                paper_macs=7_072_227_328,
                source="the authors' VoVNet.pytorch (counted)",
            ),
            ZooRow(
                name="other",
                paper="arXiv:0000.00000",
                input=[1, 28, 28],
                params=1000,
                macs=2000,
                paper_params=1100,
                paper_macs=None,
                source="the paper, table 1",
                why="the paper counts the auxiliary head",
            ),
        ]
    )


def papers_doc() -> PapersDoc:
    """Two catalogue entries."""
    return PapersDoc(
        papers=[
            PaperRow(
                key="convfirst",
                title="On the Efficiency of Convolutional Neural Networks",
                year=2024,
                module="paredown.report.plots",
                claim="Latency follows efficiency, not operations alone.",
                verdict="partly",
            ),
            PaperRow(
                key="vovnet",
                title="An Energy and GPU-Computation Efficient Backbone Network",
                year=2019,
                module="paredown.zoo.vovnet",
                claim="One-shot aggregation beats dense connections in time.",
            ),
        ]
    )


def cards_doc() -> CardsDoc:
    """One claim card that holds in part."""
    return CardsDoc(
        cards=[
            Finding(
                key="mobilenetv2",
                verdict="partly",
                why="fewer MACs, but only 1.2x faster in eager",
                claim="Fewer MACs at equal accuracy.",
                measured={"latency_ratio": _ratio(0.83), "macs_ratio": counted(0.31, "x")},
                thresholds={"latency_ratio": 0.7},
                scale="quick",
                seeds=[0, 1, 2],
                power=measured(0.05, "x"),
                seconds=41.0,
                date="2026-11-21",
                fingerprint=fingerprint(),
                tables={
                    "nets": [{"net": "mobilenetv2", "score": 0.91}, {"net": "plain", "score": 0.90}]
                },
            )
        ]
    )


def doctor_doc() -> DoctorDoc:
    """One thing present, one missing, one limited."""
    return DoctorDoc(
        rows=[
            DoctorRow(name="torch", state="ok", detail="2.13.0+cpu"),
            DoctorRow(
                name="openvino",
                state="missing",
                detail="not installed",
                fix="pip install 'paredown[openvino]'",
            ),
            DoctorRow(
                name="energy",
                state="limited",
                detail="no RAPL counter is readable",
                fix="run where powercap is readable",
            ),
        ]
    )


def show_doc() -> ShowDoc:
    """An artefact with its result."""
    manifest = Manifest(
        name="digits",
        created="2026-11-21T09:33:00+00:00",
        backend="openvino",
        threads=2,
        source=SourceInfo(ref="examples/digits.py", sha256="6b1f" * 16),
        inputs=[TensorInfo(name="x", shape=[1, 1, 96, 96], dtype="float32")],
        outputs=[TensorInfo(name="0", shape=[1, 10], dtype="float32")],
        files={
            "run/model.xml": FileInfo(role="run", bytes=81_234, sha256="ab" * 32),
            "run/model.bin": FileInfo(role="run", bytes=1_229_486, sha256="cd" * 32),
            "recipe.yaml": FileInfo(role="recipe", bytes=612, sha256="ef" * 32),
        },
    ).signed()
    return ShowDoc(
        folder="pared/digits",
        manifest=manifest.model_dump(mode="json", by_alias=True),
        recipe=RECIPE,
        result=down_doc().model_dump(mode="json", by_alias=True),
    )


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return ["", *[".".join(parts[: i + 1]) for i in range(len(parts))]]


def _cls(path: str) -> str:
    if path == "":
        return "DigitsNet"
    last = path.rpartition(".")[2]
    return {"stem": "Conv2d", "head": "Linear", "blocks": "Sequential"}.get(
        last, "InvertedResidual" if last.isdigit() else "Conv2d"
    )
