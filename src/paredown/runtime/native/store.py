"""A plan on disk: ``plan.json`` holds the checksums of itself, the call and the weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from paredown.errors import ArtefactError
from paredown.files import sha256
from paredown.runtime import call_file
from paredown.runtime.backend import Asked
from paredown.runtime.call import Call
from paredown.runtime.native.plan import Plan

PLAN, CALL, WEIGHTS = "plan.json", call_file.NAME, "weights.safetensors"


def save(
    folder: Path, plan: Plan, weights: dict[str, torch.Tensor], call: Call, asked: dict[str, Asked]
) -> list[Path]:
    """Write the three files; returns their names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, folder / WEIGHTS)
    call_file.save(folder, call, asked)
    body = {
        "plan": plan.to_json(),
        "files": {name: sha256(folder / name) for name in (CALL, WEIGHTS)},
    }
    document = {"sha256": _digest(body), **body}
    (folder / PLAN).write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    return [Path(PLAN), Path(CALL), Path(WEIGHTS)]


def load(folder: Path) -> tuple[Plan, dict[str, torch.Tensor], Call, dict[str, Asked]]:
    """Read them back; raises ``ArtefactError`` where a checksum does not hold."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        told = document.pop("sha256")
        _demand(told == _digest(document), folder / PLAN)
        for name in (CALL, WEIGHTS):
            _demand(document["files"][name] == sha256(folder / name), folder / name)
        weights = load_file(folder / WEIGHTS)
        call, asked, _ = call_file.load(folder)
        plan = Plan.from_json(document["plan"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        raise ArtefactError(f"{folder} holds no readable native plan: {e}") from e
    return plan, weights, call, asked


def _demand(holds: bool, path: Path) -> None:
    if not holds:
        raise ArtefactError(f"{path} does not match its checksum: nothing was run")


def _digest(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
