"""Targets: from what the user names (a file, a folder, a network) to a workload that runs.

``file.py[:name]``, ``model.onnx``, ``hf:FOLDER``, ``zoo:NAME[?key=value,...]``, artefact folders.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from paredown import yamlform
from paredown.blame import words
from paredown.errors import InputError, TargetError
from paredown.files import sha256
from paredown.target_check import validate
from paredown.target_file import as_workload, from_file
from paredown.workload import TargetRef, Workload

__all__ = ["Kind", "as_workload", "kind_of", "resolve", "run_as", "short_name", "split", "validate"]

Kind = Literal["python", "onnx", "hf", "zoo", "artefact"]


def kind_of(text: str) -> Kind:
    """What kind of target a reference names; ``TargetError`` when it names nothing there is."""
    if text.startswith("hf:"):
        return "hf"
    if text.startswith("zoo:"):
        return "zoo"
    path, _ = split(text)
    if path.is_dir():
        if (path / "manifest.json").exists():
            return "artefact"
        if (path / "config.json").exists():
            raise TargetError(f"{text} looks like a Hugging Face folder: write hf:{text}")
        raise TargetError(f"{text} is a folder without manifest.json: not a paredown artefact")
    if not path.exists():
        raise TargetError(f"no such file: {path}")
    if path.suffix == ".py":
        return "python"
    if path.suffix == ".onnx":
        return "onnx"
    raise TargetError(f"{text} is no target: give a .py or .onnx file, an artefact folder, "
                      "hf:FOLDER or zoo:NAME")  # fmt: skip


def resolve(text: str, *, random_weights: bool = False) -> Workload:
    """The workload a reference names, with ``source`` filled in so that it can be built again.

    ``random_weights`` asks a Hugging Face folder for untrained weights (``config.json`` is enough)
    and marks the workload, so that quality constraints are refused. Raises ``TargetError``, one
    line, showing the user's own last line when their code raised.
    """
    kind = kind_of(text)
    if kind == "python":
        path, name = split(text)
        workload = from_file(path, name)
        digest = sha256(path)
    elif kind == "zoo":
        workload, digest = _from_zoo(text), None
    elif kind == "hf":
        from paredown.adapters import hf, hf_run

        folder, asked = hf_run.split(text)
        workload = hf.hf_workload(folder, random_weights=random_weights, asked=asked)
        digest = workload.source.sha256 if workload.source is not None else None
    elif kind == "onnx":
        from paredown.runtime.onnx_workload import from_reference

        workload, digest = from_reference(text), sha256(split(text)[0])
    else:
        from paredown import artefact

        workload, digest = artefact.load(text).workload, sha256(Path(text) / "manifest.json")
    return replace(workload, source=TargetRef(text, digest, random_weights))


def run_as(
    text: str,
    *,
    run: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
) -> str:
    """A reference that says how it is run: ``hf:F`` and ``generate`` give ``hf:F?run=generate``.

    The reference as it is where nothing is asked. Raises ``TargetError``: only Hugging Face folders
    leave the choice open, other targets say it themselves.
    """
    if run is None and prompt_tokens is None and new_tokens is None:
        return text
    if kind_of(text) != "hf":
        raise TargetError(
            f"{text}: --run, --prompt-tokens and --new-tokens are for hf: targets; in a file say "
            "Workload(..., run='generate', loop=Generate(new_tokens=...))"
        )
    from paredown.adapters import hf_run

    folder, before = hf_run.split(text)
    given = {"run": run, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    asked = replace(before, **{k: v for k, v in given.items() if v is not None})
    query = hf_run.check(asked, text).query()
    return f"hf:{folder}?{query}" if query else f"hf:{folder}"


def split(text: str) -> tuple[Path, str | None]:
    """``file.py:name`` as path and name; ``file.onnx?x=1x3`` without its shapes."""
    head, colon, tail = text.rpartition(":")
    if colon and head.endswith(".py"):
        return Path(head), tail or None
    head, mark, _ = text.partition("?")
    return Path(head if mark and head.endswith(".onnx") else text), None


def short_name(text: str) -> str:
    """A short name for a target: the folder's or the file's own."""
    return text if ":" in text else Path(text).name


def _from_zoo(text: str) -> Workload:
    """``zoo:NAME?key=value,...``; ``batch``, ``image_size``, ``in_channels`` shape the input."""
    # The zoo is above this module in the layers: it is looked up by name, like a plug-in.
    zoo = importlib.import_module("paredown.zoo")
    name, _, query = text[4:].partition("?")
    settings: dict[str, Any] = {}
    for pair in filter(None, query.replace("&", ",").split(",")):
        key, eq, value = pair.partition("=")
        if not eq or not key.isidentifier():
            raise TargetError(f"{text}: malformed setting {pair!r}, write zoo:{name}?key=value,...")
        settings[key] = yamlform.load(value)
    example = {k: settings[k] for k in ("batch", "image_size", "in_channels") if k in settings}
    settings.pop("batch", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = zoo.create(name, **settings)
        except InputError as e:
            if "image_size" not in settings or "image_size" not in str(e):
                raise
            # A convolutional network has no such setting: only its example input has a size.
            settings.pop("image_size")
            model = zoo.create(name, **settings)
    try:
        inputs = zoo.example(name, **example)
    except (TypeError, RuntimeError) as e:
        raise TargetError(f"{text}: {words(e)}") from None
    return Workload(model.eval(), inputs, name=name)
