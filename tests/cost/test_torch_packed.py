"""Prices foresee which quantized layers eager and inductor run on packed operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from paredown import device
from paredown.cost import torch_packed
from paredown.cost.price import price
from paredown.graph.capture import capture
from paredown.runtime import packed_weights, torch_lowering
from paredown.runtime.quantized import DynamicLinear, QuantLinear
from paredown.techniques.quantize.weight_only import WeightOnly
from paredown.workload import Workload

DEVICE = device.load("xeon-8480")


def ready(form: Any) -> Any:
    for t in (form.weight, form.scale):
        t.data.fill_(1)
    if hasattr(form, "in_scale"):
        form.in_scale.fill_(1.0)
        form.in_zero.fill_(128)
    return form


def weight_only(bits: int, group: int, dtype: Any) -> Any:
    return WeightOnly(bits, group)._form(nn.Linear(256, 256, bias=False).to(dtype))


F32, BF16 = torch.float32, torch.bfloat16
CASES = {
    "static": (lambda: ready(QuantLinear(256, 256)), F32),
    "dynamic": (lambda: ready(DynamicLinear(256, 256)), F32),
    "int8 rows": (lambda: weight_only(8, 0, F32), F32),
    "int8 groups": (lambda: weight_only(8, 32, F32), F32),
    "int4 groups": (lambda: weight_only(4, 32, BF16), BF16),
    "int4 in float32": (lambda: weight_only(4, 32, F32), F32),
    "int4 per row": (lambda: weight_only(4, 0, BF16), BF16),
}


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="nothing is lowered without VNNI")
@pytest.mark.parametrize("name", CASES)
def test_the_guess_is_what_lowering_does(name: str) -> None:
    make, dtype = CASES[name]
    workload = Workload(nn.Sequential(make()).eval(), (torch.ones(4, 256, dtype=dtype),))
    guessed = torch_packed.packed_modules(capture(workload))
    lost = torch_lowering.lower(workload.copy())
    assert guessed == frozenset({"0"} - lost.keys())
    assert len(guessed) + len(lost) == 1


def test_a_shared_table_is_not_packed() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = weight_only(8, 0, F32), weight_only(8, 0, F32)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    workload = Workload(Tied().eval(), (torch.ones(4, 256),))
    assert not torch_packed.packed_modules(capture(workload))
    assert set(torch_lowering.lower(workload.copy())) == {"a", "b"}


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_lowered_form_costs_less_than_floats_and_an_unconfirmed_one_more(backend: str) -> None:
    x = torch.ones(256, 256)
    form = Workload(nn.Sequential(ready(QuantLinear(256, 256, None))).eval(), (x,))
    plain = Workload(nn.Sequential(nn.Linear(256, 256, bias=False)).eval(), (x,))
    graph = capture(form)
    before = price(capture(plain), DEVICE, backend=backend).seconds
    lost = frozenset({"0"})
    assert price(graph, DEVICE, backend=backend).seconds < before
    assert price(graph, DEVICE, backend=backend, unrealised=lost).seconds > before


def test_the_tables_agree() -> None:
    assert torch_packed.INT4_GROUPS == packed_weights.GROUPS
