"""One job in its own process, with a memory and a time limit: what crashes there costs nothing
here.

A fork server (a fresh interpreter with torch imported and no threads started) forks a child per
job. Children ignore Ctrl-C (the parent decides) and die with the parent, `kill -9` included.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from paredown import errors
from paredown.errors import CandidateFailed, InputError, ParedownError

PRELOAD = ("paredown.measure._server", "torch", "paredown.measure.compare", "paredown.runtime")
POLL_S = 0.05
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds and resident bytes of the job's whole process group."""

    seconds: float
    memory_bytes: int

    @staticmethod
    def default(seconds: float = 600.0) -> Limits:
        """The given seconds and 60 % of the memory that is free now."""
        return Limits(seconds, int(0.6 * free_memory()))


def free_memory() -> int:
    """Bytes the kernel says are available (``MemAvailable``)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise errors.MeasurementError("/proc/meminfo names no MemAvailable")


@dataclass(frozen=True)
class Failure:
    """How a job ended when it did not return: its error's class name, one line, and the
    traceback.
    """

    kind: str
    message: str
    trace: str


class Jobs:
    """Runs jobs one at a time in children of one fork server."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        """``preload`` names modules that every job needs and that start no threads when
        imported.
        """
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOAD, *preload])

    def prepare(self) -> None:
        """Start the fork server, which imports on its own while the caller goes on."""
        self._ready()

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        limits: Limits | None = None,
        on_message: Callable[[Any], None] | None = None,
    ) -> Any:
        """``function(*args)`` in a fresh child; its messages (:func:`tell`) go to ``on_message``.

        Raises the child's own ``ParedownError`` again, and ``CandidateFailed`` for anything else: a
        crash, a hang, memory beyond the limit, an exception of the user's code.
        """
        running = self._start(function, args, limits or Limits.default(), on_message)
        try:
            while not running.ended(POLL_S):
                if running.waits:
                    running.go()
            return running.result()
        finally:
            running.kill()

    def run_in_turns(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        limits: Limits | None = None,
        on_message: Callable[[Any], None] | None = None,
    ) -> list[Any]:
        """``function(*args)`` of every call at the same time, until each comes to `await_turn`.

        From there one at a time. What `run` would raise takes the place of a result.
        """
        running: list[_Running] = []
        try:
            for args in calls:
                running.append(self._start(function, args, limits or Limits.default(), on_message))
            left = list(running)
            while left:
                left = [r for r in left if not r.ended(POLL_S / len(left))]
                if left and all(r.waits for r in left):
                    left[0].go()
            return [r.outcome for r in running]
        finally:
            for one in running:
                one.kill()

    def _start(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        limits: Limits,
        on_message: Callable[[Any], None] | None,
    ) -> _Running:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_child, args=(theirs, function, args))
        try:
            self._ready()
            process.start()
        except (AttributeError, TypeError, ImportError) as e:
            raise InputError(_unimportable(e)) from None
        except Exception as e:
            if "pickle" in f"{type(e).__name__} {e}".lower():
                raise InputError(_unimportable(e)) from None
            raise
        theirs.close()
        return _Running(process, ours, limits, on_message)

    def _ready(self) -> None:
        start_server()


class _Running:
    """A job that was started; ``waits`` while it stands at `await_turn`."""

    def __init__(
        self,
        process: BaseProcess,
        pipe: Connection,
        limits: Limits,
        on_message: Callable[[Any], None] | None,
    ) -> None:
        self.process, self.pipe, self.limits = process, pipe, limits
        self.on_message, self.start = on_message, time.monotonic()
        self.waits = False
        self.outcome: Any = None

    def ended(self, seconds: float) -> bool:
        """Look for messages for that long; whether ``outcome`` is there, a value or an error."""
        try:
            if self.pipe.poll(seconds):
                return self._received(*self.pipe.recv())
        except EOFError:
            self.process.join(5)
            self.outcome = CandidateFailed(_death(self.process.exitcode))
            return True
        why = self._beyond()
        if why is not None:
            self.outcome = CandidateFailed(why)
        return why is not None

    def _received(self, tag: str, body: Any) -> bool:
        if tag == "tell":
            if self.on_message is not None:
                self.on_message(body)
            return False
        if tag == "turn":
            self.waits = True
            return False
        self.outcome = _again(body) if tag == "failed" else body
        return True

    def _beyond(self) -> str | None:
        if time.monotonic() - self.start > self.limits.seconds:
            return f"hung: no result within its limit of {self.limits.seconds:.0f} s"
        used = group_bytes(self.process.pid or 0)
        if used <= self.limits.memory_bytes:
            return None
        return (
            f"out of memory: held {used / GIB:.2f} GiB, its limit is "
            f"{self.limits.memory_bytes / GIB:.2f} GiB"
        )

    def go(self) -> None:
        """Let it pass `await_turn`."""
        self.waits = False
        with contextlib.suppress(BrokenPipeError):  # it died: `ended` finds out
            self.pipe.send("go")

    def result(self) -> Any:
        """What came out; raises what it is where that is an error."""
        if isinstance(self.outcome, ParedownError):
            raise self.outcome
        return self.outcome

    def kill(self) -> None:
        """End its process group, if it still runs."""
        _kill(self.process)
        self.pipe.close()


def start_server() -> None:
    """Start the fork server unless it runs, from a thread that lives as long as this process:
    the server dies with the thread that started it (`_server`).
    """
    with _single_threaded_blas():
        _starter(os.getpid()).submit(forkserver.ensure_running).result()


@cache
def _starter(_pid: int) -> ThreadPoolExecutor:
    """One thread per process, a forked copy has none of its parent's; it ends at exit."""
    return ThreadPoolExecutor(1, "paredown-fork-server")


