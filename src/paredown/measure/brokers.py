"""Between two stages of a served pipeline: a queue, or a broker process with memory or a log.

After Beyond Inference (arXiv:2403.12981), whose brokers are Redis (memory) and Kafka (a log on
disk). Here one small process stands for both, so that they differ in where messages lie alone:
frames over Unix sockets, acknowledged once stored; a message is handed over once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paredown.errors import MeasurementError

Kind = Literal["queue", "memory", "log", "synced log"]
KINDS: tuple[Kind, ...] = ("queue", "memory", "log", "synced log")
SIZE = struct.Struct("<I")
WAIT, TRY = b"w", b"t"


@dataclass(frozen=True)
class Message:
    """An array on its way, what it belongs to, and when it was sent (monotonic seconds)."""

    request: int
    array: NDArray[Any]
    sent: float

    def to_bytes(self) -> bytes:
        """A JSON head with shape and dtype, then the numbers."""
        head = json.dumps(
            [self.request, self.sent, self.array.dtype.str, list(self.array.shape)]
        ).encode()
        return SIZE.pack(len(head)) + head + np.ascontiguousarray(self.array).tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> Message:
        """The message of ``to_bytes``; its array shares the memory of ``data``."""
        (size,) = SIZE.unpack_from(data)
        start = SIZE.size + size
        request, sent, dtype, shape = json.loads(data[SIZE.size : start])
        array = np.frombuffer(data, dtype=dtype, offset=start).reshape(shape)
        return Message(request, array, sent)


class Queue:
    """Messages stay objects of this process: nothing is copied."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        """Hand over."""
        self._queue.put(message)

    def get(self, *, wait: bool = True) -> Message | None:
        """The oldest message; without ``wait`` None where there is none."""
        try:
            return self._queue.get(block=wait)
        except queue.Empty:
            return None

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Broker:
    """A process of its own that keeps messages in memory, or appends them to a file.

    ``synced log`` waits until a message is on the disk (fsync); ``log`` leaves that to the kernel,
    as Kafka does by default.
    """

    def __init__(self, kind: Literal["memory", "log", "synced log"]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="paredown-broker-")
        self._ours = [socket.socketpair(), socket.socketpair()]
        theirs = [pair[1].fileno() for pair in self._ours]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, theirs), kind,
             str(Path(self._folder.name) / "log")],
            pass_fds=theirs,
        )  # fmt: skip
        for pair in self._ours:
            pair[1].close()
        self._in, self._out = (pair[0] for pair in self._ours)
        self._putting, self._getting = threading.Lock(), threading.Lock()

    def put(self, message: Message) -> None:
        """Hand over; returns once the broker has stored it."""
        data = message.to_bytes()
        with self._putting:
            _send(self._in, data)
            if self._in.recv(1) != b"k":
                raise MeasurementError("the broker ended while it stored a message")

    def get(self, *, wait: bool = True) -> Message | None:
        """The oldest message; without ``wait`` None where there is none."""
        with self._getting:
            self._out.sendall(WAIT if wait else TRY)
            data = _receive(self._out)
        if data is None:
            raise MeasurementError("the broker ended while a message was awaited")
        return Message.from_bytes(data) if data else None

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._in.close()
        self._out.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def broker(kind: Kind) -> Queue | Broker:
    """A way between two stages, to be used in a ``with``."""
    return Queue() if kind == "queue" else Broker(kind)


def _send(to: socket.socket, data: bytes) -> None:
    to.sendall(SIZE.pack(len(data)) + data)


def _receive(of: socket.socket) -> bytes | None:
    """One frame; None when the other side is gone."""
    head = _exactly(of, SIZE.size)
    return None if head is None else _exactly(of, SIZE.unpack(head)[0])


def _exactly(of: socket.socket, count: int) -> bytes | None:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = of.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(data)


def _serve(producer: socket.socket, consumer: socket.socket, kind: str, path: Path) -> None:
    """The broker process: ends when its consumer is gone."""
    stored: queue.SimpleQueue[bytes | tuple[int, int]] = queue.SimpleQueue()
    log = None if kind == "memory" else os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def store() -> None:
        end = 0
        try:
            while (data := _receive(producer)) is not None:
                if log is None:
                    stored.put(data)
                else:
                    _append(log, data, sync=kind == "synced log")
                    stored.put((end, len(data)))
                    end += len(data)
                producer.sendall(b"k")
        except ConnectionError:
            return  # a parent that is gone has broken the pipe: there is nobody to tell
        finally:
            # A full disk ends this thread; the parent must see an end, not wait.
            producer.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=store, daemon=True).start()
    with contextlib.suppress(ConnectionError):
        while how := consumer.recv(1):
            try:
                found = stored.get(timeout=None if how == WAIT else 0.0)
            except queue.Empty:
                _send(consumer, b"")
                continue
            if isinstance(found, tuple):
                assert log is not None
                found = os.pread(log, found[1], found[0])
            _send(consumer, found)


def _append(log: int, data: bytes, *, sync: bool) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(log, view) :]
    if sync:
        os.fsync(log)


if __name__ == "__main__":
    _serve(
        socket.socket(fileno=int(sys.argv[1])),
        socket.socket(fileno=int(sys.argv[2])),
        sys.argv[3],
        Path(sys.argv[4]),
    )
