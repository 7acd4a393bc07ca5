"""Progress of long work: what is being tried, the best so far, the time left; on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from paredown.report import units

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Told about long work by `down`, `calibrate` and recovery; every call is cheap."""

    def start(self, what: str, total: float | None = None) -> None:
        """Begin work of ``total`` units (seconds, candidates), None where that is unknown."""
        ...

    def update(
        self,
        what: str | None = None,
        *,
        best: str | None = None,
        done: float | None = None,
        total: float | None = None,
        eta: float | None = None,
    ) -> None:
        """Say what is going on, the best so far, units done of ``total``, and seconds left."""
        ...

    def note(self, text: str) -> None:
        """Say something once that should stay on the screen."""
        ...

    def close(self) -> None:
        """The work is over; may be called twice."""
        ...


class Quiet:
    """Says nothing: the default in Python and in tests."""

    def start(self, what: str, total: float | None = None) -> None:
        """Nothing."""

    def update(
        self,
        what: str | None = None,
        *,
        best: str | None = None,
        done: float | None = None,
        total: float | None = None,
        eta: float | None = None,
    ) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Told:
    """What was said last, and how far the work is: by what was done, else by the clock."""

    def __init__(self) -> None:
        self.what, self.best = "", ""
        self.total: float | None = None
        self.began = time.monotonic()

    def begin(self, what: str, total: float | None) -> None:
        self.what, self.best, self.total, self.began = what, "", total, time.monotonic()

    def hear(self, what: str | None, best: str | None, total: float | None) -> None:
        self.what = what if what is not None else self.what
        self.best = best if best is not None else self.best
        self.total = total if total is not None else self.total

    def place(self, done: float | None, eta: float | None) -> tuple[float, float | None]:
        """Units done, and seconds left where they are known or the total is in seconds."""
        passed = time.monotonic() - self.began
        at = passed if done is None else done
        if eta is None and done is None and self.total is not None:
            eta = max(0.0, self.total - passed)
        return at, eta


class Lines:
    """Plain lines for logs and pipes: at most one every ``every`` seconds, notes always."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self._told = _Told()
        self._said = -every

    def start(self, what: str, total: float | None = None) -> None:
        """Say that work begins."""
        self._told.begin(what, total)
        self._said = time.monotonic()
        print(what, file=sys.stderr, flush=True)

    def update(
        self,
        what: str | None = None,
        *,
        best: str | None = None,
        done: float | None = None,
        total: float | None = None,
        eta: float | None = None,
    ) -> None:
        """Say where it stands, unless that was said just now."""
        told = self._told
        told.hear(what, best, total)
        now = time.monotonic()
        if now - self._said < self.every:
            return
        self._said = now
        at, left = told.place(done, eta)
        share = f"{min(1.0, at / told.total):.0%} " if told.total else ""
        leads = f", best {told.best}" if told.best else ""
        remains = f", {units.duration(left)} left" if left is not None else ""
        print(f"{share}{told.what}{leads}{remains}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Say it on a line of its own."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class Bar:
    """A live bar on a terminal's standard error."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Live

        self._told = _Told()
        self._console = console or Console(stderr=True)
        self._live = Live(
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[best]}", markup=False, style="green"),
            console=self._console,
            transient=True,
        )
        self._task = self._live.add_task("", total=None, left="", best="")

    def start(self, what: str, total: float | None = None) -> None:
        """Show the bar, or start it anew for the next piece of work."""
        self._told.begin(what, total)
        self._live.reset(self._task, description=what, total=total, left="", best="")
        self._live.start()

    def update(
        self,
        what: str | None = None,
        *,
        best: str | None = None,
        done: float | None = None,
        total: float | None = None,
        eta: float | None = None,
    ) -> None:
        """Move the bar."""
        told = self._told
        told.hear(what, best, total)
        at, left = told.place(done, eta)
        self._live.update(
            self._task,
            description=told.what,
            completed=at,
            total=told.total,
            best=f"best {told.best}" if told.best else "",
            left=f"{units.duration(left)} left" if left is not None else "",
        )

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._live.stop()


def on_stderr() -> Progress:
    """A live bar where standard error is a terminal, else plain lines."""
    return Bar() if sys.stderr.isatty() else Lines()


def quiet() -> Progress:
    """One that says nothing."""
    return Quiet()
