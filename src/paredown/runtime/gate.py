"""The lowering gate: an executable against the rewritten torch model. No speed-up on a red gate.

Both compute the same network, so they may differ only by rounding. What that may amount to depends
on the coarsest arithmetic in it, read from what the graph asks for:

- float32: 1e-3 of the output's RMS. Reassociated sums of thousands of terms reach 1e-5; a wrong
  epsilon, approximation or layout is far above.
- bfloat16: 3e-2. One rounding is 2^-9 = 0.2 %; some tens of layers add up as a random walk.
- int8 (static or dynamic): 5e-2. A value that rounding moves across the edge of a bin shifts by one
  step, 1/255 of the range, and later layers see it; runtimes may also choose finer dynamic ranges.
  The same holds of activations in fewer bits, whose steps are larger but are crossed less often.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch

from paredown.errors import GateError, InputError
from paredown.runtime import tree
from paredown.runtime.backend import Executable
from paredown.runtime.facade import Facade
from paredown.workload import Workload

TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2, "int8": 5e-2}
"""Coarsest arithmetic -> largest relative error (RMS of difference over RMS of reference)."""

_COARSEST = ("int8", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Gate:
    """What the gate saw: the worst error over ``examples`` calls, and where."""

    error: float
    tolerance: float
    arithmetic: str
    examples: int
    where: str
    passed: bool

    def demand(self) -> None:
        """Raise ``GateError`` unless it passed."""
        if not self.passed:
            raise GateError(
                f"the executable differs from the torch model at {self.where} by {self.error:.2g} "
                f"(relative RMS), {self.tolerance:g} is allowed for {self.arithmetic}: not timed"
            )


def gate(
    executable: Executable, workload: Workload, *, calls: int = 3, tolerance: float | None = None
) -> Gate:
    """Compare on the example inputs and up to ``calls - 1`` calibration items.

    ``workload`` is the rewritten one that was lowered. Raises ``GateError`` when the reference
    itself gives NaN (nothing can be compared then), ``InputError`` when outputs are not tensors.
    """
    arithmetic = coarsest(executable)
    allowed = TOLERANCE[arithmetic] if tolerance is None else tolerance
    facade = Facade(executable, workload)
    worst, where, count = 0.0, "output", 0
    own = workload.copy()
    own.model.eval()
    for args, kwargs in islice(_calls(workload), calls):
        with torch.inference_mode():
            want = own.judged((args, kwargs))
            got = own.judged((args, kwargs), call=facade, like=want)
        count += 1
        for name, error in errors(want, got):
            if error > worst or error != error:
                worst, where = error, name
            if error != error:
                return Gate(float("inf"), allowed, arithmetic, count, where, False)
    return Gate(worst, allowed, arithmetic, count, where, worst <= allowed)


def coarsest(executable: Executable) -> str:
    """The coarsest arithmetic that the lowered graph asks for; float32 when it asks nothing."""
    asked = {p for a in executable.asked.values() for p in (a.compute, a.dtype)}
    if any(a.activation for a in executable.asked.values()):
        asked.add("int8")  # codes of 4 bits move across the edges of bins too
    return next((c for c in _COARSEST if c in asked), "float32")


def _calls(workload: Workload) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    example = [(workload.inputs, workload.kwargs)]
    return chain(example, workload.calibration_inputs() if workload.calibration else ())


def errors(want: Any, got: Any) -> Iterable[tuple[str, float]]:
    """Relative RMS error of each output tensor by name; NaN where only the executable gives NaN."""
    wanted: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    spec = tree.flatten(want, wanted, {})
    tree.flatten(got, given, {})
    if len(wanted) != len(given):
        raise InputError(f"the model returns {len(wanted)} tensors, the executable {len(given)}")
    for name, a, b in zip(tree.names(spec), wanted, given, strict=True):
        if a.shape != b.shape:
            raise InputError(
                f"{name}: the model returns {list(a.shape)}, the executable {list(b.shape)}"
            )
        yield name, _error(name, a, b)


def _error(name: str, want: torch.Tensor, got: torch.Tensor) -> float:
    if not want.is_floating_point():
        # Indices and masks have no RMS: the share of elements that differ.
        return (want != got).float().mean().item() if want.numel() else 0.0
    a, b = want.double(), got.double()
    if torch.isnan(a).any():
        raise GateError(f"the torch model itself gives NaN at {name}: nothing can be compared")
    # Infinities (masked scores) must stand in the same places; they have no difference.
    same = torch.isinf(a) & (a == b)
    a, b = a.masked_fill(same, 0.0), b.masked_fill(same, 0.0)
    scale = a.square().mean().sqrt().item()
    return (a - b).square().mean().sqrt().item() / max(scale, 1e-12) if a.numel() else 0.0
