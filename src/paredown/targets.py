"""Targets: from what the user names (a file, a folder, a network) to a workload that runs.

``file.py[:name]``, ``model.onnx``, ``hf:FOLDER``, ``zoo:NAME[?key=value,...]``, artefact folders.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import nn

from paredown import yamlform
from paredown.blame import blame, words
from paredown.errors import CaptureError, InputError, ParedownError, TargetError
from paredown.files import sha256
from paredown.quality import judge, tensors
from paredown.workload import TargetRef, Workload, as_call

Kind = Literal["python", "onnx", "hf", "zoo", "artefact"]

PREFERRED = ("workload", "target", "model")
"""Names looked for first in a file that has several candidates."""


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
        workload = _from_file(path, name)
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


def _from_file(path: Path, name: str | None) -> Workload:
    # Seeded, so that a child process that builds the target again gets the same untrained weights.
    with _importable(path.resolve().parent), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _import(path)
        if name is None:
            name = _choose(module, path)
        elif not hasattr(module, name):
            has = ", ".join(_candidates(module)) or "nothing that could be one"
            raise TargetError(f"{path} has no {name!r}; it has {has}")
        found = getattr(module, name)
        if callable(found) and not isinstance(found, nn.Module):
            found = _call(found, f"{path.name}:{name}")
    workload = as_workload(found, f"{path.name}:{name}")
    if workload.name == "model":
        workload = replace(workload, name=path.stem)
    if workload.run != "train_step":
        workload.model.eval()
    return workload


def _import(path: Path) -> ModuleType:
    """The user's file as a module of its own name, executed once per content."""
    unique = f"paredown_target_{path.stem}_{sha256(path)[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        del sys.modules[unique]
        if isinstance(e, ParedownError):
            raise
        if isinstance(e, SyntaxError) and e.filename == str(path.resolve()):
            raise TargetError(f"{path}:{e.lineno}: {e.msg}") from e
        raise TargetError(f"{path} raised on import: {blame(e)}") from e
    return module


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    """Let the user's file import its neighbours: first while it runs, last afterwards."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def _candidates(module: ModuleType) -> dict[str, Any]:
    """What in a module could be a target, by name."""

    def fits(value: Any) -> bool:
        if isinstance(value, nn.Module):
            return _own(value) is not None
        if isinstance(value, tuple):
            return len(value) == 2 and isinstance(value[0], nn.Module)
        if inspect.isfunction(value):
            return value.__module__ == module.__name__ and _bare(value)
        return isinstance(value, Workload)

    return {n: v for n, v in vars(module).items() if not n.startswith("_") and fits(v)}


def _choose(module: ModuleType, path: Path) -> str:
    found = _candidates(module)
    for name in PREFERRED:
        if name in found:
            return name
    sure = [n for n, v in found.items() if not inspect.isfunction(v)]
    named = [n for n, v in found.items() if inspect.isfunction(v) and _returns_workload(v)]
    for names in (sure, named, list(found)):
        if len(names) == 1:
            return names[0]
        if names:
            raise TargetError(
                f"{path} has several targets: say {path}:NAME, one of {', '.join(names)}"
            )
    has = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
    raise TargetError(
        f"{path} has no target (a Workload, a model with inputs, or a function without arguments "
        f"that returns one); it has {has}"
    )


def _bare(function: Callable[..., Any]) -> bool:
    """Whether a function can be called without arguments."""
    parameters = inspect.signature(function).parameters.values()
    return all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )


def _returns_workload(function: Callable[..., Any]) -> bool:
    return "Workload" in str(inspect.signature(function).return_annotation)


def _call(function: Callable[..., Any], where: str) -> Any:
    try:
        if not _bare(function):
            raise TargetError(f"{where} takes arguments: a target is a function without any")
        return function()
    except ParedownError:
        raise
    except (Exception, SystemExit) as e:
        raise TargetError(f"{where} raised: {blame(e)}") from e


def as_workload(found: Any, where: str) -> Workload:
    """A workload from what a target holds: one, a model with ``inputs``, or ``(model, inputs)``."""
    if isinstance(found, Workload):
        return found
    if isinstance(found, tuple):
        pair = cast("tuple[Any, ...]", found)
        if len(pair) == 2 and isinstance(pair[0], nn.Module):
            args, kwargs = as_call(pair[1])
            return Workload(pair[0], args, kwargs)
    if isinstance(found, nn.Module):
        inputs = _own(found)
        if inputs is None:
            raise TargetError(f"{where} is a model without example inputs: give (model, inputs), "
                              "a Workload, or the model an attribute `inputs`")  # fmt: skip
        args, kwargs = as_call(inputs)
        return Workload(found, args, kwargs)
    raise TargetError(f"{where} is a {type(found).__name__}: a target is a Workload, a model with "
                      "inputs, or a function without arguments that returns one")  # fmt: skip


def _own(model: nn.Module) -> Any:
    """The example inputs a model carries, None when it has none."""
    for name in ("inputs", "example_inputs", "dummy_inputs"):
        value = getattr(model, name, None)
        if value is not None and not callable(value):
            return value
    return None


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


def validate(workload: Workload, *, judges: bool = False) -> Workload:
    """Prove that a workload runs before compute is spent on it; returns it.

    One forward on the example inputs (a fake one when the weights are not in memory), its output
    free of NaN; calibration data not empty, finite and accepted by the model; with ``judges``,
    ``evaluate`` and ``verify`` once on the model. Raises ``TargetError`` or ``InputError``.
    """
    if not isinstance(cast(object, workload.model), nn.Module):
        raise TargetError(f"{workload.name}: the model is a {type(workload.model).__name__}, "
                          "not an nn.Module")  # fmt: skip
    given = [t for _, t in tensors((workload.inputs, workload.kwargs))]
    if not given and workload.run != "train_step":
        raise TargetError(f"{workload.name} has no example inputs")
    if workload.loop is not None:
        why = workload.loop.why_not(workload.model, workload.inputs, workload.kwargs)
        if why is not None:
            raise TargetError(f"{workload.name}, run={workload.run!r}: {why}")
    for t in given:
        if not t.is_meta and t.is_floating_point() and bool(t.isnan().any()):
            raise TargetError(f"{workload.name}: an example input contains NaN")
    if _weightless(workload):
        from paredown.graph.capture import capture

        try:
            capture(workload)
        except CaptureError as e:
            raise TargetError(str(e)) from e
        return workload
    _forward(workload, workload.inputs, workload.kwargs, "")
    _calibration(workload)
    if judges:
        for who in ("evaluate", "verify"):
            f = getattr(workload, who)
            if f is not None:
                judge(f, workload.model, who=who)
    return workload


def _weightless(workload: Workload) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    own = [*workload.model.parameters(), *workload.model.buffers()]
    return any(t.is_meta or isinstance(t, FakeTensor) for t in own)


def _forward(workload: Workload, args: tuple[Any, ...], kwargs: dict[str, Any], on: str) -> None:
    training = workload.model.training
    workload.model.eval()
    try:
        with torch.inference_mode():
            out = workload.judged((args, kwargs))
    except ParedownError:
        raise
    except Exception as e:
        shapes = ", ".join(str(tuple(t.shape)) for _, t in tensors((args, kwargs)))
        raise TargetError(f"{workload.name} raised in forward{on} with inputs of shape {shapes}: "
                          f"{blame(e)}") from e  # fmt: skip
    finally:
        workload.model.train(training)
    for name, t in tensors(out):
        if t.is_floating_point() and bool(t.isnan().any()):
            bad, label = int(t.isnan().sum()), f"output {name!r}" if name else "the output"
            raise TargetError(
                f"{workload.name}: {label} contains NaN{on} ({bad} of {t.numel()} values)"
            )


def _calibration(workload: Workload) -> None:
    data = workload.calibration
    if data is None:
        return
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(f"{workload.name}: calibration must be a sequence (a list of items), "
                         f"got {type(data).__name__}")  # fmt: skip
    if len(data) == 0:
        raise InputError(f"{workload.name}: the calibration data is empty")
    for i, item in enumerate(data):
        for _, t in tensors(as_call(item)):
            if t.is_floating_point() and not bool(t.isfinite().all()):
                raise InputError(f"{workload.name}: calibration item {i} contains NaN or infinity")
    args, kwargs = as_call(data[0])
    _forward(workload, args, kwargs, " on calibration item 0")
