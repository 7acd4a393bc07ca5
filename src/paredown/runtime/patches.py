"""Patch-by-patch execution of a network's early stage: what is computed, tile by tile.

MCUNetV2 (Lin et al. 2021, arXiv:2110.15352), section 3.1: the first blocks hold most of a CNN's
peak memory; computed tile by tile of their output, no map of theirs exists whole. Neighbouring
tiles read overlapping inputs (halos), which are computed again for each.

A `Stage` is a short program of convolutions, pools, sums, concatenations and pointwise operators
read from a captured run (`techniques.schedule.stages`). `walk` goes back from a tile of the result
to the rows and columns of every map that it needs; padding is real only at the image's border, so
each value is computed from the same numbers as in the whole image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.errors import ArtefactError, InputError

NAMESPACES = ("aten", "paredown")
CONV, BATCH_NORM = "aten::convolution", "aten::native_batch_norm"
MAX_POOL, AVG_POOL = "aten::max_pool2d_with_indices", "aten::avg_pool2d"
PAD, CAT, SLICE = "aten::constant_pad_nd", "aten::cat", "aten::slice"

Span = tuple[int, int]
"""From and to, the latter left out."""


@dataclass(frozen=True)
class Window:
    """How an operator reads one axis: ``size`` entries ``dilation`` apart, every ``stride``."""

    size: int
    stride: int
    before: int
    after: int
    dilation: int = 1
    ceil: bool = False

    @property
    def reach(self) -> int:
        """Entries from the first that is read to the last."""
        return (self.size - 1) * self.dilation + 1

    def length(self, n: int) -> int:
        """Entries of the result on ``n`` of the operand."""
        over = n + self.before + self.after - self.reach
        count = (-(-over // self.stride) if self.ceil else over // self.stride) + 1
        # torch drops a last window that would begin past the operand.
        late = self.ceil and (count - 1) * self.stride >= n + self.before
        return count - late

    def reads(self, span: Span, n: int) -> tuple[Span, Span]:
        """What of ``n`` entries the results of ``span`` need, and the padding on both sides."""
        low = span[0] * self.stride - self.before
        high = (span[1] - 1) * self.stride - self.before + self.reach
        inside = (max(low, 0), min(high, n))
        if inside[0] >= inside[1]:
            raise InputError(
                f"a tile of {span[1] - span[0]} lies in padding alone: use fewer tiles"
            )
        return inside, (inside[0] - low, high - inside[1])


@dataclass(frozen=True)
class Op:
    """One operator of a stage. Arguments ``{"t": i}`` are maps, ``{"w": name}`` weights by name.

    ``tiled`` is False where nothing depends on the image: computed once for all tiles. ``in_place``
    says that the model itself overwrote the operand.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int
    tiled: bool = True
    in_place: bool = False
    windows: tuple[Window, Window] | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        """The maps it reads."""
        return tuple(dict.fromkeys(_maps((self.args, self.kwargs))))


@dataclass(frozen=True)
class Stage:
    """A program from the map ``start`` to the map ``end``."""

    ops: tuple[Op, ...]
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        ops = [[o.name, list(o.args), o.kwargs, o.out, o.tiled, o.in_place] for o in self.ops]
        return {"ops": ops, "start": self.start, "end": self.end}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        """Read back; raises ``ArtefactError`` for operators a stage may not hold."""
        made = tuple(make_op(*o) for o in data["ops"])
        return cls(made, data["start"], data["end"])

    def lengths(self, n: int, axis: int) -> dict[int, int]:
        """Entries of every map along an axis (0 rows, 1 columns) when the first has ``n``."""
        out = {self.start: n}
        for op in self.ops:
            if op.tiled:
                at = {out[t] for t in op.reads if t in out}
                if len(at) != 1:
                    raise InputError(f"{op.name} joins maps of {sorted(at)} entries")
                out[op.out] = op.windows[axis].length(*at) if op.windows else at.pop()
        return out

    def walk(self, span: Span, lengths: Mapping[int, int], axis: int) -> Walk:
        """Back from ``span`` of the result: what of each map is needed, and each padding."""
        need: dict[int, Span] = {self.end: span}
        padding: dict[int, Span] = {}
        for op in reversed(self.ops):
            if not op.tiled or op.out not in need:
                continue
            for t in op.reads:
                if t not in lengths:
                    continue
                read = need[op.out]
                if op.windows:
                    read, padding[op.out] = op.windows[axis].reads(read, lengths[t])
                old = need.get(t, read)
                need[t] = (min(old[0], read[0]), max(old[1], read[1]))
        return Walk(need, padding)


