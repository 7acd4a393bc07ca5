"""The lowering table of eager and inductor: quantized forms onto torch's own CPU operators.

`lower` swaps each form of a lowered copy for its packed module and says why not where it cannot;
`tensors` gives a lowered model's tensors as its forms would hold them.
"""

# torch keeps its modules' tables and a look at the instruction set private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paredown.runtime import spill
from paredown.runtime.forms_codebook import CodebookConv, CodebookLinear
from paredown.runtime.forms_fixed import FixedConv, FixedLinear
from paredown.runtime.forms_low_bit import LowBitLinear
from paredown.runtime.forms_mixed import MixedInt8Linear
from paredown.runtime.forms_two_of_four import TwoOfFourLinear
from paredown.runtime.nf4 import NF4Linear
from paredown.runtime.packed import Packed, PackedConv, PackedLinear, nbytes, padding_of
from paredown.runtime.packed_mixed import PackedMixed
from paredown.runtime.packed_weights import GROUPS, PackedGroups, PackedRows
from paredown.runtime.quantized import (
    DynamicLinear,
    QuantConv,
    QuantLinear,
    WeightOnlyConv,
    WeightOnlyEmbedding,
    WeightOnlyLinear,
)
from paredown.workload import Workload

NO_VNNI = "this CPU has no VNNI: int8 products without it saturate in oneDNN"
SHARED = "its weight is another layer's too: a packed copy would hold it twice"
_ALIGNED = 16
"""Rows of an int4 weight come in blocks of this many."""


def lower(workload: Workload) -> dict[str, str]:
    """Swap the forms of ``workload.model`` in place; module path -> why one stays as it is."""
    model = workload.model
    forms = {p: m for p, m in model.named_modules(remove_duplicate=False) if type(m) in _TABLE}
    owners = Counter(id(t) for m in model.modules() for t in m._parameters.values())
    int4 = [m for m in forms.values() if isinstance(m, WeightOnlyLinear) and m.bits == 4]
    dtypes = _input_dtypes(workload, int4)
    made: dict[int, nn.Module] = {}
    lost: dict[str, str] = {}
    for path, form in forms.items():
        if (why := why_not(form, dtypes.get(id(form)), owners[id(form.weight)] > 1, path)) is None:
            if id(form) not in made:
                made[id(form)] = _TABLE[type(form)](form)
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made[id(form)])
        elif not isinstance(form, WeightOnlyEmbedding):
            lost[path] = why
    return lost


def why_not(form: Any, dtype: torch.dtype | None, shared: bool, path: str) -> str | None:
    """Why a form is not lowered, None when it is. ``dtype`` is that of its input, where known."""
    if form.weight.device.type != "cpu":
        return f"torch's packed operators run on the CPU, the model is on {form.weight.device}"
    if not path:
        return "the model is this layer alone"
    if shared:
        return SHARED
    if isinstance(form, WeightOnlyLinear) and form.bits == 4:
        return _int4(form, dtype)
    if _TABLE[type(form)] is None:
        return "torch has no operator for it"
    if isinstance(form, WeightOnlyLinear) and form.group_size not in (0, form.in_features):
        return "torch has no CPU operator for int8 weights in groups"
    if isinstance(form, QuantConv):
        try:
            padding_of(form)
        except ValueError as e:
            return f"oneDNN pads both sides alike: {e}"
    return None if torch.cpu._is_vnni_supported() else NO_VNNI


def _int4(form: WeightOnlyLinear, dtype: torch.dtype | None) -> str | None:
    group = form.group_size or form.in_features
    if group not in GROUPS:
        return f"torch's int4 operator takes groups of {', '.join(map(str, GROUPS))}, not {group}"
    if form.out_features % _ALIGNED:
        return f"torch's int4 operator takes multiples of {_ALIGNED} outputs"
    if dtype is not torch.bfloat16:
        was = "no input" if dtype is None else str(dtype).removeprefix("torch.")
        return f"torch's int4 operator is made for bfloat16 inputs, it has {was}"
    return None


def _input_dtypes(workload: Workload, modules: list[Any]) -> dict[int, torch.dtype]:
    """Each module's input dtype in one call of the model on the example, by ``id(module)``."""
    found: dict[int, torch.dtype] = {}
    if not modules:
        return found

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            found[id(module)] = args[0].dtype

    handles = [m.register_forward_pre_hook(note) for m in modules]
    try:
        with torch.inference_mode():
            workload.model(*workload.inputs, **workload.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer by name, those of packed modules as their forms hold them.

    A tensor known under several names comes under each.
    """
    found: list[tuple[str, Tensor]] = []
    unpacked: dict[int, dict[str, Tensor]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Packed):
            if id(module) not in unpacked:
                unpacked[id(module)] = {n: spill.held(t) for n, t in module.tensors().items()}
            own = unpacked[id(module)]
        else:
            own = _own(module)
        found += [(f"{path}.{name}" if path else name, t) for name, t in own.items()]
    return found


def held_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of a lowered model as they are held, shared storages once."""
    plain = {
        t.untyped_storage().data_ptr(): nbytes(t)
        for t in _held(model)
        if t.numel() and not t.is_mkldnn
    }
    packed = {id(t): nbytes(t) for t in _held(model) if t.is_mkldnn}
    return sum(plain.values()) + sum(packed.values())


def _held(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from _own(module).values()
        if isinstance(module, Packed):
            yield from (t for t in vars(module).values() if isinstance(t, Tensor))


def _own(module: nn.Module) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return parameters | dict(module.named_buffers(recurse=False, remove_duplicate=False))


def _packed_weight_only(form: WeightOnlyLinear) -> Packed:
    return PackedGroups(form) if form.bits == 4 else PackedRows(form)


_TABLE: dict[type, Any] = {
    QuantLinear: PackedLinear,
    DynamicLinear: PackedLinear,
    MixedInt8Linear: PackedMixed,
    QuantConv: PackedConv,
    WeightOnlyLinear: _packed_weight_only,
    WeightOnlyConv: None,
    WeightOnlyEmbedding: None,
    NF4Linear: None,
    LowBitLinear: None,
    CodebookLinear: None,
    CodebookConv: None,
    FixedLinear: None,
    FixedConv: None,
    TwoOfFourLinear: None,
}
