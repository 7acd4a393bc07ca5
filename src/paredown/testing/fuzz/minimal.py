"""Shrinking a program that shows a difference: calls cut away, one by one, while it still shows."""

from __future__ import annotations

from collections.abc import Callable

from paredown.testing.fuzz.program import Program, Step


def minimal(program: Program, shows: Callable[[Program], bool], tries: int = 200) -> Program:
    """The smallest program found that still ``shows`` the difference; itself when none is smaller.

    A call is cut by making what it made an input, where somebody reads it; halves of the calls
    first, then single ones, from the end. ``shows`` is asked ``tries`` times at most.
    """
    left = tries
    chunk = max(1, len(program.steps) // 2)
    while chunk:
        at = len(program.steps)
        while at > 0:
            keep = [s for n, s in enumerate(program.steps) if not at - chunk <= n < at]
            smaller = without(program, keep)
            at -= chunk
            if not smaller.steps or not left:
                continue
            left -= 1
            if shows(smaller):
                program = smaller
                at = min(at, len(program.steps))
        chunk //= 2
    return program


def without(program: Program, keep: list[Step]) -> Program:
    """The program of some of its calls: values that they read and nobody makes are inputs."""
    specs = dict(program.inputs)
    for s in program.steps:
        specs.update(zip(s.outs, s.made, strict=True))
    made = {v for s in keep for v in s.outs}
    read = [v for s in keep for v in s.reads()]
    return Program({v: specs[v] for v in dict.fromkeys(read) if v not in made}, tuple(keep))