_channel: Connection | None = None


def tell(message: Any) -> None:
    """From inside a job: send a message to the parent (nothing happens outside a job)."""
    if _channel is not None:
        _channel.send(("tell", message))


def await_turn() -> None:
    """From inside a job: wait until the others beside it (`Jobs.run_in_turns`) wait or ended."""
    if _channel is not None:
        _channel.send(("turn", None))
        _channel.recv()


def _child(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    global _channel
    _channel = pipe
    os.setpgid(0, 0)
    # Locks made by user code or libraries (tqdm's is one) are then anonymous. Under this process's
    # own start method they have names in a tracker shared with the search, which warns of "leaked
    # semaphores" at exit since no child ends by way of clean-up. Forked workers also stay in this
    # process group, where the limits see them.
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    # The kernel's out-of-memory killer should take the candidate, never the search.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # What a runtime or a user's model prints must not mix with a document on stdout.
    os.dup2(2, 1)
    try:
        body = ("done", function(*args))
    except BaseException as e:
        body = ("failed", Failure(type(e).__name__, one_line(e), traceback.format_exc()))
    pipe.send(body)
    pipe.close()
    # Runtimes that crash while being torn down must not turn a finished job into a failed one.
    sys.stderr.flush()
    os._exit(0)


def one_line(e: BaseException) -> str:
    """An exception in one line: its last non-empty line of text, or its class name."""
    if isinstance(e, ParedownError):
        return str(e)
    text = " ".join(str(e).split()) or type(e).__name__
    where = ""
    for frame in reversed(traceback.extract_tb(e.__traceback__)):
        if "site-packages" not in frame.filename and "/paredown/" not in frame.filename:
            where = f" at {Path(frame.filename).name}:{frame.lineno}: {frame.line}"
            break
    return f"{type(e).__name__}: {text[:400]}{where}"


def _again(failure: Failure) -> ParedownError:
    cls = getattr(errors, failure.kind, None)
    if isinstance(cls, type) and issubclass(cls, ParedownError):
        error = ParedownError.__new__(cls)
        Exception.__init__(error, failure.message)
    else:
        error = CandidateFailed(failure.message)
    error.add_note(failure.trace)
    return error


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"crashed: killed by {signal.Signals(-code).name}"
    return f"died without a result (exit code {code})"


def _kill(process: BaseProcess) -> None:
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join(5)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@contextlib.contextmanager
def _single_threaded_blas() -> Any:
    """No BLAS threads may exist in the server when it forks."""
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = before


def group_bytes(pid: int) -> int:
    """Resident bytes of a process and everything in its process group."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            member = int(entry.name) == pid
            if not member:
                member = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[2]) == pid
            if member:
                total += int((entry / "statm").read_text().split()[1]) * page
    return total


def _unimportable(e: BaseException) -> str:
    return (
        f"the model or its evaluate cannot be sent to a child process ({one_line(e)}): "
        "put their definitions into a file (say mymodel.py) and `from mymodel import ...` them, "
        "then guard the call with `if __name__ == '__main__':`"
    )
