"""Quantized forms on torch's own int8 and int4 operators: values, what ran, bytes held, saved."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paredown import runtime
from paredown.runtime import torch_lowering
from paredown.runtime.eager import load_tensors, save_tensors
from paredown.runtime.gate import gate
from paredown.runtime.packed import PackedConv, PackedLinear
from paredown.runtime.packed_weights import PackedGroups, PackedRows, digits
from paredown.runtime.quantized import DynamicLinear, QuantConv, QuantLinear, WeightOnlyLinear
from paredown.techniques.quantize.weight_only import WeightOnly
from paredown.workload import Workload

vnni = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="int8 operators need VNNI: forms stay as they are"
)
FLOATS = (torch.float32, torch.bfloat16)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def filled(form: Any, seed: int = 0) -> Any:
    """A form with every int8 value among its weights, and plausible scales."""
    g = torch.Generator().manual_seed(seed)
    form.weight.data.random_(-128, 128, generator=g)
    form.scale = torch.rand(form.scale.shape, generator=g) * 0.02 + 0.001
    if hasattr(form, "in_scale"):
        form.in_scale = torch.tensor([0.03])
        form.in_zero = torch.tensor([120], dtype=torch.int32)
    if form.bias is not None:
        form.bias.data.normal_(generator=g)
    return form.eval()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@vnni
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", [QuantLinear, DynamicLinear])
@pytest.mark.parametrize("bias", ["float32", "bfloat16", None])
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 17), (63, 5), (64, 48)])
def test_int8_linear(form: Any, bias: str | None, columns: int, rows: int, dtype: Any) -> None:
    layer = filled(form(columns, rows, bias))
    packed = PackedLinear(layer)
    assert torch.equal(packed.unpacked(), layer.weight)
    for shape in ((columns,), (3, columns), (2, 3, columns)):
        x = torch.randn(shape).to(dtype)
        with torch.inference_mode():
            assert error(packed(x), layer(x)) < ROUNDING[dtype]
    x = torch.randn(columns, 7).t().to(dtype)
    with torch.inference_mode():
        assert error(packed(x), layer(x)) < ROUNDING[dtype]


@vnni
def test_weights_that_lie_transposed() -> None:
    """As a form made of Hugging Face's ``Conv1D`` has them."""
    dynamic, static = filled(DynamicLinear(20, 12)), filled(QuantLinear(20, 12))
    rows = WeightOnly()._form(nn.Linear(20, 12))
    conv = filled(QuantConv((12, 20, 1, 1), (1, 1), (0, 0), (1, 1)))
    x = torch.randn(3, 20)
    kinds = (PackedLinear, PackedLinear, PackedRows, PackedConv)
    for form, kind in zip((dynamic, static, rows, conv), kinds, strict=True):
        form.weight.data = form.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
        assert not form.weight.is_contiguous()
        with torch.inference_mode():
            packed, given = kind(form), x[..., None, None] if kind is PackedConv else x
            assert error(packed(given), form(given)) < 2e-6
        assert torch.equal(packed.unpacked(), form.weight)


@vnni
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("groups", "channels", "out"), [(1, 3, 16), (16, 16, 16), (2, 6, 10)])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_int8_convolution(dims: int, groups: int, channels: int, out: int, padding: Any) -> None:
    shape = (out, channels // groups, *(3,) * dims)
    sides = (padding,) * dims if padding == 1 else padding
    layer = filled(QuantConv(shape, (1,) * dims, sides, (1,) * dims, groups))
    packed = PackedConv(layer)
    assert torch.equal(packed.unpacked(), layer.weight)
    x = torch.randn(2, channels, *(17, 13, 9)[:dims])
    with torch.inference_mode():
        assert error(packed(x), layer(x)) < 1e-6
        assert error(packed(x[0]), layer(x[0])) < 1e-6
        b = x.bfloat16()
        assert error(packed(b), layer(b)) < 1e-2


@vnni
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (21, 5), (64, 48), (300, 17)])
def test_weight_only_rows_is_as_precise_as_the_input(columns: int, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows, bias=bias)
    # Ranges far off centre, so that zero points are too.
    linear.weight.data += torch.linspace(-1, 1, rows)[:, None]
    form = WeightOnly()._form(linear)
    packed = PackedRows(form)
    assert torch.equal(packed.unpacked(), form.weight)
    x = torch.randn(2, 3, columns)
    x[0, 0, 0] = 50.0  # a large value costs its row nothing that float32 would keep
    exact = x.double() @ ((form.weight.double() - form.zero) * form.scale).t()
    exact += form.bias.double() if bias else 0.0
    with torch.inference_mode():
        assert error(packed(x), exact.float()) < 2e-6
        b = x.bfloat16()
        assert error(packed(b), form(b)) < 1e-2


