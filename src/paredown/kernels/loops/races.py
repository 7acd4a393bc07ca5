"""A buffer that notices when two threads touch one element with no barrier in between."""

from __future__ import annotations

from typing import Any

import numpy as np

from paredown.errors import InputError

NOBODY, MANY = -1, -2


class EmulationError(InputError):
    """A kernel does what leaves its result undefined on a device."""


class Watched:
    """An array that lanes read and write. ``start`` is where each lane's part begins."""

    def __init__(
        self, name: str, data: Any, watch: bool, *, size: int | None = None, start: Any = 0
    ) -> None:
        self.name, self.data, self.start = name, data, start
        self.size = len(data) if size is None else size
        self.floating = data.dtype == np.float32
        # Of blocks since the kernel began, where they share it; of threads since the last barrier.
        self.blocks = _Log(len(data)) if watch and size is None else None
        self.threads = _Log(len(data)) if watch else None

    def read(self, at: Any, mask: Any, lane: Any, block: Any) -> Any:
        """The lanes' elements; raises ``EmulationError`` for one that another has written."""
        if self.blocks is not None:
            self._refuse(self.blocks.read(at[mask], block[mask]), "a block reads what another")
        if self.threads is not None:
            self._refuse(self.threads.read(at[mask], lane[mask]), "a thread reads what another")
        return self.data[at]

    def write(self, at: Any, values: Any, mask: Any, lane: Any, block: Any) -> None:
        """Write the active lanes' values; raises ``EmulationError`` as ``read`` does."""
        if self.blocks is not None:
            self._refuse(self.blocks.write(at[mask], block[mask]), "a block writes what another")
        if self.threads is not None:
            self._refuse(self.threads.write(at[mask], lane[mask]), "a thread writes what another")
        self.data[at[mask]] = values[mask]

    def barrier(self, mask: Any) -> None:
        """Forget what the threads that reached it did."""
        if self.threads is not None:
            self.threads.forget(mask)

    def begin(self) -> None:
        """Other blocks than before run from here on: their lanes are other threads."""
        if self.threads is not None:
            self.threads.clear()

    def _refuse(self, at: int | None, what: str) -> None:
        if at is not None:
            raise EmulationError(
                f"{what} touches, at {self.name}[{at % self.size}], no barrier in between"
            )


class _Log:
    """Who wrote and who read each element."""

    def __init__(self, size: int) -> None:
        self.writer = np.full(size, NOBODY, np.int64)
        self.reader = np.full(size, NOBODY, np.int64)

    def read(self, at: Any, who: Any) -> int | None:
        """Note readers; the first element that another has written."""
        writer = self.writer[at]
        bad = (writer != NOBODY) & (writer != who)
        old = self.reader[at]
        self.reader[at] = who
        several = (self.reader[at] != who) | ((old != NOBODY) & (old != who))
        self.reader[at[several]] = MANY
        return int(at[bad][0]) if bad.any() else None

    def write(self, at: Any, who: Any) -> int | None:
        """Note writers; the first element that another has read or written."""
        writer, reader = self.writer[at], self.reader[at]
        bad = ((writer != NOBODY) & (writer != who)) | ((reader != NOBODY) & (reader != who))
        self.writer[at] = who
        bad |= self.writer[at] != who
        return int(at[bad][0]) if bad.any() else None

    def forget(self, mask: Any) -> None:
        """Clear what the given lanes did; an element that many read is cleared by any of them."""
        if mask.all():
            self.clear()
            return
        for log in (self.writer, self.reader):
            log[(log >= 0) & mask[np.maximum(log, 0)]] = NOBODY
            log[log == MANY] = NOBODY

    def clear(self) -> None:
        """Nobody has done anything."""
        self.writer.fill(NOBODY)
        self.reader.fill(NOBODY)
