"""Quantized forms through each lowering table: values, bytes on disk, what ran in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_nets import ConvNet, GroupLinear, QConv, QLinear, convnet, encoder
from torch import nn

from paredown import runtime
from paredown.errors import LoweringError
from paredown.runtime import ops
from paredown.runtime.gate import gate
from paredown.workload import Workload

COMPILED = ("onnxruntime", "openvino")
PRODUCTS = ("qkv", "proj", "mlp.0", "mlp.2")


def quantized_convnet() -> Workload:
    """ReLU6 ranges: 6.12 / 255 does not end at 6, 6 / 255 does; the last output stays float."""
    workload = convnet()
    net: Any = ConvNet()
    net.norm = nn.Identity()
    net.stem = QConv(nn.Conv2d(3, 16, 3, padding=1))
    net.depth, net.point = QConv(net.depth, 0.024, 0), QConv(net.point, 6 / 255, 0)
    net.head = QLinear(net.head)
    return Workload(net.eval(), workload.inputs, name="qconv")


def quantized_encoder(make: Any) -> Workload:
    workload = encoder()
    for name in PRODUCTS:
        parent, _, leaf = name.rpartition(".")
        setattr(
            workload.model.get_submodule(parent), leaf, make(workload.model.get_submodule(name))
        )
    workload.model.eval()
    return workload


def outcome(executable: Any) -> tuple[set[str], dict[str, str]]:
    quantized = [f"{p}:weight" for p, a in executable.asked.items() if a.weight]
    result = executable.realised("test", quantized)
    return {s.partition(":")[0] for s in result.kept}, result.lost


def test_openvino_runs_every_static_site_in_int8() -> None:
    workload = quantized_convnet()
    executable = runtime.backend("openvino").lower(workload, threads=1)
    record = gate(executable, workload)
    assert record.passed
    assert record.arithmetic == "int8"
    assert record.error < 1e-4
    kept, lost = outcome(executable)
    assert kept == {"stem", "depth", "point", "head"}
    assert not lost
    ran = {r.site: r.precision for r in executable.executed() if r.role == "compute"}
    assert ran == dict.fromkeys(("stem", "depth", "point", "head"), "int8")


def test_onnxruntime_runs_int8_where_an_output_is_quantized_again() -> None:
    workload = quantized_convnet()
    executable = runtime.backend("onnxruntime").lower(workload, threads=1)
    assert gate(executable, workload).error < 1e-4
    kept, lost = outcome(executable)
    assert kept == {"stem", "depth", "head"}
    assert set(lost) == {"point:weight"}
    assert "not quantized again" in lost["point:weight"]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("activation", ["static", "dynamic", None])
def test_linear_int8(backend: str, activation: str | None) -> None:
    workload = quantized_encoder(lambda m: QLinear(m, activation))
    executable = runtime.backend(backend).lower(workload, threads=1)
    record = gate(executable, workload)
    # OpenVINO's dynamic ranges are per group of 32 where the reference has one for the tensor.
    assert record.error < (2e-2 if activation == "dynamic" and backend == "openvino" else 1e-4)
    kept, lost = outcome(executable)
    assert kept == set(PRODUCTS), lost
    ran = {r.site: r.precision for r in executable.executed() if r.role == "compute"}
    assert {ran[s] for s in PRODUCTS} == {"int8" if activation else "float32"}
    assert ran["patch"] == "float32"


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 32), (8, 16), (8, 32)])
def test_weight_only_groups(backend: str, bits: int, group: int, tmp_path: Path) -> None:
    workload = quantized_encoder(lambda m: GroupLinear(m, bits, group))
    executable = runtime.backend(backend).lower(workload, threads=1)
    assert gate(executable, workload).error < 1e-4
    kept, lost = outcome(executable)
    assert kept == set(PRODUCTS), lost
    held = {r.precision for r in executable.executed() if r.op == "weight" and r.site in PRODUCTS}
    assert held == {f"int{bits}"}
    executable.save(tmp_path)
    again = runtime.backend(backend).load(tmp_path, threads=1)
    assert torch.equal(executable(*workload.inputs), again(*workload.inputs))
    assert outcome(again) == (kept, lost)


def test_groups_no_operator_takes_are_reported_lost_and_still_right() -> None:
    workload = quantized_encoder(lambda m: GroupLinear(m, 4, 8))
    executable = runtime.backend("onnxruntime").lower(workload, threads=1)
    assert gate(executable, workload).error < 1e-4
    kept, lost = outcome(executable)
    assert not kept
    assert set(lost) == {f"{p}:weight" for p in PRODUCTS}


@pytest.mark.parametrize("backend", COMPILED)
def test_bytes_on_disk_are_those_of_the_packed_weights(backend: str, tmp_path: Path) -> None:
    """Big enough that weights outweigh the graph: int8 under 0.3x, int4 under 0.2x of float32."""
    sizes: dict[str, int] = {}
    x = torch.randn(1, 512)
    for name, make in {
        "float": lambda m: m,
        "int8": lambda m: QLinear(m, "static"),
        "int4": lambda m: GroupLinear(m, 4, 64),
    }.items():
        torch.manual_seed(0)
        net = nn.Sequential(make(nn.Linear(512, 512)), nn.ReLU(), make(nn.Linear(512, 512))).eval()
        executable = runtime.backend(backend).lower(Workload(net, (x,)), threads=1)
        folder = tmp_path / name
        sizes[name] = sum((folder / f).stat().st_size for f in executable.save(folder))
    assert sizes["int8"] < 0.3 * sizes["float"]
    assert sizes["int4"] < 0.2 * sizes["float"]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(("bits", "columns"), [(4, 32), (8, 32), (4, 6)])
def test_embedding_from_packed_rows(backend: str, bits: int, columns: int) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            q = torch.randint(0, 2**bits, (40, columns), dtype=torch.uint8)
            self.register_buffer("q", ops.pack_int4(q) if bits == 4 else q)
            self.register_buffer("scale", torch.rand(40, 2) + 0.1)
            self.register_buffer("zero", torch.randint(0, 2**bits, (40, 2), dtype=torch.uint8))

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            tables = (self.q, self.scale, self.zero)
            rows = torch.ops.paredown.embedding_groups(index, *tables, bits, columns, torch.float32)
            return rows * 2

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = Table()

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return self.table(index)

    workload = Workload(Holder().eval(), (torch.randint(0, 40, (2, 7)),))
    executable = runtime.backend(backend).lower(workload, threads=1)
    torch.testing.assert_close(executable(*workload.inputs), workload.call())
    assert executable.asked["table"].weight == f"int{bits}"


class Signed(QLinear):
    """Signed activations with a zero point; asymmetric weights, a zero point to each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.x_zero = torch.tensor([8], dtype=torch.int32)
        self.zero = torch.tensor([3, -7, 0, 100, -100], dtype=torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The reference semantics."""
        grid = (self.x_scale, self.x_zero)
        q = torch.ops.paredown.quantize(x, *grid, -127, 127, -1)
        x = torch.ops.paredown.dequantize(q, *grid, -1, torch.float32)
        w = torch.ops.paredown.dequantize(self.q, self.scale, self.zero, 0, torch.float32)
        return nn.functional.linear(x, w, self.bias)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("make", [Signed, lambda m: QLinear(m, None)])
@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_zero_points_and_odd_columns(backend: str, make: Any, lead: tuple[int, ...]) -> None:
    """Columns that fill no block of any operator, with and without a dimension before the rows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(), make(nn.Linear(21, 5))).eval()
    workload = Workload(net, (torch.randn(*lead, 21),))
    executable = runtime.backend(backend).lower(workload, threads=1)
    torch.testing.assert_close(executable(*workload.inputs), workload.call())


