"""Which line of the user's own code an operator or an error comes from."""

from __future__ import annotations

import os
import traceback
from types import FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_MODELS = tuple(_OURS + d + os.sep for d in ("zoo", "nn", "workloads", "apps"))
_user_files: dict[str, bool] = {}


def is_user_file(name: str) -> bool:
    """Whether a file is model code: not torch, and of paredown only its own networks."""
    known = _user_files.get(name)
    if known is None:
        inside = name.startswith((_TORCH, _OURS)) and not name.startswith(_MODELS)
        known = not inside and not name.startswith("<") and os.sep in name
        _user_files[name] = known
    return known


def user_line(frame: FrameType | None, stop: FrameType | None) -> str | None:
    """``file.py:12`` of the innermost frame of model code inside ``stop``."""
    while frame is not None and frame is not stop:
        if is_user_file(frame.f_code.co_filename):
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def last_user_line(e: BaseException, inside: str) -> str:
    """The innermost line of the user's code in a traceback below the file ``inside``.

    `` at file.py:12: `text` ``, or nothing when no such frame is there.
    """
    frames = traceback.extract_tb(e.__traceback__)
    below = max((i for i, f in enumerate(frames) if f.filename == inside), default=-1)
    mine = [f for f in frames[below + 1 :] if is_user_file(f.filename)]
    if not mine:
        return ""
    last = mine[-1]
    return f" at {os.path.basename(last.filename)}:{last.lineno}: `{last.line or last.name}`"
