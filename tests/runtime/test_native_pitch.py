"""Rows that products read in place lie an odd number of cache lines apart, and no bit changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from paredown import kernels, runtime
from paredown.runtime.native import pitch
from paredown.runtime.native.plan import WIDTH, Plan
from paredown.workload import Workload

pytestmark = pytest.mark.skipif(
    kernels.why_missing() is not None, reason="the native module is not built"
)

WIDE = 256


class Block(nn.Module):
    """A transformer block of 256 channels, its heads read as parts of one product's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDE), nn.LayerNorm(WIDE)
        self.parts, self.out = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, WIDE)
        self.up, self.down = nn.Linear(WIDE, 2 * WIDE), nn.Linear(2 * WIDE, WIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.parts(self.first(x)).reshape(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Maps(nn.Module):
    """A bottleneck: a 1 x 1 convolution reads what a 3 x 3, a pool and a sum read too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDE, 3, padding=1)
        self.down, self.up = nn.Conv2d(WIDE, 32, 1), nn.Conv2d(32, WIDE, 3, padding=1)
        self.beside = nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=WIDE)
        self.last = nn.Conv2d(WIDE, 40, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = self.beside(x) + self.up(torch.relu(self.down(x))) + x
        return self.last(nn.functional.max_pool2d(x, 2))


class Flat(nn.Module):
    """Rows that a product reads whole and a reshape reads as one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.across = nn.Linear(32, WIDE), nn.Linear(WIDE, 16)
        self.whole = nn.Linear(20 * WIDE, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.up(x))
        return self.whole(y.flatten(1)) + self.across(y).sum()


def workload(kind: type[nn.Module]) -> Workload:
    torch.manual_seed(0)
    shape = {Block: (2, 19, WIDE), Maps: (1, 3, 10, 10), Flat: (1, 20, 32)}[kind]
    x = torch.randn(shape).bfloat16()
    return Workload(kind().eval().bfloat16(), (x,), name=kind.__name__.lower())


def lower(given: Workload) -> Any:
    return runtime.backend("native").lower(given, threads=1)


def read_in_place(plan: Plan) -> list[tuple[int, bool]]:
    """Cache lines between rows that products read, and whether somebody else wrote them."""
    return [
        (s.fields["lda"] * WIDTH[s.fields["a_type"]] // pitch.LINE, b.kind == "arena")
        for s in plan.steps
        if s.op == "gemm" and s.fields["k"] * WIDTH[s.fields["a_type"]] >= pitch.SHORTEST
        for b in [plan.buffers[s.tensors["a"].buffer]]
    ]


@pytest.mark.parametrize("kind", [Block, Maps])
def test_rows_lie_apart_and_no_bit_changes(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = workload(kind)
    apart = lower(given)
    lines = read_in_place(apart.plan)
    assert len(lines) >= 1
    assert all(n % 2 == 1 for n, arena in lines if arena)
    with monkeypatch.context() as m:
        m.setattr(pitch, "spread", lambda plan: None)
        dense = lower(given)
    assert all(n % 4 == 0 for n, _ in read_in_place(dense.plan))
    assert torch.equal(apart(*given.inputs), dense(*given.inputs))
    assert apart.plan.arena_bytes > dense.plan.arena_bytes


@pytest.mark.parametrize("kind", [Block, Maps])
def test_every_tensor_stays_in_its_buffer(kind: type[nn.Module]) -> None:
    plan = lower(workload(kind)).plan
    for step in plan.steps:
        for t in step.tensors.values():
            if t.buffer in plan.buffers:
                assert t.extent <= plan.buffers[t.buffer].nbytes


def test_rows_that_somebody_reads_as_one_stay_together() -> None:
    given = workload(Flat)
    made = lower(given)
    assert all(n % 4 == 0 for n, _ in read_in_place(made.plan))
    torch.testing.assert_close(
        made(*given.inputs), given.model(*given.inputs), atol=0.05, rtol=0.05
    )
