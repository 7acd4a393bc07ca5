"""From an exported program to a plan: constants folded, operators by their rules or by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.node import map_arg

from paredown.errors import LoweringError
from paredown.runtime.export import Exported, module_of
from paredown.runtime.native import (  # noqa: F401 - the rules register themselves
    arena,
    fuse,
    moves,
    padded,
    pitch,
    pointwise,  # pyright: ignore[reportUnusedImport]
    products,  # pyright: ignore[reportUnusedImport]
    reductions,  # pyright: ignore[reportUnusedImport]
    shapes,
    views,
)
from paredown.runtime.native.builder import Builder, Dequantized, Grouped, Lacking, Value
from paredown.runtime.native.plan import Plan, Tensor
from paredown.runtime.native.rules import RULES
from paredown.runtime.native.torch_steps import by_torch

KEEP = ("paredown.dequantize.default", "paredown.dequantize_groups.default")
"""Not computed ahead from constants: products take the integers as they are."""

LATE = (Dequantized, Grouped, moves.Moved)
"""Values that lie in memory as themselves only where somebody asks for it."""


def lower(exported: Exported, name: str) -> tuple[Plan, dict[str, torch.Tensor]]:
    """The plan of an export, and its constants by name.

    Raises ``LoweringError`` where a value is written in place while another name still reads it.
    """
    b = Builder()
    inputs: list[Tensor] = []
    program = exported.program
    graph = program.graph_module.graph
    held = _held(program)
    examples = iter(exported.examples)
    outputs: list[Tensor] = []
    for node in graph.nodes:
        b.site, b.name = module_of(node), node.name
        if node.op == "placeholder":
            if node.name in held:
                b.give(node, held[node.name])
            else:
                inputs.append(_input(b, node, next(examples), len(inputs)))
        elif node.op == "get_attr":
            b.give(node, getattr(program.graph_module, str(node.target)))
        elif node.op == "output":
            outputs = [_output(b, a, i) for i, a in enumerate(node.args[0])]
        else:
            _operator(b, node)
    b.finish()
    plan = b.plan(name, inputs, outputs)
    fuse.merge(plan, b.weights)
    pitch.spread(plan)
    arena.place(plan)
    _forget(plan, b.weights)
    return plan, b.weights


def _held(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and constants by the name of their placeholder."""
    signature: Any = program.graph_signature
    out: dict[str, torch.Tensor] = {}
    for names in (signature.inputs_to_parameters, signature.inputs_to_buffers):
        for placeholder, target in names.items():
            found = program.state_dict.get(target, program.constants.get(target))
            assert isinstance(found, torch.Tensor)
            out[placeholder] = found.detach()
    for placeholder, target in signature.inputs_to_lifted_tensor_constants.items():
        out[placeholder] = program.constants[target]  # type: ignore[assignment]
    return out


def _input(b: Builder, node: torch.fx.Node, example: torch.Tensor, index: int) -> Tensor:
    kind = str(example.dtype).removeprefix("torch.")
    try:
        t = b.new(example.shape, kind)
    except Lacking as e:
        raise LoweringError(f"native: input {node.name}: {e}") from None
    buffer = b.buffers[t.buffer]
    buffer.kind, buffer.index = "input", index
    b.give(node, t)
    return t


def _output(b: Builder, arg: Any, index: int) -> Tensor:
    """A result in a buffer of its own that the caller gets; copied there where it is shared."""
    value = b.env[arg]
    if isinstance(value, (torch.Tensor, *LATE)):
        value = b.tensor(value)
    buffer = b.buffers.get(value.buffer)
    dense = value.offset == 0 and buffer is not None and buffer.nbytes == value.extent
    if buffer is None or buffer.kind != "arena" or not dense or value.dtype == "bool":
        strides = views.contiguous(value.shape)
        try:
            value = b.copy(value, strides)
        except Lacking as e:
            clone = torch.ops.aten.clone.default
            value = by_torch(b, clone, (value,), {}, arg.meta["val"], str(e))
        buffer = b.buffers[value.buffer]
    buffer.kind, buffer.index = "output", index
    return value


def _operator(b: Builder, node: torch.fx.Node) -> None:
    target = _name(node)
    if target not in KEEP and all(_is_constant(b, a) for a in node.all_input_nodes):
        b.give(node, _computed(b, node))
        return
    if target == "aten._assert_tensor_metadata.default":
        # Shapes and dtypes are those of the plan: checked once, where it is called.
        b.give(node, None)
        return
    rule = RULES.get(target)
    try:
        if rule is None:
            raise Lacking(f"no native operator for {target}")
        value = rule(b, node)
    except Lacking as e:
        value = _fallback(b, node, str(e))
    b.give(node, value)
    if _in_place(node):
        _rewrite(b, node, value)


def _name(node: torch.fx.Node) -> str:
    name = getattr(node.target, "__name__", "")
    return "getitem" if name == "getitem" else str(node.target)


def _is_constant(b: Builder, node: torch.fx.Node) -> bool:
    value = b.env[node]
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(p, torch.Tensor) for p in parts)


def _computed(b: Builder, node: torch.fx.Node) -> Value:
    """The value of a node whose inputs are all constants."""
    args = map_arg(node.args, lambda n: b.env[n])
    kwargs = map_arg(node.kwargs, lambda n: b.env[n])
    with torch.no_grad():
        made = node.target(*args, **kwargs)  # type: ignore[operator]
    return list(made) if isinstance(made, (tuple, list)) else made


def _in_place(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _rewrite(b: Builder, node: torch.fx.Node, value: Value) -> None:
    """After an operator in place its operand reads as the result; views of it would not."""
    written: Any = node.args[0]
    before = True
    for other in node.graph.nodes:
        if other is node:
            before = False
        if before and other in written.users and other.op == "call_function":
            seen = b.env.get(other)
            alias = isinstance(seen, Tensor) and _name(other) in shapes.VIEWS
            if alias and any(u is not node and not _done(u, node) for u in other.users):
                raise LoweringError(
                    f"native: {node.target} writes in place what {other.name} still reads"
                )
    b.env[written] = value


def _done(user: torch.fx.Node, node: torch.fx.Node) -> bool:
    """Whether ``user`` comes before ``node``."""
    for other in node.graph.nodes:
        if other is user:
            return True
        if other is node:
            return False
    return False


def _fallback(b: Builder, node: torch.fx.Node, why: str) -> Value:
    """Run a node by torch inside the plan."""
    target: Any = node.target
    if not hasattr(target, "_schema"):
        raise LoweringError(f"native: {_name(node)}: {why}")
    args = map_arg(node.args, lambda n: _operand(b, n))
    kwargs = map_arg(node.kwargs, lambda n: _operand(b, n))
    return by_torch(b, target, args, kwargs, node.meta.get("val"), why)


def _operand(b: Builder, node: torch.fx.Node) -> Value:
    value = b.env[node]
    if isinstance(value, padded.Padded):
        return padded.settle(b, value)
    return b.tensor(value) if isinstance(value, LATE) else value


def _forget(plan: Plan, weights: dict[str, torch.Tensor]) -> None:
    """Drop constants that fusing left without a reader."""
    used = {name for s in plan.steps for name in s.constants.values()}
    used |= {t.buffer for s in plan.steps for t in s.tensors.values()}
    for name in set(plan.constants) - used:
        del plan.constants[name]
        del weights[name]
