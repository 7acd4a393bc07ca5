"""Every error paredown raises on purpose: one root, one line each (what, where, what to do)."""

from __future__ import annotations


class ParedownError(Exception):
    """Root of all errors a user can cause or meet; `pare` prints its one line and exits 2."""

    exit_code = 2


class InputError(ParedownError, ValueError):
    """A value given by the user is malformed: a shape, a setting, an option, data."""


class TargetError(InputError):
    """The target cannot be found, built or run."""


class BudgetError(InputError):
    """A constraint is malformed, unknown, contradictory, or cannot be measured here."""


class RecipeError(InputError):
    """A recipe names an unknown technique, key, version or site."""


class ArtefactError(InputError):
    """An artefact folder is damaged, incomplete or unsafe; nothing of it was run."""


class UnknownName(ParedownError, LookupError):
    """A name (technique, device, network, paper, backend) that paredown does not know."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        from difflib import get_close_matches

        # A family's name is the beginning of its members'.
        longer = sorted(k for k in known if name and k.startswith(name))
        near = [
            *longer,
            *(k for k in get_close_matches(name, known, n=3, cutoff=0.5) if k not in longer),
        ]
        near = near[: max(3, min(len(longer), 8))]
        hint = (
            f"did you mean {', '.join(near)}?"
            if near
            else f"known: {', '.join(sorted(known)[:12])}"
        )
        super().__init__(f"unknown {kind} {name!r}: {hint}")
        self.kind, self.name, self.known = kind, name, known


class MissingExtra(ParedownError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, wanted_for: str) -> None:
        super().__init__(
            f"{wanted_for} needs {package}, which is not installed: "
            f"pip install 'paredown[{extra}]' -c constraints.txt"
        )
        self.package, self.extra = package, extra


class CaptureError(ParedownError, RuntimeError):
    """A model could not be captured: it raised, or it branches on data."""


class NotApplicable(ParedownError, ValueError):
    """A technique, site or backend cannot act on this model; says which rule forbids it."""


class LoweringError(ParedownError, RuntimeError):
    """A backend could not compile, save or load a model it said it supports."""


class GateError(ParedownError, RuntimeError):
    """An executable's outputs differ from the model it was lowered from: no timing is reported."""


class MeasurementError(ParedownError, RuntimeError):
    """A measurement is impossible or not believable here (a rate above the machine's peak, say)."""


class Undecided(ParedownError, RuntimeError):
    """A search ended with neither an answer nor the proof that there is none."""


class DeviceError(InputError):
    """A device file is incomplete or inconsistent, or a device is unknown."""


class CandidateFailed(ParedownError, RuntimeError):
    """One candidate crashed, hung or ran out of memory; the search goes on without it."""
