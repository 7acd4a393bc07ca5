"""A workload of an ONNX file: from its path and inputs, or from ``model.onnx?NAME=1x3x224x224``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paredown.errors import TargetError
from paredown.runtime import tree
from paredown.runtime.backend import Asked
from paredown.runtime.call import Call, describe
from paredown.runtime.onnx_file import Port
from paredown.runtime.onnx_model import OnnxModule
from paredown.workload import Workload, as_call

OPEN_BATCH = 1
"""Size of a first dimension that the file leaves open, when no example inputs say otherwise."""


def onnx_workload(
    path: str | Path, inputs: Any = None, kwargs: dict[str, Any] | None = None, **fields: Any
) -> Workload:
    """A workload of an ONNX file; ``fields`` are `Workload`'s: ``evaluate``, ``calibration`` ...

    ``inputs`` (a tensor, a tuple, or a dict by the file's names) fix every shape. Left out, random
    ones are made from the declared shapes, an open batch being 1. Raises ``TargetError`` in one
    line for a file that is missing, truncated or invalid, whose inputs are not tensors, or that
    leaves other dimensions than the batch open; ``MissingExtra`` without onnx.
    """
    path = Path(path)
    model = OnnxModule(path).eval()
    if inputs is None and not kwargs:
        args: tuple[Any, ...] = _example(model.takes, path)
        model.made_up, by_name = "calibration" not in fields, {}
    else:
        args, by_name = as_call(inputs) if inputs is not None else ((), {})
    by_name |= kwargs or {}
    named: dict[str, Any] = {"name": path.stem, **fields}
    return Workload(model, args, by_name, **named)


def from_reference(text: str) -> Workload:
    """The workload of ``model.onnx`` or ``model.onnx?NAME=1x3x224x224,...`` (input shapes)."""
    file, _, query = text.partition("?")
    shapes: dict[str, list[int]] = {}
    for pair in filter(None, query.replace("&", ",").split(",")):
        name, eq, dims = pair.partition("=")
        try:
            shapes[name] = [int(d) for d in dims.split("x")] if dims else []
        except ValueError:
            eq = ""
        if not eq or any(d < 1 for d in shapes.get(name, [])):
            raise TargetError(f"{text}: malformed shape {pair!r}, write {file}?NAME=1x3x224x224")
    if not shapes:
        return onnx_workload(file)
    model = OnnxModule(Path(file)).eval()
    unknown = set(shapes) - set(model.input_names)
    if unknown:
        known = ", ".join(model.input_names)
        raise TargetError(f"{file} has no input {sorted(unknown)[0]!r}; it has {known}")
    sized = [_sized(p, shapes.get(p.name), file) for p in model.takes]
    model.made_up = True
    return Workload(model, _example(sized, Path(file)), name=Path(file).stem)


def _example(takes: list[Port], path: Path) -> tuple[torch.Tensor, ...]:
    """Normal floats; zeros and ones for integers, which any table has."""
    generator = torch.Generator().manual_seed(0)
    out: list[torch.Tensor] = []
    for port in takes:
        open_ = [i for i, d in enumerate(port.shape) if d is None and i > 0]
        if open_:
            named = ", ".join(port.labels[i] or f"number {i}" for i in open_)
            shape = "x".join(str(OPEN_BATCH if d is None else d) for d in port.shape)
            raise TargetError(
                f"{path} leaves dimension {named} of input {port.name!r} open: give its shape, as "
                f"in '{path}?{port.name}={shape}', or example inputs: "
                f"onnx_workload({str(path)!r}, inputs)"
            )
        shape = [OPEN_BATCH if d is None else d for d in port.shape]
        if port.dtype.is_floating_point:
            out.append(torch.randn(shape, generator=generator).to(port.dtype))
        else:
            out.append(torch.randint(0, 2, shape, generator=generator).to(port.dtype))
    return tuple(out)


def _sized(port: Port, shape: list[int] | None, file: str) -> Port:
    """A port with the shape that was asked for; it must agree with what the file fixes."""
    if shape is None:
        return port
    agrees = len(shape) == len(port.shape) and all(
        d in (None, s) for d, s in zip(port.shape, shape, strict=True)
    )
    if not agrees:
        fixed = "x".join("?" if d is None else str(d) for d in port.shape)
        raise TargetError(
            f"{file}: input {port.name!r} is {fixed}, not {'x'.join(map(str, shape))}"
        )
    return Port(port.name, port.dtype, tuple(shape), port.labels)


def described(workload: Workload) -> tuple[Call, list[torch.Tensor], dict[str, Asked]]:
    """Call, example tensors and asked numbers of an ONNX workload, as `export` gives them."""
    module: Any = workload.model
    call, examples = describe(module, workload.inputs, workload.kwargs)
    leaves: list[torch.Tensor] = []
    call.output = tree.flatten(workload.call(), leaves, call.classes)
    return call, examples, module.asked()
