"""Backends against eager on generated networks, where eager itself is well-conditioned."""

from __future__ import annotations

from typing import Any

import torch

from paredown.errors import GateError, ParedownError
from paredown.runtime import backend
from paredown.runtime.gate import gate
from paredown.testing.fuzz.oracles import Difference
from paredown.workload import Workload

NUDGE = 3e-6
"""Relative change of the inputs under which a network must be steady to be compared."""
STEADY = 2e-4
"""Relative RMS change of outputs above which it is not: a fifth of the gate's tolerance."""


def steady(workload: Workload) -> str | None:
    """None where eager's output is finite and hardly moves with its inputs; else the reason.

    A flip of an index, a rounding or a comparison is no error of a backend.
    """
    with torch.no_grad():
        want = workload.once()
        for t in want:
            if t.is_floating_point() and not bool(torch.isfinite(t).all()):
                return "not finite"
            if t.is_floating_point() and float(t.abs().max()) > 1e6:
                return "large values"
        for seed in range(2):
            got = workload.once((_nudged(workload.inputs, seed), {}))
            for a, b in zip(want, got, strict=True):
                if a.is_floating_point():
                    scale = float(a.double().square().mean().sqrt())
                    moved = float((a - b).double().square().mean().sqrt())
                    if moved > STEADY * scale:
                        return "ill-conditioned"
                elif not torch.equal(a, b):
                    return "ill-conditioned"
    return None


def compare(workload: Workload, names: tuple[str, ...]) -> dict[str, str | Difference]:
    """Backend -> ``same``, ``refused: why``, or the difference."""
    return {name: _one(workload, name) for name in names}


def _one(workload: Workload, name: str) -> str | Difference:
    runs = backend(name)
    why = runs.supports(workload, None)
    if why:
        return f"refused: {why[0]}"
    try:
        seen = gate(runs.lower(workload, threads=1), workload, calls=2)
    except GateError as e:
        return f"refused: {e}"
    except ParedownError as e:
        return f"refused: {_line(e)}"
    except Exception as e:  # whatever a runtime throws is the finding
        return Difference(f"backend {name}", f"{type(e).__name__}: {_line(e)[:120]}", _line(e))
    if seen.passed:
        return "same"
    return Difference(f"backend {name}", "differs from eager", f"{seen.error:.3g} at {seen.where}")


def _nudged(inputs: tuple[Any, ...], seed: int) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(
        t + NUDGE * t.abs() * torch.randn(t.shape, generator=g) if t.is_floating_point() else t
        for t in inputs
    )


def _line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