@dataclass(frozen=True)
class Walk:
    """What one tile needs of every map along one axis, and what each window pads there."""

    need: dict[int, Span]
    padding: dict[int, Span]


def make_op(
    name: str,
    args: Sequence[Any],
    kwargs: Any,
    out: int,
    tiled: bool = True,
    in_place: bool = False,
) -> Op:
    """An operator with its windows; raises ``ArtefactError`` where a stage may not hold it."""
    namespace, _, short = name.partition("::")
    if namespace not in NAMESPACES or not short.isidentifier():
        raise ArtefactError(f"a stage computed in patches cannot hold {name!r}")
    windows = _windows(name, args) if tiled else None
    return Op(name, tuple(args), dict(kwargs), out, tiled, in_place, windows)


def _windows(name: str, args: Sequence[Any]) -> tuple[Window, Window] | None:
    def axis(i: int) -> Window:
        def at(k: int, default: int) -> int:
            given = args[k] if len(args) > k else []
            both = given if isinstance(given, (list, tuple)) else [given, given]
            return int(both[i % len(both)]) if both else default

        if name == CONV:
            # The kernel's size is the weight's: recorded behind the operator's own arguments.
            size = args[9][i]
            return Window(size, at(3, 1), at(4, 0), at(4, 0), at(5, 1))
        if name in (MAX_POOL, AVG_POOL):
            size = at(1, 1)
            ceil = bool(args[5]) if name == MAX_POOL and len(args) > 5 else False
            dilation = at(4, 1) if name == MAX_POOL else 1
            return Window(size, at(2, size), at(3, 0), at(3, 0), dilation, ceil)
        sides = [*args[1], 0, 0, 0, 0]
        before, after = sides[2:4] if i == 0 else sides[:2]
        return Window(1, 1, before, after)

    return (axis(0), axis(1)) if name in (CONV, MAX_POOL, AVG_POOL, PAD) else None


def _maps(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [value["t"]] if "t" in value else [t for v in value.values() for t in _maps(v)]
    return [t for v in value for t in _maps(v)] if isinstance(value, (list, tuple)) else []


def cut(n: int, tiles: int) -> list[Span]:
    """``n`` entries in so many spans that differ by one at most; never more spans than entries."""
    tiles = min(tiles, n)
    ends = [round(n * i / tiles) for i in range(tiles + 1)]
    return list(pairwise(ends))


@dataclass
class Schedule:
    """A stage in ``tiles`` by ``tiles`` patches, run with the tensors that ``weight`` finds."""

    stage: Stage
    tiles: int
    _walks: dict[tuple[int, int], tuple[list[Walk], list[Walk]]] = field(default_factory=dict)

    def walks(self, height: int, width: int) -> tuple[list[Walk], list[Walk]]:
        """Every row's and every column's walk for an image of this size; kept."""
        if (height, width) not in self._walks:
            both: list[list[Walk]] = []
            for axis, n in enumerate((height, width)):
                lengths = self.stage.lengths(n, axis)
                spans = cut(lengths[self.stage.end], self.tiles)
                both.append([self.stage.walk(s, lengths, axis) for s in spans])
            self._walks[height, width] = (both[0], both[1])
        return self._walks[height, width]

    def run(self, x: Tensor, weight: Any) -> Tensor:
        """The stage's result on ``x`` ``(batch, channels, height, width)``.

        ``weight(name)`` gives a parameter or buffer.
        """
        rows, columns = self.walks(int(x.shape[2]), int(x.shape[3]))
        once: dict[int, Tensor] = {}
        for op in self.stage.ops:
            if not op.tiled:
                once[op.out] = _call(op, once, weight, None, in_place=False)
        last = {t: i for i, op in enumerate(self.stage.ops) for t in op.reads}
        bands: list[Tensor] = []
        for r in rows:
            parts = [self._tile(x, r, c, once, weight, last) for c in columns]
            bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, 3))
            del parts
        return bands[0] if len(bands) == 1 else torch.cat(bands, 2)

    def _tile(
        self,
        x: Tensor,
        r: Walk,
        c: Walk,
        once: dict[int, Tensor],
        weight: Any,
        last: dict[int, int],
    ) -> Tensor:
        (top, bottom), (left, right) = r.need[self.stage.start], c.need[self.stage.start]
        held = {self.stage.start: x[:, :, top:bottom, left:right]}
        own: set[int] = set()
        exporting = torch.compiler.is_compiling()
        for i, op in enumerate(self.stage.ops):
            if not op.tiled or op.out not in r.need:
                continue
            padding = (r.padding[op.out], c.padding[op.out]) if op.windows else None
            around = _window(op, r, c)
            env = {t: _cropped(held[t], t, r, c, around) for t in op.reads if t in held}
            first = op.reads[0]
            mine = first in own and env[first] is held[first] and last[first] == i
            overwrite = op.in_place and mine and not exporting
            held[op.out] = _call(op, env | once, weight, padding, in_place=overwrite)
            if op.name != SLICE:
                own.add(op.out)
            for t in env:
                if last[t] == i:
                    del held[t]
            del env
        return held[self.stage.end]


