"""Every technique with a site in a generated network, held to its promises.

The conformance checks (`testing.checks`) run on the network; beside them a rewrite that changes no
numbers must give eager's, and one that does must stay finite and of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable

from paredown import registry
from paredown.errors import ParedownError
from paredown.graph.capture import capture
from paredown.recipe import seeded
from paredown.runtime import gate as gates
from paredown.technique import Technique
from paredown.testing.checks import CHECKS
from paredown.testing.fuzz.oracles import Difference
from paredown.workload import Workload

SETTINGS: dict[str, dict[str, object]] = {"recover": {"steps": 2}, "qlora": {"steps": 2}}
"""Few steps: the promises do not depend on their number."""
EXACT = {"fold-norm": 1e-4}
"""Techniques that keep the network's function -> relative RMS error allowed."""
CHECKED = (
    "leaves_the_workload_alone",
    "previews_what_it_does",
    "survives_save_and_load",
    "keeps_its_claims",
)


def techniques() -> dict[str, Technique]:
    """Every technique by name, at settings that are quick."""
    return {n: registry.make(n, SETTINGS.get(n)) for n in registry.names()}


def check(
    technique: Technique, fresh: Callable[[], Workload], checks: tuple[str, ...] = CHECKED
) -> tuple[bool, list[Difference]]:
    """Whether the technique had a site, and the promises that it broke."""
    where = f"technique {technique.name}"
    workload = fresh()
    if technique.missing(workload) is not None:
        return False, []
    try:
        sites = technique.sites(workload, capture(workload))
        if not sites.ok:
            return False, []
        with seeded(0, technique.name):
            change = technique.apply(workload, sites)
        got, want = change.workload.call(), workload.call()
    except ParedownError as e:
        # A reason in one line is an answer; the network is as it was.
        broken = "\n" in str(e)
        return False, [Difference(where, "refusal in several lines", str(e))] if broken else []
    except Exception as e:  # anything else is the finding
        return True, [Difference(where, f"{type(e).__name__}: {_line(e)[:100]}", repr(e))]
    found = _same(technique, where, want, got)
    for name in checks:
        try:
            CHECKS[name](technique, fresh)
        except (AssertionError, ParedownError) as e:
            found.append(Difference(where, f"{name}: {_line(e)[:100]}", _line(e)))
        except Exception as e:  # as above
            found.append(Difference(where, f"{name}: {type(e).__name__}", repr(e)))
    return True, found


def _same(technique: Technique, where: str, want: object, got: object) -> list[Difference]:
    allowed = EXACT.get(technique.name)
    try:
        errors = dict(gates.errors(want, got))
    except ParedownError as e:
        return [Difference(where, "outputs", str(e))]
    if any(e != e for e in errors.values()):
        return [Difference(where, "outputs", "not finite")]
    worst = max(errors.values(), default=0.0)
    if allowed is not None and worst > allowed:
        return [Difference(where, "changed the function", f"{worst:.3g}")]
    return []


def _line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
