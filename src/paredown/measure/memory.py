"""Peak memory of an executable (CONTRACTS): weights as held, plus what one warm run takes.

Torch's CPU allocator reports every block, so eager and inductor are exact. Our own engine knows its
arena and packed weights, and allocates its results by torch. Other runtimes tell
nobody: they are loaded in a child process under a malloc interposer (`kernels/cpp/mallocs.cpp`),
twice, so that what their libraries keep after a first load is not charged to the model.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from paredown import kernels
from paredown.errors import CandidateFailed, MeasurementError
from paredown.figure import Figure, measured, unavailable
from paredown.measure.child import Jobs, Limits
from paredown.runtime.backend import Executable

Call = tuple[Executable, tuple[Any, ...], dict[str, Any]]
Load = Callable[..., Call]
"""Builds an executable from disk and the inputs to run it on; importable, so that a child can."""

TORCH = frozenset({"eager", "inductor", "native"})
"""Backends that allocate through torch during a run, and tell what they hold besides."""

WARM_RUNS = 2


def measure(load: Load, *args: Any, backend: str, limits: Limits | None = None) -> Figure:
    """Peak bytes of ``load(*args)``'s executable in one warm run, in a child of its own.

    ``unavailable`` with the reason where no interposer was built; raises ``CandidateFailed`` when
    the executable itself fails.
    """
    if backend in TORCH:
        return measured(Jobs().run(_torch_total, load, args, limits=limits), "B", n=1)
    if kernels.mallocs_library() is None:
        why = kernels.why_missing() or "the malloc interposer was not built: it needs glibc"
        return unavailable("B", f"memory of {backend} cannot be counted: {why}")
    return measured(CountedJobs().run(_counted_total, load, args, limits=limits), "B", n=1)


def _torch_total(load: Load, args: tuple[Any, ...]) -> int:
    return torch_total(*load(*args))


def torch_total(executable: Executable, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Bytes of the weights and arena an executable of :data:`TORCH` holds, and of one warm run."""
    weights = executable.weight_bytes()
    if weights is None:
        raise CandidateFailed(f"{executable.backend} does not tell the bytes of its weights")
    run = torch_peak(lambda: executable(*inputs, **kwargs))
    return weights + executable.arena_bytes() + run


def torch_peak(run: Callable[[], Any]) -> int:
    """High-water mark in bytes of torch's CPU allocations in one warm run, above what was there.

    Exact: from the allocator's own events. Runs twice: once to warm up, once observed.
    """
    from torch.profiler import ProfilerActivity, profile

    # The profiler's own library announces each start on stderr unless told otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    for _ in range(WARM_RUNS):
        run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as p:
        kept = run()
    del kept
    results = p.profiler.kineto_results if p.profiler is not None else None
    if results is None:
        raise MeasurementError("torch's profiler returned no events")
    events: list[Any] = results.events()
    changes = sorted(
        (e.start_ns(), e.nbytes())
        for e in events
        if e.name() == "[memory]" and str(e.device_type()) == "DeviceType.CPU"
    )
    now = highest = 0
    for _, nbytes in changes:
        now += nbytes
        highest = max(highest, now)
    return highest


class Mallocs:
    """The interposer's counters in a process that was started with it."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(None)
            self._live, self._peak = library.paredown_live_bytes, library.paredown_peak_bytes
            self._reset, self._forget = library.paredown_reset_peak, library.paredown_forget_files
            self._file = library.paredown_file_mapping
        except AttributeError:
            raise MeasurementError(
                "this process was started without the malloc interposer: use memory.CountedJobs"
            ) from None
        for function in (self._live, self._peak):
            function.restype = ctypes.c_int64
        for function in (self._reset, self._forget):
            function.restype = None
        self._file.argtypes = [ctypes.c_int64] + 2 * [ctypes.POINTER(ctypes.c_uint64)]

    def live(self) -> int:
        """Bytes allocated now; mapped files stand apart, see :meth:`file_bytes`."""
        return int(self._live())

    def peak(self) -> int:
        """Most bytes since the last :meth:`reset`."""
        return int(self._peak())

    def reset(self) -> None:
        """Start the high-water mark again from what is live now."""
        self._reset()

    def forget_files(self) -> None:
        """Let go of the pages of read-only mapped files: who needs them reads them again."""
        self._forget()

    def file_bytes(self) -> int:
        """Bytes of mapped files that were touched since :meth:`forget_files`.

        A runtime may map a file of weights and run from its own repacked copy: what no run touches
        is not held.
        """
        page = os.sysconf("SC_PAGE_SIZE")
        touched = 0
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for start, length in self._files():
                pagemap.seek(start // page * 8)
                entries = memoryview(pagemap.read(length // page * 8)).cast("Q")
                touched += sum(entry >> 63 for entry in entries)
        return touched * page

    def _files(self) -> Generator[tuple[int, int]]:
        start, length = ctypes.c_uint64(), ctypes.c_uint64()
        index = 0
        while self._file(index, ctypes.byref(start), ctypes.byref(length)) == 0:
            yield start.value, length.value
            index += 1


class CountedJobs(Jobs):
    """Jobs in fresh processes under the malloc interposer: for counting, not for timing."""

    def __init__(self) -> None:
        library = kernels.mallocs_library()
        if library is None:
            raise MeasurementError(
                kernels.why_missing() or "the malloc interposer was not built: it needs glibc"
            )
        self._library = str(library)
        # Not the fork server: it may run already, without the interposer.
        self._context = multiprocessing.get_context("spawn")  # type: ignore[assignment]

    def _ready(self) -> None:
        """Each job's process is spawned by itself: there is no server to start."""

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        limits: Limits | None = None,
        on_message: Callable[[Any], None] | None = None,
    ) -> Any:
        """As :meth:`Jobs.run`; inside, :class:`Mallocs` reads the counters."""
        with _preloading(self._library):
            return super().run(function, *args, limits=limits, on_message=on_message)


@contextmanager
def _preloading(library: str) -> Generator[None]:
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = f"{library}:{before}" if before else library
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before


def _counted_total(load: Load, args: tuple[Any, ...]) -> int:
    mallocs = Mallocs()
    executable, inputs, kwargs = load(*args)
    executable(*inputs, **kwargs)
    del executable
    gc.collect()
    before = mallocs.live()
    executable, inputs, kwargs = load(*args)
    for _ in range(WARM_RUNS):
        executable(*inputs, **kwargs)
    gc.collect()
    mallocs.forget_files()
    mallocs.reset()
    executable(*inputs, **kwargs)
    return mallocs.peak() - before + mallocs.file_bytes()
