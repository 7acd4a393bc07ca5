"""Whose line it was: an exception of the user's code in one line, with the user's own last line."""

from __future__ import annotations

import os
import sysconfig
import traceback

_INSTALLED = tuple(
    os.path.realpath(p) + os.sep
    for p in {sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_OURS = os.path.dirname(os.path.realpath(__file__)) + os.sep


def words(e: BaseException) -> str:
    """An exception as ``Type: first line of its message``."""
    text = str(e).strip().splitlines()
    return f"{type(e).__name__}: {text[0]}" if text else type(e).__name__


def line(e: BaseException) -> str:
    """`` (file.py:12: the text of that line)``: the innermost frame in a file of the user's.

    Installed packages, the standard library and paredown are not the user's. Nothing when no frame
    of the traceback is.
    """
    for frame in reversed(traceback.extract_tb(e.__traceback__)):
        name = os.path.realpath(frame.filename)
        if os.path.exists(name) and not name.startswith((*_INSTALLED, _OURS)):
            return f" ({os.path.basename(name)}:{frame.lineno}: {frame.line or frame.name})"
    return ""


def blame(e: BaseException) -> str:
    """Both: ``Type: message (file.py:12: text)``."""
    return words(e) + line(e)
