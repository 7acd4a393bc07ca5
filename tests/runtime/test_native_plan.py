"""The native engine's plans: the same each time, memory never shared by two that live, refusals,
inputs of any layout, steps that torch runs, and int8 from end to end.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_nets import NETS
from torch import nn
from torch.nn import functional as F

from paredown import kernels, runtime
from paredown.errors import ArtefactError, InputError
from paredown.recipe import parse_inline
from paredown.recipe import run as apply
from paredown.runtime.gate import gate
from paredown.runtime.native import arena
from paredown.runtime.native.plan import Buffer, Plan, Step, Tensor
from paredown.workload import Workload

pytestmark = pytest.mark.skipif(
    kernels.why_missing() is not None, reason="the native module is not built"
)

NETWORKS = ("convnet", "encoder")


class Chain(nn.Module):
    """Three convolutions with nothing between them but an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 40, 1)
        self.third = nn.Conv2d(40, 17, 3, padding=1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(x)))))


class Summing(nn.Module):
    """A running sum, which the engine has no kernel for, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(torch.cumsum(self.before(x), 1))


def chain() -> Workload:
    torch.manual_seed(0)
    return Workload(Chain().eval(), (torch.randn(2, 3, 13, 13),), name="chain")


def lower(workload: Workload, threads: int = 1) -> Any:
    return runtime.backend("native").lower(workload, threads=threads)


@pytest.fixture(scope="module")
def executables() -> dict[str, tuple[Workload, Any]]:
    made = {name: NETS[name]() for name in NETWORKS}
    return {name: (w, lower(w)) for name, w in made.items()}


# ---------------------------------------------------------------- plans
@pytest.mark.parametrize("name", NETWORKS)
def test_lowering_again_gives_the_same_plan(name: str, executables: Any) -> None:
    workload, first = executables[name]
    again = lower(workload)
    assert json.dumps(first.plan.to_json()) == json.dumps(again.plan.to_json())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_comes_back_from_json_as_it_was(name: str, executables: Any) -> None:
    plan = executables[name][1].plan
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read.to_json() == plan.to_json()


def lifetimes(plan: Plan) -> dict[str, tuple[int, int]]:
    """First and last step that touch each buffer, counted from the steps alone."""
    out: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(plan.steps):
        for t in step.tensors.values():
            out[t.buffer] = (out.get(t.buffer, (i, i))[0], i)
    return out


def demand_apart(plan: Plan) -> None:
    """No two buffers that live at one time overlap, and none leaves the arena."""
    alive = lifetimes(plan)
    placed = [b for b in plan.buffers.values() if b.kind == "arena"]
    for i, a in enumerate(placed):
        assert a.offset % arena.ALIGN == 0
        assert a.offset >= 0
        assert a.offset + a.nbytes <= plan.arena_bytes
        for b in placed[i + 1 :]:
            (first, last), (from_, to) = alive[a.name], alive[b.name]
            if first <= to and from_ <= last:
                apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
                assert apart, f"{a} overlaps {b}"


@pytest.mark.parametrize("name", NETWORKS)
def test_buffers_that_live_together_lie_apart(name: str, executables: Any) -> None:
    plan = executables[name][1].plan
    demand_apart(plan)
    assert plan.arena_bytes >= plan.lower_bound > 0


@pytest.mark.parametrize("seed", range(20))
def test_random_lifetimes_lie_apart(seed: int) -> None:
    pick = random.Random(seed)
    count = pick.randint(1, 40)
    sizes = {f"b{i}": pick.choice((1, 63, 64, 65, 1000, pick.randint(1, 5000))) for i in range(30)}
    steps: list[Step] = []
    for _ in range(count):
        used = pick.sample(sorted(sizes), pick.randint(1, 4))
        tensors = {f"t{j}": Tensor(b, "uint8", (sizes[b],), (1,)) for j, b in enumerate(used)}
        steps.append(Step("copy", "", tensors, ()))
    plan = Plan("random", {n: Buffer(n, "arena", s) for n, s in sizes.items()}, {}, steps, [], [])
    arena.place(plan)
    demand_apart(plan)
    alive = lifetimes(plan)
    assert set(plan.buffers) == set(alive)
    rounded = {n: -(-sizes[n] // arena.ALIGN) * arena.ALIGN for n in alive}
    together = (
        sum(rounded[n] for n, (first, last) in alive.items() if first <= i <= last)
        for i in range(count)
    )
    assert plan.lower_bound == max(together)
    assert plan.arena_bytes >= plan.lower_bound


# ---------------------------------------------------------------- refusals
def test_another_shape_is_refused_with_the_shapes_of_the_plan(executables: Any) -> None:
    workload, executable = executables["convnet"]
    shape = list(workload.inputs[0].shape)
    with pytest.raises(InputError) as caught:
        executable(torch.zeros(2, 3, 5, 5))
    assert str(shape) in str(caught.value)
    assert "[2, 3, 5, 5]" in str(caught.value)


@pytest.mark.parametrize("file", ["plan.json", "call.json", "weights.safetensors"])
def test_a_changed_byte_is_refused_by_checksum(file: str, executables: Any, tmp_path: Path) -> None:
    executables["convnet"][1].save(tmp_path)
    path = tmp_path / file
    data = bytearray(path.read_bytes())
    if file == "plan.json":  # one digit: still JSON, another place in memory
        at = data.index(b'"nbytes":') + len(b'"nbytes":')
        data[at] = data[at] % 57 + 1 if data[at] != ord("9") else ord("8")
    else:
        data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="checksum"):
        runtime.backend("native").load(tmp_path, threads=1)


def test_a_plan_that_leaves_its_memory_is_refused(executables: Any) -> None:
    from paredown.runtime.native.execute import Runner

    executable = executables["convnet"][1]
    plan = Plan.from_json(json.loads(json.dumps(executable.plan.to_json())))
    inside = next(b for b in plan.buffers.values() if b.kind == "arena")
    inside.offset = plan.arena_bytes
    with pytest.raises(ArtefactError, match="leaves the arena"):
        Runner(plan, executable._weights, 1)


# ---------------------------------------------------------------- inputs
def spread(x: torch.Tensor) -> torch.Tensor:
    """`x` as every second element of a larger tensor."""
    wide = torch.full((*x.shape, 2), float("nan"))
    wide[..., 0] = x
    return wide[..., 0]


def shifted(x: torch.Tensor) -> torch.Tensor:
    """`x` contiguous, one element beyond an aligned address."""
    room = torch.empty(x.numel() + 1)
    room[1:] = x.flatten()
    out = room[1:].view(x.shape)
    assert out.is_contiguous()
    assert out.data_ptr() % 64 != 0
    return out


LAYOUTS = {
    "spread": spread,
    "shifted": shifted,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_of_any_layout_give_the_same_bits(name: str, layout: str, executables: Any) -> None:
    workload, executable = executables[name]
    (x,) = workload.inputs
    assert torch.equal(executable(LAYOUTS[layout](x)), executable(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_memory_held_before_changes_nothing(name: str, executables: Any) -> None:
    workload, executable = executables[name]
    want = executable(*workload.inputs)
    executable.runner.engine.arena[:] = 0xFF  # NaN in every float type
    assert torch.equal(executable(*workload.inputs), want)


def test_nan_stays_in_its_example(executables: Any) -> None:
    workload, executable = executables["convnet"]
    (x,) = workload.inputs
    poisoned = x.clone()
    poisoned[1] = float("nan")
    made = executable(poisoned)
    assert made[1].isnan().all()
    torch.testing.assert_close(made[0], executable(x)[0])


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads: int, executables: Any) -> None:
    workload, executable = executables["encoder"]
    other = lower(workload, threads)
    assert torch.equal(other(*workload.inputs), executable(*workload.inputs))


def test_more_threads_than_cores_change_no_bit_and_leave_nothing_behind() -> None:
    """Threads that lose their core come late to steps, to the run after, and to an engine's end."""
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 65, 67),)
    workload = Workload(Chain().eval(), inputs, name="chain")
    wanted = lower(workload)(*inputs)
    for _ in range(4):
        crowd = lower(workload, threads=9)
        for _ in range(12):  # past the runs after which the steps are cut anew
            assert torch.equal(crowd(*inputs), wanted)