def bf16_encoder(keep: tuple[str, ...] = ()) -> Workload:
    workload = encoder()
    workload.model.to(torch.bfloat16)
    for name in keep:
        module = workload.model.get_submodule(name).float()
        module.register_forward_pre_hook(lambda _m, a: (a[0].float(),))
        module.register_forward_hook(lambda _m, _a, out: out.bfloat16())
    workload.inputs = (workload.inputs[0].bfloat16(),)
    return workload


def test_openvino_computes_in_bf16_only_where_the_model_does() -> None:
    workload = bf16_encoder()
    executable = runtime.backend("openvino").lower(workload, threads=1)
    got = executable(*workload.inputs)
    assert got.dtype == torch.bfloat16
    record = gate(executable, workload)
    assert record.passed
    assert record.arithmetic == "bfloat16"
    ran = {r.precision for r in executable.executed() if r.role == "compute"}
    assert ran == {"bfloat16"}


def test_openvino_owns_up_to_a_float32_site_inside_a_bf16_model() -> None:
    executable = runtime.backend("openvino").lower(bf16_encoder(("proj",)), threads=1)
    assert executable.asked["proj"].dtype == "float32"
    row = next(r for r in executable.executed() if r.site == "proj" and r.role == "compute")
    assert row.precision != "float32"
    assert row.fallback == "asked for float32, the CPU plugin ran it in bfloat16"


def test_onnxruntime_refuses_bf16_with_the_reason() -> None:
    backend = runtime.backend("onnxruntime")
    assert "bfloat16" in backend.supports(bf16_encoder(), None)[0]
    with pytest.raises(LoweringError, match="bfloat16"):
        backend.lower(bf16_encoder(), threads=1)


def test_eager_says_its_integers_are_simulated() -> None:
    executable = runtime.backend("eager").lower(quantized_convnet(), threads=1)
    kept, lost = outcome(executable)
    assert not kept
    assert set(lost) == {"stem:weight", "depth:weight", "point:weight", "head:weight"}
    assert all("simulated" in why for why in lost.values())


def test_a_site_that_is_not_there_is_lost() -> None:
    executable = runtime.backend("openvino").lower(convnet(), threads=1)
    result = executable.realised("x", ["gone:weight"], {"gone": ("nowhere",)})
    assert "nothing of it" in result.lost["gone:weight"]
