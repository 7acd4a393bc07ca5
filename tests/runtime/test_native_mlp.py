"""MLPs as one kernel of a plan: same bits, what lies between never in memory, chosen by bytes."""

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
from paredown.runtime.native import mlp
from paredown.runtime.native.plan import Step
from paredown.workload import Workload

pytestmark = pytest.mark.skipif(
    kernels.why_missing() is not None, reason="the native module is not built"
)


class Mlp(nn.Module):
    """Norm, up, GELU, down, layer scale and a skip. ``peek`` reads what lies between too."""

    def __init__(self, width: int, inner: int, peek: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.rand(width))
        self.peek = peek

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.up(self.norm(x)))
        out = x + self.gamma * self.down(inner)
        return out + inner.mean() if self.peek else out


class Pointwise(nn.Module):
    """Two 1 x 1 convolutions over channels first, as InceptionNeXt and MetaFormers have them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.relu(self.up(x)))


def workload(peek: bool = False, tokens: int = 77) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(Mlp(40, 160), Mlp(40, 130, peek)).eval()
    return Workload(model, (torch.randn(2, tokens, 40),), name="mlps")


def lower(given: Workload) -> Any:
    return runtime.backend("native").lower(given, threads=2)


def ops(executable: Any) -> list[str]:
    return [s.op for s in executable.plan.steps]


@pytest.mark.parametrize("recipe", ["", "bf16", "static-int8"])
def test_the_bits_are_those_of_two_kernels(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = workload()
    if recipe:
        given = apply(parse_inline(recipe), given).workload
    together = lower(given)
    monkeypatch.setattr(mlp, "worth", lambda first, second, weights: False)
    apart = lower(given)
    assert ops(together).count("mlp") == 2
    assert "mlp" not in ops(apart)
    assert torch.equal(together(*given.inputs), apart(*given.inputs))
    assert together.plan.arena_bytes < apart.plan.arena_bytes
    wide = [s for s in apart.plan.steps if s.op == "gemm" and s.fields["n"] > 40]
    inner = sum(map(mlp.inner_bytes, wide))
    assert moved(apart) - moved(together) == 2 * inner


def moved(executable: Any) -> int:
    """Bytes of the tensors that the products read and write."""
    width = {"float32": 4, "bfloat16": 2, "uint8": 1, "int8": 1}
    steps = [s for s in executable.plan.steps if s.op in ("gemm", "mlp")]
    return sum(t.numel * width[t.dtype] for s in steps for t in s.tensors.values())


@pytest.mark.parametrize("recipe", ["", "bf16"])
def test_pairs_of_pointwise_convolutions(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    given = Workload(Pointwise(24, 96).eval(), (torch.randn(1, 24, 19, 17),), name="pair")
    if recipe:
        given = apply(parse_inline(recipe), given).workload
    together = lower(given)
    monkeypatch.setattr(mlp, "worth", lambda first, second, weights: False)
    assert ops(together).count("mlp") == 1
    assert torch.equal(together(*given.inputs), lower(given)(*given.inputs))


def test_what_ran_names_both_products(tmp_path: Any) -> None:
    given = workload()
    for ran in ran_by_site(lower(given), given, tmp_path, ("0.up", "0.down", "1.up", "1.down")):
        for site, op in ran.items():
            assert op.startswith("gemm_" if site.endswith("up") else "mlp_")


def test_what_is_read_twice_stays_in_memory() -> None:
    assert ops(lower(workload(peek=True))).count("mlp") == 1


@pytest.mark.parametrize(
    ("rows", "width", "together"),
    [
        (49, 768, False),  # each core would read all weights for half of few rows
        (128, 768, False),
        (197, 384, False),  # five rows are left over, and one core would wait for them
        (192, 384, True),
        (320, 768, True),
        (784, 192, True),
        (3136, 96, True),
        (196, 96, True),  # left over too, but more is saved
    ],
)
def test_the_law_takes_what_was_measured_faster(rows: int, width: int, together: bool) -> None:
    inner = 4 * width
    e = {"m": rows, "n": inner, "k": width, "a_type": "bfloat16", "out_type": "bfloat16"}
    up = Step("gemm", "up", {}, (), {"w": "up"}, e)
    down = Step("gemm", "down", {}, (), {"w": "down"}, {**e, "n": width, "k": inner})
    weights = {"up": torch.ones(inner, width), "down": torch.ones(width, inner)}
    assert mlp.worth(up, down, weights) == together


def test_few_rows_are_left_to_two_kernels() -> None:
    assert "mlp" not in ops(lower(workload(tokens=17)))
    assert ops(lower(workload(tokens=16))).count("mlp") == 2


def test_pruned_weights_are_left_to_kernels_that_skip_zeros() -> None:
    given = workload()
    with torch.no_grad():
        given.model[0].up.weight[::2] = 0
    assert ops(lower(given)).count("mlp") == 1


def test_a_bottleneck_is_no_mlp() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 64)).eval()
    assert "mlp" not in ops(lower(Workload(model, (torch.randn(300, 64),), name="narrow")))


def test_rows_that_tiles_would_want_in_the_same_places_lie_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))
    given = Workload(model.eval(), (torch.randn(700, 256),), name="wide")
    given = apply(parse_inline("bf16"), given).workload
    executable = lower(given)
    (step,) = [s for s in executable.plan.steps if s.op == "mlp"]
    assert step.fields["expand_lda"] == 256 + 32
    norm = next(s for s in executable.plan.steps if s.op == "norm")
    assert norm.fields["out_stride"] == 256 + 32
    torch.testing.assert_close(
        executable(*given.inputs).float(), given.model(*given.inputs).float(), rtol=0.05, atol=0.05
    )
