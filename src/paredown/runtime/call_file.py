"""``call.json`` beside a compiled model: how it is called, and what its modules asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paredown.runtime.backend import Asked
from paredown.runtime.call import Call

NAME = "call.json"


def save(folder: Path, call: Call, asked: Mapping[str, Asked], **more: Any) -> Path:
    """Write it, with what else a backend wants to find again; returns its name in ``folder``."""
    meta = {
        "call": call.to_json(),
        "asked": {site: a.to_json() for site, a in asked.items()},
        **more,
    }
    (folder / NAME).write_text(json.dumps(meta), encoding="utf-8")
    return Path(NAME)


def load(folder: Path) -> tuple[Call, dict[str, Asked], dict[str, Any]]:
    """The call, what was asked, and all that stands in the file.

    Raises ``OSError``, ``ValueError``, ``KeyError`` or ``TypeError`` where it is not readable.
    """
    meta = json.loads((folder / NAME).read_text(encoding="utf-8"))
    asked = {site: Asked(**a) for site, a in meta["asked"].items()}
    return Call.from_json(meta["call"]), asked, meta
