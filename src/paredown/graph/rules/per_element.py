"""Rules by the element: work proportional to what is written or read; tables of one rule."""

from __future__ import annotations

from paredown.graph.rules.call import Call, Rule, Work, inputs, outputs


def per_output(simple: float, transcendental: float = 0, compare: float = 0) -> Rule:
    """Work proportional to the elements written."""

    def rule(c: Call) -> Work:
        n = outputs(c) or inputs(c)
        return Work(
            elementwise=int(simple * n),
            transcendental=int(transcendental * n),
            compare=int(compare * n),
        )

    return rule


def per_input(simple: float, transcendental: float = 0, compare: float = 0) -> Rule:
    """Work proportional to the elements of the first input (reductions)."""

    def rule(c: Call) -> Work:
        n = inputs(c)
        return Work(
            elementwise=int(simple * n),
            transcendental=int(transcendental * n),
            compare=int(compare * n),
        )

    return rule


def written_only(simple: float, transcendental: float = 0) -> Rule:
    """Overwrites its output without reading it: fills, ranges, random numbers."""

    def rule(c: Call) -> Work:
        n = outputs(c)
        return Work(elementwise=int(simple * n), transcendental=int(transcendental * n), read=0)

    return rule


def table(text: str, rule: Rule) -> dict[str, Rule]:
    """One rule for every ``aten`` operator in a block of words."""
    return dict.fromkeys(names(text), rule)


def names(text: str) -> list[str]:
    """``aten::`` names from a block of words."""
    return [f"aten::{n}" for n in text.split()]
