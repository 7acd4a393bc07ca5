"""How a compiled workload is called: the model's signature onto a flat list of tensors and back.

One for all compiled backends. Shapes and dtypes are those of the example inputs; anything else is
an ``InputError`` naming both (`facade.Facade` splits and pads other batches).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from paredown.errors import ArtefactError, InputError
from paredown.result import TensorInfo
from paredown.runtime import tree

VAR = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass
class Call:
    """The compiled call: parameter names, the example's nesting, and each tensor's shape and dtype.

    ``arguments`` describes ``{parameter: value}`` of the example call; ``output`` the result, known
    once the model ran. ``positional`` are parameter names that may come by position, in order.
    """

    positional: list[str]
    keywords: list[str]
    arguments: tree.Spec
    inputs: list[TensorInfo]
    output: tree.Spec | None = None
    classes: tree.Classes = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    by_position: int = 0

    def __post_init__(self) -> None:
        self._names = [k for k, _ in self.arguments["v"]]
        self._specs = dict(self.arguments["v"])
        # When every argument is one tensor, checking and ordering need no walk over the nesting.
        self._plain = all(s["k"] == "tensor" for s in self._specs.values())
        self._want = [(tuple(i.shape), getattr(torch, i.dtype)) for i in self.inputs]

    @property
    def batch(self) -> int | None:
        """First dimension shared by the inputs that have one, None when there is none."""
        sizes = [i.shape[0] for i in self.inputs if i.shape]
        return sizes[0] if sizes else None

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name. Raises ``InputError`` for one too many or given twice."""
        if len(args) > len(self.positional):
            raise InputError(
                f"the model takes {len(self.positional)} positional inputs, got {len(args)}"
            )
        given = dict(zip(self.positional, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"input {name!r} was given twice")
            given[name] = value
        return given

    def tensors(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The call's tensors in compiled order, checked against the compiled shapes and dtypes."""
        given = self.bind(args, kwargs)
        if self._plain and len(given) == len(self._names):
            leaves = [given.get(name) for name in self._names]
        else:
            leaves = self._walk(given)
        for leaf, (shape, dtype), info in zip(leaves, self._want, self.inputs, strict=True):
            if not isinstance(leaf, torch.Tensor):
                raise InputError(f"input {info.name!r} must be a tensor, got {type(leaf).__name__}")
            if leaf.shape != shape or leaf.dtype != dtype:
                raise InputError(
                    f"input {info.name!r} was compiled for {list(shape)} {info.dtype}, got "
                    f"{list(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
                )
        return leaves  # type: ignore[return-value]

    def result(self, leaves: Sequence[Any]) -> Any:
        """What the model would have returned, from its output tensors."""
        assert self.output is not None, "the output is described when the workload is lowered"
        return tree.rebuild(self.output, leaves, self.classes)

    def arguments_of(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The example call's ``(args, kwargs)``, with ``leaves`` as its tensors."""
        named = tree.rebuild(self.arguments, leaves, self.classes)
        args = [named.pop(name) for name in self.positional[: self.by_position]]
        return args, named

    def to_json(self) -> dict[str, Any]:
        """Everything needed to call the executable in another process."""
        return {
            "positional": self.positional,
            "keywords": self.keywords,
            "arguments": self.arguments,
            "inputs": [i.model_dump() for i in self.inputs],
            "output": self.output,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Call:
        """Read back; raises ``ArtefactError`` when a part is missing."""
        try:
            classes = tree.find_classes(data["arguments"]) | tree.find_classes(data["output"])
            return cls(
                list(data["positional"]),
                list(data["keywords"]),
                data["arguments"],
                [TensorInfo.model_validate(i) for i in data["inputs"]],
                data["output"],
                classes,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ArtefactError(f"the saved call description is damaged: {e!r}") from None

    def _walk(self, given: dict[str, Any]) -> list[Any]:
        for name, value in given.items():
            if name not in self._specs and not self._is_default(name, value):
                raise InputError(
                    f"input {name!r} was not among the example inputs this was compiled for "
                    f"({', '.join(self._names)})"
                )
        leaves: list[Any] = []
        for name, spec in self._specs.items():
            if name in given:
                self._match(name, spec, given[name], leaves)
            elif any(tree.names(spec)):
                raise InputError(f"input {name!r} is missing: it was among the example inputs")
        return leaves

    def _is_default(self, name: str, value: Any) -> bool:
        return value is None or (name in self.defaults and self.defaults[name] is value)

    def _match(self, name: str, spec: tree.Spec, value: Any, leaves: list[Any]) -> None:
        got: list[torch.Tensor] = []
        shape = tree.flatten(value, got, {})
        if _skeleton(shape) != _skeleton(spec):
            raise InputError(
                f"input {name!r} was compiled as {_describe(spec)}, got {_describe(shape)}"
            )
        leaves.extend(got)


def describe(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Call, list[torch.Tensor]]:
    """The call of a model on its example inputs, and the example's tensors in compiled order."""
    positional, keywords, defaults = _signature(model, len(args))
    if len(args) > len(positional):
        raise InputError(f"the model takes {len(positional)} positional inputs, got {len(args)}")
    named = {**dict(zip(positional, args, strict=False)), **kwargs}
    leaves: list[torch.Tensor] = []
    classes: tree.Classes = {}
    spec = tree.flatten(named, leaves, classes)
    infos = [
        TensorInfo(name=n, shape=list(t.shape), dtype=str(t.dtype).removeprefix("torch."))
        for n, t in zip(tree.names(spec), leaves, strict=True)
    ]
    call = Call(positional, keywords, spec, infos, None, classes, defaults, len(args))
    return call, leaves


def _signature(model: nn.Module, count: int) -> tuple[list[str], list[str], dict[str, Any]]:
    if names := getattr(model, "input_names", None):
        # A file's inputs: its module takes any arguments and names them itself.
        return list(names), list(names), {}
    positional: list[str] = []
    keywords: list[str] = []
    defaults: dict[str, Any] = {}
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind is inspect.Parameter.VAR_POSITIONAL:
            positional += [f"{p.name}.{i}" for i in range(count - len(positional))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            positional.append(p.name)
        if p.kind not in VAR:
            keywords.append(p.name)
            if p.default is not inspect.Parameter.empty:
                defaults[p.name] = p.default
    return positional, keywords, defaults


def _skeleton(spec: tree.Spec) -> Any:
    """The nesting without class names and tensor numbers, for comparing two calls."""
    kind = spec["k"]
    if kind == "tensor":
        return "tensor"
    if kind in ("const", "dtype"):
        return (kind, spec["v"])
    if kind in ("mapping", "dataclass"):
        return (kind, [(k, _skeleton(v)) for k, v in spec["v"]])
    return ("sequence", [_skeleton(v) for v in spec["v"]])


def _describe(spec: tree.Spec) -> str:
    kind = spec["k"]
    if kind in ("const", "dtype"):
        return repr(spec["v"])
    return kind if kind == "tensor" else f"{kind} of {sum(1 for _ in tree.names(spec))} tensors"
