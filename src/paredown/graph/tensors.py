"""Finding tensors in arbitrary Python objects, and the fake copies of them that a
capture runs on.
"""

# Capture lives below torch's public surface: dispatch modes, storages, autograd nodes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from paredown.graph.graph import Kind

DEEPEST = 8
"""How far `walk` looks into nested objects: caches, outputs and configs are shallower than this."""

KNOWN = 1 << 20
"""Integer inputs and filled tensors up to this many elements keep their values under fake tensors,
so that code that looks at a mask or a position takes the branch it really takes.
"""

STORED = "paredown_stored_values"
"""Attribute under which a fake sparse tensor, which torch gives no values, keeps how many it has.
"""


def walk(obj: Any, path: str = "", _depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor inside mappings, sequences, dataclasses and plain objects, with a dotted path.

    Modules are not entered; an object met twice is entered twice.
    """
    if isinstance(obj, torch.Tensor):
        yield path, obj
        return
    if _depth > DEEPEST or obj is None or isinstance(obj, (nn.Module, type, str, int, float)):
        return
    for name, child in _children(obj):
        yield from walk(child, f"{path}.{name}" if path else str(name), _depth + 1)


def _children(obj: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(obj, Mapping):
        yield from obj.items()
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from enumerate(obj)
    elif dataclasses.is_dataclass(obj):
        for f in dataclasses.fields(obj):
            yield f.name, getattr(obj, f.name, None)
    elif hasattr(obj, "__dict__") and type(obj).__module__ != "builtins" and not callable(obj):
        yield from vars(obj).items()


def held(model: nn.Module) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    """Every tensor that a model holds as ``(kind, qualified name, tensor)``.

    Parameters and buffers first; then tensors kept as plain attributes, with kind ``constant``.
    """
    for name, p in model.named_parameters(remove_duplicate=False):
        yield "parameter", name, p
    for name, b in model.named_buffers(remove_duplicate=False):
        yield "buffer", name, b
    for path, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
        for name, t in walk(plain, path):
            yield "constant", name, t


class Faker:
    """Makes fake CPU tensors of real, meta or fake ones; tensors that share a storage still do."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._bases: dict[int, torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """The fake of ``t``; itself when it already is one of this mode."""
        if isinstance(t, FakeTensor):
            return t
        if t.device.type != "meta" and not t.is_inference():
            fake = self.mode.from_tensor(t)
            if t.layout != torch.strided and not t.is_mkldnn:
                vars(fake)[STORED] = stored_values(t)
            if not t.is_floating_point() and t.layout == torch.strided:
                know(fake, t.detach().clone())
            return fake
        # Tensors made under inference mode would keep composite operators whole: only their
        # shapes are taken.
        fake = self._of_meta(t)
        if t.device.type != "meta" and not t.is_floating_point():
            know(fake, t.detach().clone())
        if isinstance(t, nn.Parameter):
            return nn.Parameter(fake, requires_grad=t.requires_grad)
        return fake

    def _of_meta(self, t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        self._kept.append(t)  # its address must not be reused while `_bases` is keyed by it
        with self.mode, torch.no_grad():
            if (
                storage.nbytes() == t.numel() * t.element_size()
                and storage._cdata not in self._bases
            ):
                fake = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")
                self._bases[storage._cdata] = fake
                return fake
            base = self._bases.get(storage._cdata)
            if base is None:
                base = torch.empty(
                    storage.nbytes() // t.element_size(), dtype=t.dtype, device="cpu"
                )
                self._bases[storage._cdata] = base
            return base.as_strided(t.shape, t.stride(), t.storage_offset())


def stored_values(t: torch.Tensor) -> int:
    """How many values a sparse tensor stores; -1 for a fake one that nobody counted."""
    counted = vars(t).get(STORED) if isinstance(t, FakeTensor) else None
    if isinstance(t, FakeTensor):
        return -1 if counted is None else int(counted)
    return int(t._nnz()) if t.layout == torch.sparse_coo else int(t.values().numel())


def know(fake: Any, value: torch.Tensor) -> None:
    """Remember the values of a fake tensor, until something writes unknown ones into it."""
    if value.numel() <= KNOWN:
        fake.constant = value
        fake.fake_mode.fake_tensor_converter.add_constant_storage_mapping(fake)


def replace_tensors(obj: Any, new: Callable[[Any], Any], tensors: list[torch.Tensor]) -> Any:
    """Deep-copy ``obj`` with each of ``tensors`` replaced by ``new`` of it; ties stay ties."""
    memo: dict[int, Any] = {}
    for t in tensors:
        if id(t) not in memo:
            memo[id(t)] = new(t)
    return copy.deepcopy(obj, memo)


def held_packed(model: nn.Module) -> Iterator[tuple[str, torch.ScriptObject]]:
    """Packed parameters of torch's quantized modules, with the path of the module that
    holds them.
    """
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.ScriptObject):
                yield f"{path}.{name}" if path else name, value


def packed_weight(packed: torch.ScriptObject) -> torch.Tensor | None:
    """The weight inside a packed linear or convolution, None for objects that hold no
    single one.
    """
    quantized = torch.ops.quantized
    ways = (
        quantized.linear_unpack,
        quantized.linear_unpack_fp16,
        quantized.conv2d_unpack,
        quantized.conv1d_unpack,
        quantized.conv3d_unpack,
    )
    with _disable_current_modes():
        for unpack in ways:
            # The class of a packed object is not told; each unpacker refuses the others' objects.
            with contextlib.suppress(RuntimeError, TypeError):
                return unpack(packed)[0]
    return None


def materialise(t: torch.Tensor) -> torch.Tensor:
    """A real tensor in place of any: copies of real ones, small random numbers for the others."""
    if not isinstance(t, FakeTensor) and t.device.type != "meta":
        real = t.detach().clone()
        return nn.Parameter(real, t.requires_grad) if isinstance(t, nn.Parameter) else real
    real = torch.empty(t.shape, dtype=t.dtype)
    if t.is_floating_point():
        real.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0))
    else:
        real.zero_()
    return nn.Parameter(real, t.requires_grad) if isinstance(t, nn.Parameter) else real