def _window(op: Op, r: Walk, c: Walk) -> tuple[Span, Span]:
    """The part of its operands that an operator needs for its own part of the tile."""
    spans: list[Span] = []
    for axis, w in enumerate((r, c)):
        low, high = w.need[op.out]
        if op.windows:
            own, (before, after) = op.windows[axis], w.padding[op.out]
            low = low * own.stride - own.before + before
            high = (w.need[op.out][1] - 1) * own.stride - own.before + own.reach - after
        spans.append((low, high))
    return spans[0], spans[1]


def _cropped(t: Tensor, name: int, r: Walk, c: Walk, to: tuple[Span, Span]) -> Tensor:
    """The part of a held map that one reader needs, where another needs more."""
    for dim, (w, (low, high)) in enumerate(zip((r, c), to, strict=True), start=2):
        first, end = w.need[name]
        if (first, end) != (low, high):
            t = t.narrow(dim, low - first, high - low)
    return t


def _call(
    op: Op,
    env: Mapping[int, Tensor],
    weight: Any,
    padding: tuple[Span, Span] | None,
    *,
    in_place: bool,
) -> Tensor:
    args = [_value(a, env, weight) for a in op.args]
    if padding is not None:
        return _over_windows(op, args, padding)
    if op.name == BATCH_NORM:
        x, gain, shift, mean, var, _, momentum, eps = args[:8]
        return F.batch_norm(x, mean, var, gain, shift, False, momentum, eps)
    namespace, _, short = op.name.partition("::")
    call: Any = getattr(getattr(torch.ops, namespace), short + "_" * in_place)
    return call(*args, **{k: _value(v, env, weight) for k, v in op.kwargs.items()})


def _value(a: Any, env: Mapping[int, Tensor], weight: Any) -> Any:
    # A function of its own: a closure that calls itself would keep the maps until the next
    # collection of garbage.
    if isinstance(a, dict):
        if "t" in a:
            return env[a["t"]]
        return getattr(torch, a["dtype"]) if "dtype" in a else weight(a["w"])
    return [_value(v, env, weight) for v in a] if isinstance(a, list) else a


def _over_windows(op: Op, args: list[Any], padding: tuple[Span, Span]) -> Tensor:
    """A convolution or pool over a tile, padded where the image ends and nowhere else."""
    x: Tensor = args[0]
    (top, bottom), (left, right) = padding
    even = top == bottom and left == right
    fill = {MAX_POOL: float("-inf"), PAD: args[2] if len(args) > 2 else 0}.get(op.name, 0)
    own = [top, left] if even and op.name == CONV else [0, 0]
    if any((top, bottom, left, right)) and not any(own):
        x = F.pad(x, (left, right, top, bottom), value=fill or 0)
    if op.name == PAD:
        return x
    assert op.windows is not None
    rows, columns = op.windows
    stride, dilation = [rows.stride, columns.stride], [rows.dilation, columns.dilation]
    size = [rows.size, columns.size]
    if op.name == CONV:
        return F.conv2d(x, args[1], args[2], stride, own, dilation, args[8])
    if op.name == MAX_POOL:
        return F.max_pool2d(x, size, stride, 0, dilation)
    return F.avg_pool2d(x, size, stride)
