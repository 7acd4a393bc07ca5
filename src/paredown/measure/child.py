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
        limits = limits or Limits.default()
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
        try:
            return self._wait(process, ours, limits, on_message)
        finally:
            _kill(process)
            ours.close()

    def _ready(self) -> None:
        start_server()

    def _wait(
        self,
        process: BaseProcess,
        pipe: Connection,
        limits: Limits,
        on_message: Callable[[Any], None] | None,
    ) -> Any:
        start = time.monotonic()
        while True:
            if pipe.poll(POLL_S):
                try:
                    tag, body = pipe.recv()
                except EOFError:
                    process.join(5)
                    raise CandidateFailed(_death(process.exitcode)) from None
                if tag == "tell":
                    if on_message is not None:
                        on_message(body)
                    continue
                if tag == "failed":
                    raise _again(body)
                return body
            if time.monotonic() - start > limits.seconds:
                raise CandidateFailed(f"hung: no result within its limit of {limits.seconds:.0f} s")
            used = group_bytes(process.pid or 0)
            if used > limits.memory_bytes:
                raise CandidateFailed(
                    f"out of memory: held {used / GIB:.2f} GiB, its limit is "
                    f"{limits.memory_bytes / GIB:.2f} GiB"
                )


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
