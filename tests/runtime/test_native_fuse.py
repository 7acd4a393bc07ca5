"""Expansions made inside of their depthwise convolution: same bits, less memory, both named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from merged_steps import ran_by_site
from torch import nn
from torch.nn import functional as F

from paredown import kernels, runtime
from paredown.recipe import parse_inline
from paredown.recipe import run as apply
from paredown.runtime.native import fuse
from paredown.workload import Workload

pytestmark = pytest.mark.skipif(
    kernels.why_missing() is not None, reason="the native module is not built"
)


class Residual(nn.Module):
    """An inverted residual: 1 x 1 up, depthwise, 1 x 1 down. ``peek`` reads the expansion too."""

    def __init__(self, channels: int, expanded: int, kernel: int, peek: bool = False) -> None:
        super().__init__()
        self.up = nn.Conv2d(channels, expanded, 1, bias=False)
        self.norm = nn.BatchNorm2d(expanded)
        self.deep = nn.Conv2d(expanded, expanded, kernel, padding=kernel // 2, groups=expanded)
        self.down = nn.Conv2d(expanded, channels, 1)
        self.peek = peek

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = F.relu6(self.norm(self.up(x)))
        deep = F.silu(self.deep(wide))
        return x + self.down(deep + wide if self.peek else deep)


def workload(peek: bool = False, side: int = 18) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(Residual(9, 45, 3), Residual(9, 70, 5, peek)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean)
    return Workload(model, (torch.randn(2, 9, side, side + 3),), name="residuals")


def lower(given: Workload) -> Any:
    return runtime.backend("native").lower(given, threads=2)


@pytest.mark.parametrize("recipe", ["", "bf16", "static-int8"])
def test_the_bits_are_those_of_two_kernels(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = workload()
    if recipe:
        given = apply(parse_inline(recipe), given).workload
    together = lower(given)
    monkeypatch.setattr(fuse, "merge", lambda plan, weights: None)
    apart = lower(given)
    ops = [s.op for s in together.plan.steps]
    assert ops.count("expand_depthwise") == 2
    assert "expand_depthwise" not in [s.op for s in apart.plan.steps]
    assert torch.equal(together(*given.inputs), apart(*given.inputs))
    assert together.plan.arena_bytes < apart.plan.arena_bytes


def test_what_ran_names_both_convolutions(tmp_path: Any) -> None:
    given = workload()
    for ran in ran_by_site(lower(given), given, tmp_path, ("0.up", "0.deep", "1.up", "1.deep")):
        for site, op in ran.items():
            assert op.partition("_")[0] == ("gemm" if site.endswith("up") else "expand")


def test_an_expansion_that_is_read_twice_stays_in_memory() -> None:
    ops = [s.op for s in lower(workload(peek=True)).plan.steps]
    assert ops.count("expand_depthwise") == 1


def test_narrow_maps_are_left_to_two_kernels() -> None:
    given = workload(side=fuse.NARROWEST - 4)
    assert "expand_depthwise" not in [s.op for s in lower(given).plan.steps]
