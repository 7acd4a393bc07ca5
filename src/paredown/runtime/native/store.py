"""A plan on disk: ``plan.json`` and ``weights.safetensors``, each under the other's checksum."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from paredown.errors import ArtefactError
from paredown.files import sha256
from paredown.runtime.backend import Asked
from paredown.runtime.call import Call
from paredown.runtime.native.plan import Plan

PLAN, WEIGHTS = "plan.json", "weights.safetensors"


def save(
    folder: Path, plan: Plan, weights: dict[str, torch.Tensor], call: Call, asked: dict[str, Asked]
) -> list[Path]:
    """Write both files; returns their names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, folder / WEIGHTS)
    body = {
        "plan": plan.to_json(),
        "call": call.to_json(),
        "asked": {site: a.to_json() for site, a in asked.items()},
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    document = {"sha256": _digest(body), **body}
    (folder / PLAN).write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    return [Path(PLAN), Path(WEIGHTS)]


def load(folder: Path) -> tuple[Plan, dict[str, torch.Tensor], Call, dict[str, Asked]]:
    """Read both back; raises ``ArtefactError`` where a checksum does not hold."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        told = document.pop("sha256")
        if told != _digest(document):
            raise ArtefactError(f"{folder / PLAN} does not match its checksum: nothing was run")
        if document["weights_sha256"] != sha256(folder / WEIGHTS):
            raise ArtefactError(f"{folder / WEIGHTS} does not match its checksum: nothing was run")
        weights = load_file(folder / WEIGHTS)
        asked = {site: Asked(**a) for site, a in document["asked"].items()}
        plan, call = Plan.from_json(document["plan"]), Call.from_json(document["call"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        raise ArtefactError(f"{folder} holds no readable native plan: {e}") from e
    return plan, weights, call, asked


def _digest(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