def test_digits_hold_a_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 63) * torch.logspace(-12, 12, 5)[:, None]
    x[3] = 0.0
    q, scale = digits(x, 3)
    weights = (254.0 ** -torch.arange(3, dtype=torch.float64))[:, None, None]
    back = ((q.double().reshape(3, 5, 63) - 128) * weights).sum(0) * scale.double()
    assert (back - x).abs().le(x.abs().amax(1, keepdim=True) * 2.0**-23).all()


def test_a_nan_stays_in_its_row() -> None:
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    _, scale = digits(x, 3)
    assert scale.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_groups_in_bfloat16(group: int) -> None:
    torch.manual_seed(0)
    form = WeightOnly(4, group)._form(nn.Linear(384, 48))
    packed = PackedGroups(form)
    assert torch.equal(packed.unpacked(), form.weight)
    assert packed.packed_bytes == form.weight.numel()
    x = torch.randn(2, 3, 384).bfloat16()
    with torch.inference_mode():
        assert error(packed(x), form(x)) < 1e-2


class Mixed(nn.Module):
    """Each of the forms once; ``back`` shares the weight of ``rows``."""

    def __init__(self, dtype: Any = torch.float32, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        name = str(dtype).removeprefix("torch.")
        self.conv = filled(QuantConv((16, 3, 3, 3), (1, 1), (1, 1), (1, 1), bias=name))
        self.static = filled(QuantLinear(16, 64, name))
        self.dynamic = filled(DynamicLinear(64, 64, name))
        self.rows = WeightOnly()._form(nn.Linear(64, 64, dtype=dtype))
        self.groups = WeightOnly(4, 32)._form(nn.Linear(64, 32, dtype=dtype))
        if shared:
            self.back = WeightOnly()._form(nn.Linear(64, 64, dtype=dtype))
            self.back.weight = self.rows.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.static(torch.relu(self.conv(x)).mean((2, 3)))
        x = self.rows(self.dynamic(x / x.std()))
        x = self.groups(x / x.std())
        return self.back(torch.cat((x, x), -1)) if hasattr(self, "back") else x


def mixed(dtype: Any = torch.float32, **settings: Any) -> Workload:
    torch.manual_seed(1)
    return Workload(Mixed(dtype, **settings).eval(), (torch.randn(2, 3, 9, 9).to(dtype),))


def sites(*names: str) -> list[str]:
    return [f"{n}:weight" for n in names]


@vnni
@pytest.mark.parametrize("name", ["eager", "inductor"])
def test_what_ran_in_integers_is_confirmed(name: str, tmp_path: Path) -> None:
    workload = mixed(torch.bfloat16)
    before = {n: t.clone() for n, t in workload.model.state_dict().items()}
    executable: Any = runtime.backend(name).lower(workload, threads=1)
    assert gate(executable, workload).passed
    every = sites("conv", "static", "dynamic", "rows", "groups")
    result = executable.realised("test", every)
    assert (set(result.kept), result.lost) == (set(every), {})
    products = {r.site: (r.op, r.precision) for r in executable.executed() if r.role == "compute"}
    assert products == {
        "conv": ("qconv_pointwise", "int8"),
        "static": ("qlinear_pointwise", "int8"),
        "dynamic": ("qlinear_pointwise", "int8"),
        "rows": ("qlinear_pointwise", "bfloat16"),
        "groups": ("_weight_int4pack_mm_for_cpu", "bfloat16"),
    }
    # The runtime's own word, compiled or not: the profiler saw each operator as often as called.
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        got = executable(*workload.inputs)
    counts = {e.key: e.count for e in seen.key_averages()}
    assert counts["onednn::qconv_pointwise"] == 1
    assert (
        counts["onednn::qlinear_pointwise"] + counts.get("onednn::qlinear_pointwise.tensor", 0) == 3
    )
    assert counts["aten::_weight_int4pack_mm_for_cpu"] == 1
    # What was lowered is another copy, and what is saved are the forms.
    assert all(torch.equal(before[n], t) for n, t in workload.model.state_dict().items())
    if name == "inductor":
        return  # saved and loaded by the same code as eager; it would compile once more
    executable.save(tmp_path)
    again = runtime.backend(name).load(tmp_path, threads=1, workload=mixed(torch.bfloat16))
    assert torch.equal(again(*workload.inputs), got)


@vnni
@pytest.mark.slow
def test_inductor_owns_up_to_weights_that_it_folds_into_floats() -> None:
    workload = mixed(shared=True)
    eager = runtime.backend("eager").lower(workload, threads=1)
    executable = runtime.backend("inductor").lower(workload, threads=1)
    assert gate(executable, workload).passed
    lost = executable.realised("test", sites("static", "rows", "back", "groups")).lost
    assert set(lost) == set(sites("rows", "back", "groups"))
    assert all("in floats" in why for why in lost.values())
    assert "hold it twice" in lost["rows:weight"]
    floats = 4 * (64 * 64 + 64 * 64 + 32 * 64)
    assert executable.weight_bytes() == (eager.weight_bytes() or 0) + floats


@vnni
@pytest.mark.slow
def test_an_executable_compiled_again_still_runs_in_integers() -> None:
    """Lowering another clears inductor's cache: the next call of the first compiles once more."""
    workload = mixed()
    want = runtime.backend("eager").lower(workload, threads=1)(*workload.inputs)
    first = runtime.backend("inductor").lower(workload, threads=1)
    other = Workload(nn.Sequential(nn.Linear(2, 2)).eval(), (torch.randn(1, 2),))
    runtime.backend("inductor").lower(other, threads=1)
    assert error(first(*workload.inputs), want) < 1e-2


@vnni
def test_saved_tensors_are_the_forms_own(tmp_path: Path) -> None:
    workload = mixed(torch.bfloat16)
    executable: Any = runtime.backend("eager").lower(workload, threads=1)
    save_tensors(executable.model, tmp_path / "lowered.safetensors")
    save_tensors(workload.model, tmp_path / "forms.safetensors")
    model = mixed(torch.bfloat16).model
    load_tensors(model, tmp_path / "lowered.safetensors")
    want = workload.model.state_dict()
    assert {n: t.dtype for n, t in model.state_dict().items()} == {
        n: t.dtype for n, t in want.items()
    }
    assert all(torch.equal(want[n], t) for n, t in model.state_dict().items())
    sizes = {f.stem: f.stat().st_size for f in tmp_path.iterdir()}
    assert sizes["lowered"] == sizes["forms"]


@vnni
def test_what_no_operator_takes_stays_and_says_why() -> None:
    workload = mixed(shared=True)
    executable: Any = runtime.backend("eager").lower(workload, threads=1)
    assert gate(executable, workload).passed
    fallbacks = {r.site: r.fallback for r in executable.executed() if r.role == "compute"}
    assert fallbacks["conv"] is fallbacks["static"] is fallbacks["dynamic"] is None
    assert "hold it twice" in fallbacks["rows"]
    assert "hold it twice" in fallbacks["back"]
    assert "made for bfloat16 inputs, it has float32" in fallbacks["groups"]
    # Weights are held packed all the same: that saving is real.
    assert not executable.realised("test", sites("rows", "back", "groups")).lost


def test_without_vnni_int8_is_simulated_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    workload = mixed()
    executable = runtime.backend("eager").lower(workload, threads=1)
    assert torch.equal(executable(*workload.inputs), workload.call())
    lost = executable.realised("test", sites("conv", "static", "dynamic")).lost
    assert len(lost) == 3
    assert all("simulated" in why and "VNNI" in why for why in lost.values())


REFUSED = {
    "in groups": WeightOnlyLinear(64, 32, 8, 32),
    "not 16": WeightOnlyLinear(64, 32, 4, 16),
    "multiples of 16": WeightOnlyLinear(64, 33, 4, 32),
    "both sides alike": QuantConv((4, 4, 2, 2), (1, 1), "same", (1, 1)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str) -> None:
    why = torch_lowering.why_not(REFUSED[reason], torch.bfloat16, False, "x")
    assert why is not None
    assert reason in why


@vnni
def test_weights_are_held_once() -> None:
    columns, rows = 512, 256
    forms = {
        "static": filled(QuantLinear(columns, rows, None)),
        "dynamic": filled(DynamicLinear(columns, rows, None)),
        "rows": WeightOnly()._form(nn.Linear(columns, rows, bias=False)),
    }
    for name, form in forms.items():
        net = nn.Sequential(OrderedDict({name: form}))
        workload = Workload(net.eval(), (torch.randn(1, columns),))
        held = runtime.backend("eager").lower(workload, threads=1).weight_bytes()
        assert held is not None
        # A row of the weight comes with a scale, a zero point and oneDNN's sum of the row.
        assert columns * rows < held <= columns * rows + 20 * rows + 64, name


@vnni
def test_hooks_of_a_form_go_with_it() -> None:
    workload = mixed()
    workload.model.static.register_forward_hook(lambda _m, _a, out: out * 2)
    executable: Any = runtime.backend("eager").lower(workload, threads=1)
    assert gate(executable, workload).passed
    assert isinstance(executable.model.static, PackedLinear)
    assert len(workload.model.static._forward_hooks) == 1