def test_engines_of_several_callers_share_their_threads(executables: Any) -> None:
    workload, executable = executables["encoder"]
    wanted = executable(*workload.inputs)
    others = [lower(workload, threads=2) for _ in range(3)]

    def ten_runs(other: Any) -> bool:
        return all(torch.equal(other(*workload.inputs), wanted) for _ in range(10))

    with ThreadPoolExecutor(3) as callers:
        assert all(callers.map(ten_runs, others))


# ---------------------------------------------------------------- what torch runs
def test_what_torch_runs_is_reported_with_its_share() -> None:
    torch.manual_seed(0)
    workload = Workload(Summing().eval(), (torch.randn(4, 8),), name="summing")
    executable = lower(workload)
    assert gate(executable, workload).passed
    assert [k for k, _, _ in executable.plan.segments()] == ["native", "torch", "native"]
    (row,) = [r for r in executable.executed() if r.fallback is not None]
    assert row.op == "aten.cumsum.default"
    assert "no native operator for aten.cumsum.default" in row.fallback
    (index,) = [i for i, s in enumerate(executable.plan.steps) if s.fallback is not None]
    share = executable.shares()[index]
    assert 0 < share < 1
    assert f"{share:.0%} of the time" in row.fallback
    assert sum(executable.shares()) == pytest.approx(1)


def test_a_network_of_native_operators_has_no_torch_step(executables: Any) -> None:
    for _, executable in executables.values():
        assert [s.op for s in executable.plan.steps if s.fallback is not None] == []


# ---------------------------------------------------------------- int8
def quantized(workload: Workload, steps: str) -> Workload:
    return apply(parse_inline(steps), workload).workload


@pytest.mark.parametrize("steps", ["static-int8", "static-int8 + bf16"])
def test_a_chain_of_convolutions_stays_in_integers(steps: str) -> None:
    workload = quantized(chain(), steps)
    executable = lower(workload)
    products = [s for s in executable.plan.steps if s.role]
    assert [s.precision for s in products] == ["int8"] * 3
    # Requantising is part of the product: nothing stands between them.
    reads = [s.tensors["in" if s.op == "conv" else "a"] for s in products]
    writes = [s.tensors[s.writes[0]] for s in products]
    assert [t.dtype for t in reads] == ["uint8"] * 3
    for out, into in zip(writes, reads[1:], strict=False):
        assert (out.buffer, out.dtype) == (into.buffer, "uint8")
    seen = gate(executable, workload)
    assert seen.arithmetic == "int8"
    assert seen.passed, seen


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_passes_the_gate_and_comes_back(name: str, executables: Any, tmp_path: Path) -> None:
    workload = quantized(executables[name][0], "static-int8")
    executable = lower(workload)
    seen = gate(executable, workload)
    assert seen.passed, seen
    assert "int8" in {r.precision for r in executable.executed() if r.role}
    executable.save(tmp_path)
    loaded = runtime.backend("native").load(tmp_path, threads=1)
    assert torch.equal(loaded(*workload.inputs), executable(*workload.inputs))
