"""Progress of long work: what is being tried, the best so far, the time left; on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from paredown.report import units

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """Told about long work by `down`, `calibrate` and recovery; every call is cheap.

    This one says nothing: the default in Python and in tests. Others fill in the hooks.
    """

    def __init__(self) -> None:
        self.what, self.best = "", ""
        self.total: float | None = None
        self.began = time.monotonic()

    def start(self, what: str, total: float | None = None) -> None:
        """Begin work of ``total`` units (seconds, candidates), None where that is unknown."""
        self.what, self.best, self.total, self.began = what, "", total, time.monotonic()
        self._begin()

    def update(
        self,
        what: str | None = None,
        *,
        best: str | None = None,
        done: float | None = None,
        total: float | None = None,
        eta: float | None = None,
    ) -> None:
        """Say what is going on, the best so far, units done of ``total``, and seconds left.

        How far the work is goes by ``done``, else by the clock.
        """
        self.what = what if what is not None else self.what
        self.best = best if best is not None else self.best
        self.total = total if total is not None else self.total
        passed = time.monotonic() - self.began
        if eta is None and done is None and self.total is not None:
            eta = max(0.0, self.total - passed)
        self._show(passed if done is None else done, eta)

    def note(self, text: str) -> None:
        """Say something once that should stay on the screen."""

    def close(self) -> None:
        """The work is over; may be called twice."""

    def _begin(self) -> None:
        """Work begins."""

    def _show(self, at: float, left: float | None) -> None:
        """Where it stands: units done, and seconds left where they are known."""


class Lines(Progress):
    """Plain lines for logs and pipes: at most one every ``every`` seconds, notes always."""

    def __init__(self, every: float = 10.0) -> None:
        super().__init__()
        self.every = every
        self._said = -every

    def note(self, text: str) -> None:
        """Say it on a line of its own."""
        print(text, file=sys.stderr, flush=True)

    def _begin(self) -> None:
        self._said = time.monotonic()
        self.note(self.what)

    def _show(self, at: float, left: float | None) -> None:
        now = time.monotonic()
        if now - self._said < self.every:
            return
        self._said = now
        share = f"{min(1.0, at / self.total):.0%} " if self.total else ""
        leads = f", best {self.best}" if self.best else ""
        remains = f", {units.duration(left)} left" if left is not None else ""
        self.note(f"{share}{self.what}{leads}{remains}")


class Bar(Progress):
    """A live bar on a terminal's standard error."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Live

        super().__init__()
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

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._live.stop()

    def _begin(self) -> None:
        self._live.reset(self._task, description=self.what, total=self.total, left="", best="")
        self._live.start()

    def _show(self, at: float, left: float | None) -> None:
        self._live.update(
            self._task,
            description=self.what,
            completed=at,
            total=self.total,
            best=f"best {self.best}" if self.best else "",
            left=f"{units.duration(left)} left" if left is not None else "",
        )


def on_stderr() -> Progress:
    """A live bar where standard error is a terminal, else plain lines."""
    return Bar() if sys.stderr.isatty() else Lines()


def quiet() -> Progress:
    """One that says nothing."""
    return Progress()
