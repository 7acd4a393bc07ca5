"""A small plotting kit: scales, axes and marks as SVG text that follows the page's theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

Text = Callable[[float], str]


@dataclass(frozen=True)
class Scale:
    """Maps values of ``low`` .. ``high`` to ``a`` .. ``b`` pixels, evenly or by logarithm."""

    low: float
    high: float
    a: float
    b: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixels of a value; values outside are held at the edge."""
        low, high = self._t(self.low), self._t(self.high)
        share = (self._t(value) - low) / (high - low) if high > low else 0.5
        return self.a + min(1.0, max(0.0, share)) * (self.b - self.a)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values within the scale, at most about ``wanted``."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        step = nice((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def _t(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def nice(raw: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten at or above ``raw``."""
    if raw <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low) if high > low else 0
    marks: Sequence[int] = (1,) if decades > wanted - 1 else (1, 3) if decades > 1.5 else (1, 2, 5)
    step = max(1, math.ceil(decades / wanted))
    found = [m * 10.0**p for p in range(first, last + 1, step) for m in marks]
    return [v for v in found if low * 0.999 <= v <= high * 1.001]


def span(values: Iterable[float], *, log: bool = False, pad: float = 0.08) -> tuple[float, float]:
    """A domain around the values, with some air; never empty."""
    kept = [v for v in values if not log or v > 0]
    if not kept:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(kept), max(kept)
    if log:
        room = max((high / low) ** pad, 1.25)
        return low / room, high * room
    room = (high - low) * pad or abs(high) * 0.1 or 1.0
    return low - room, high + room


@dataclass
class Plot:
    """One figure: title and description for those who cannot see it, axes, and marks in order."""

    name: str
    title: str
    desc: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str = ""
    y_label: str = ""
    x_text: Text = str
    y_text: Text = str
    log_x: bool = False
    log_y: bool = False
    width: int = 480
    height: int = 320
    x_ticks: bool = True
    marks: list[str] = field(default_factory=list)

    left, right, top, bottom = 66, 24, 14, 46

    @property
    def sx(self) -> Scale:
        """The horizontal scale, in pixels of the view box."""
        return Scale(*self.x, self.left, self.width - self.right, self.log_x)

    @property
    def sy(self) -> Scale:
        """The vertical scale, in pixels of the view box, upwards."""
        return Scale(*self.y, self.height - self.bottom, self.top, self.log_y)

    def rect(self, x0: float, x1: float, y0: float, y1: float, cls: str, tip: str = "") -> None:
        """A bar between data coordinates."""
        left, right = sorted((self.sx(x0), self.sx(x1)))
        top, bottom = sorted((self.sy(y0), self.sy(y1)))
        self.marks.append(
            f'<rect class="{cls}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{max(right - left, 0.6):.1f}" height="{max(bottom - top, 0.6):.1f}">'
            f"{_tip(tip)}</rect>"
        )

    def dot(
        self, x: float, y: float, cls: str, tip: str = "", r: float = 5, shape: str = "o"
    ) -> None:
        """A point: ``o`` disc, ``d`` diamond, ``s`` square, so colour is never the only sign."""
        px, py = self.sx(x), self.sy(y)
        if shape == "o":
            body = f'<circle class="{cls}" cx="{px:.1f}" cy="{py:.1f}" r="{r}">'
            self.marks.append(f"{body}{_tip(tip)}</circle>")
            return
        turn = f' transform="rotate(45 {px:.1f} {py:.1f})"' if shape == "d" else ""
        self.marks.append(
            f'<rect class="{cls}" x="{px - r * 0.9:.1f}" y="{py - r * 0.9:.1f}" '
            f'width="{r * 1.8:.1f}" height="{r * 1.8:.1f}"{turn}>{_tip(tip)}</rect>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], cls: str, *, step: bool = False, tip: str = ""
    ) -> None:
        """A line through data points; ``step`` keeps each value until the next point."""
        if not points:
            return
        at = [(self.sx(x), self.sy(y)) for x, y in points]
        path = [f"M{at[0][0]:.1f},{at[0][1]:.1f}"]
        for px, py in at[1:]:
            path.append(f"H{px:.1f}V{py:.1f}" if step else f"L{px:.1f},{py:.1f}")
        self.marks.append(f'<path class="{cls}" d="{"".join(path)}">{_tip(tip)}</path>')

    def area(self, points: Sequence[tuple[float, float]], cls: str) -> None:
        """The area under a stepped line, down to the axis."""
        if not points:
            return
        base = self.height - self.bottom
        first, last = self.sx(points[0][0]), self.sx(points[-1][0])
        path = [f"M{first:.1f},{base}", f"V{self.sy(points[0][1]):.1f}"]
        path += [f"H{self.sx(x):.1f}V{self.sy(y):.1f}" for x, y in points[1:]]
        self.marks.append(f'<path class="{cls}" d="{"".join(path)}H{last:.1f}V{base}Z"/>')

    def text(
        self,
        x: float,
        y: float,
        said: str,
        *,
        anchor: str = "start",
        dx: float = 0,
        dy: float = 0,
        cls: str = "note",
    ) -> None:
        """A label at a data point, moved by pixels; turned inwards where it would not fit."""
        px, py = self.sx(x) + dx, self.sy(y) + dy
        wide = len(said) * 6.6
        if anchor == "start" and px + wide > self.width - 4:
            anchor, px = "end", px - 2 * dx
        if anchor == "end" and px - wide < 4:
            anchor, px = "start", max(4.0, min(px + 2 * abs(dx), self.width - 4 - wide))
        self.marks.append(
            f'<text class="{cls}" x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">'
            f"{escape(said)}</text>"
        )

    def svg(self) -> str:
        """The figure as SVG text."""
        base, end = self.height - self.bottom, self.width - self.right
        parts: list[str] = []
        for v in self.sy.ticks():
            py = self.sy(v)
            parts.append(f'<path class="grid" d="M{self.left},{py:.1f}H{end}"/>')
            parts.append(
                f'<text class="tick" x="{self.left - 7}" y="{py + 4:.1f}" text-anchor="end">'
                f"{escape(self.y_text(v))}</text>"
            )
        for v in self.sx.ticks() if self.x_ticks else []:
            px = self.sx(v)
            parts.append(f'<path class="grid" d="M{px:.1f},{self.top}V{base}"/>')
            parts.append(
                f'<text class="tick" x="{px:.1f}" y="{base + 17}" text-anchor="middle">'
                f"{escape(self.x_text(v))}</text>"
            )
        parts.append(f'<path class="axis" d="M{self.left},{base}H{end}"/>')
        middle = (self.left + end) / 2
        parts.append(
            f'<text class="label" x="{middle:.0f}" y="{self.height - 8}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
        )
        up = (self.top + base) / 2
        parts.append(
            f'<text class="label" transform="translate(14 {up:.0f}) rotate(-90)" '
            f'text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        ids = f"{self.name}-t {self.name}-d"
        return (
            f'<svg id="{self.name}" role="img" aria-labelledby="{ids}" '
            f'viewBox="0 0 {self.width} {self.height}" xmlns="http://www.w3.org/2000/svg">'
            f'<title id="{self.name}-t">{escape(self.title)}</title>'
            f'<desc id="{self.name}-d">{escape(self.desc)}</desc>'
            f'{"".join(parts)}<g class="data">{"".join(self.marks)}</g></svg>'
        )


def _tip(said: str) -> str:
    return f"<title>{escape(said)}</title>" if said else ""
