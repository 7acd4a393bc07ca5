"""Tensors that a rewrite makes, kept in mapped files: a large model's fit beside its own weights.

The files have no name from the start, so nothing is left of them however a process ends. Their
pages are the kernel's to write out; they are no anonymous memory.
"""

# Torch names a module's own tensors only in its private tables.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError

LEAST = 1 << 20
"""Bytes from which a tensor is worth a file of its own."""

_MMAP_THRESHOLD = -3
"""Of glibc's ``mallopt``."""
_USUAL = 32 << 20
"""The threshold to which glibc lets its own rise in a process that frees large blocks."""

_FOLDER: ContextVar[Path | None] = ContextVar("spill", default=None)


@contextmanager
def into(folder: Path | None) -> Generator[None]:
    """Within it large tensors that are made anew go to files in ``folder``: those of modules that
    an `Editor` puts in place, and of packed modules as they are saved. None: they stay in memory.
    """
    token = _FOLDER.set(folder)
    if folder is not None:
        _give_back_from(LEAST)
    try:
        yield
    finally:
        _FOLDER.reset(token)
        if folder is not None:
            _give_back_from(_USUAL)


def settle(module: nn.Module) -> None:
    """Move a module's own large tensors to mapped files, where that was asked for.

    Raises ``InputError`` where the disk is full.
    """
    if _FOLDER.get() is None:
        return
    for m in module.modules():
        for name, p in m._parameters.items():
            if p is not None and (moved := held(p)) is not p:
                m._parameters[name] = nn.Parameter(moved, p.requires_grad)
        for name, b in m._buffers.items():
            m._buffers[name] = b if b is None else held(b)


def held(t: Tensor) -> Tensor:
    """A tensor as it is to be kept: mapped where that was asked for and worth it, else itself.

    Raises ``InputError`` where the disk is full.
    """
    folder = _FOLDER.get()
    plain = t.device.type == "cpu" and t.layout == torch.strided
    if folder is None or not plain or t.nbytes < LEAST:
        return t
    return mapped(t.detach(), folder)


def _give_back_from(size: int) -> None:
    """Let blocks of ``size`` bytes and more go back to the system when they are freed (glibc).

    Between layers the allocator keeps what one layer took, up to the size of the whole result.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, size)


def mapped(t: Tensor, folder: Path) -> Tensor:
    """A copy of a tensor in a file without a name."""
    handle, name = tempfile.mkstemp(prefix=".spill-", dir=folder)
    try:
        # Reserved at once: a write into a hole of a full disk would kill the process.
        os.posix_fallocate(handle, 0, t.nbytes)
        storage: Any = torch.UntypedStorage.from_file(name, shared=True, nbytes=t.nbytes)
    except OSError as e:
        raise InputError(
            f"{folder} has no room for {t.nbytes / 2**20:.0f} MiB of the result: {e.strerror}"
        ) from None
    finally:
        os.close(handle)
        os.unlink(name)
    raw: Any = torch.empty(0, dtype=torch.uint8)
    out: Tensor = raw.set_(storage).view(t.dtype).reshape(t.shape)
    return out.copy_(t)
