"""Where two networks are compared: a student's maps, a teacher's last stage, and their layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.techniques.distance import blocks


@dataclass(frozen=True)
class Layout:
    """How features lie in a tensor: ``grid`` positions of ``width`` channels.

    ``kind`` is ``maps`` (batch, channels, h, w), ``grid`` (batch, h, w, channels) or ``tokens``
    (batch, extra + h * w, channels), with ``extra`` class tokens in front.
    """

    kind: str
    grid: tuple[int, int]
    width: int
    extra: int = 0

    @classmethod
    def of(cls, x: Tensor) -> Layout | None:
        """The layout of a tensor, None where it has no square or rectangular grid."""
        if x.ndim == 4:
            _, a, b, c = x.shape
            if a == b and b != c:
                return cls("grid", (a, b), c)
            return cls("maps", (b, c), a) if b * c > 1 else None
        if x.ndim != 3:
            return None
        for extra in (0, 1, 2, 5):
            side = math.isqrt(max(0, x.shape[1] - extra))
            if side > 1 and side * side == x.shape[1] - extra:
                return cls("tokens", (side, side), x.shape[2], extra)
        return None

    def maps(self, x: Tensor) -> Tensor:
        """As (batch, channels, h, w)."""
        if self.kind == "maps":
            return x
        if self.kind == "grid":
            return x.permute(0, 3, 1, 2)
        return x[:, self.extra :].transpose(1, 2).unflatten(2, self.grid)

    def back(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Tokens (batch, h * w, channels) in this layout; class tokens are those of ``like``."""
        if self.kind == "tokens":
            return torch.cat([like[:, : self.extra], tokens], 1)
        grid = tokens.unflatten(1, self.grid)
        return grid.permute(0, 3, 1, 2) if self.kind == "maps" else grid


def stage_layouts(teacher: nn.Module, stage: str, inputs: tuple[Any, ...]) -> tuple[Layout, Layout]:
    """Layouts before and behind the teacher's ``stage``; raises ``InputError`` without features."""
    held = _at(teacher, [stage], inputs, "teacher").get(stage)
    before, after = (None, None) if held is None else (Layout.of(held[0]), Layout.of(held[1]))
    if before is None or after is None:
        raise InputError(f"the teacher's {stage!r} does not turn features into features")
    return before, after


def map_layouts(
    student: nn.Module, maps: tuple[str, str], inputs: tuple[Any, ...]
) -> dict[str, Layout]:
    """Layouts of the student's maps by path; raises ``InputError`` where one is none."""
    found = _at(student, list(maps), inputs, "student")
    out: dict[str, Layout] = {}
    for path in maps:
        where = Layout.of(found[path][1]) if path in found else None
        if where is None:
            raise InputError(f"the student's {path!r} makes no map and no grid of tokens")
        out[path] = where
    return out


def _at(
    model: nn.Module, paths: list[str], inputs: tuple[Any, ...], whose: str
) -> dict[str, tuple[Tensor, Tensor]]:
    known = dict(model.named_modules())
    for path in paths:
        if path not in known:
            raise InputError(f"the {whose} has no module {path!r}")
    return seen(model, paths, inputs)


def first_tensor(out: Any) -> Any:
    """The tensor of a module's output, the first of a tuple."""
    return out[0] if isinstance(out, (tuple, list)) and out else out


def last_stage(teacher: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Path of the last block of ``teacher`` that turns features into features.

    Raises ``InputError`` where none does.
    """
    found: list[str] = []
    # Outer blocks first: a stage stands before its own blocks.
    for path in blocks(teacher):
        if not any(path.startswith(outer + ".") for outer in found):
            found.append(path)
    for path in reversed(found):
        held = seen(teacher, [path], inputs).get(path)
        if held is not None and all(Layout.of(t) is not None for t in held):
            return path
    raise InputError(
        "the teacher has no last block from features to features: name one with `teacher_stage`"
    )


def seen(
    model: nn.Module, paths: list[str], inputs: tuple[Any, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """First input and output of modules in one run without gradients, where both are tensors."""
    out: dict[str, tuple[Tensor, Tensor]] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], made: Any) -> None:
            a, b = (args[0] if args else None), first_tensor(made)
            if not isinstance(a, Tensor) or not isinstance(b, Tensor):
                return
            if a.is_floating_point() and b.is_floating_point():
                out[path] = a, b

        return hook

    hooks = [model.get_submodule(p).register_forward_hook(note(p)) for p in paths]
    was = model.training
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        model.train(was)
        for h in hooks:
            h.remove()
    return out


def student_maps(student: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, str]:
    """Paths of a student's last map and of the last one with a finer grid.

    Where the grid never changes, the earlier one lies three quarters down. Raises ``InputError``.
    """
    paths = [p for p, _ in student.named_modules() if p]
    ran = [(p, Layout.of(out)) for p, (_, out) in seen(student, paths, inputs).items()]
    maps = [(p, where) for p, where in ran if where is not None]
    if not maps:
        raise InputError("the student makes no map (batch, channels, h, w) and no grid of tokens")
    deep, last = maps[-1]
    finer = [p for p, where in maps if math.prod(where.grid) > math.prod(last.grid)]
    return (finer[-1] if finer else maps[int(0.75 * (len(maps) - 1))][0]), deep
