"""Changing an ``onnx_ir`` graph in place: constants, new nodes, what nothing uses any more."""

from __future__ import annotations

from typing import Any

import numpy as np

from paredown.runtime.onnx_lowering import nodes


class Surgery:
    """A graph under change, and the constants that were put into it."""

    def __init__(self, graph: Any) -> None:
        import onnx_ir as ir

        self.ir, self.graph = ir, graph
        self._constants: dict[tuple[Any, ...], Any] = {}

    def grid(self, node: Any, dtype: Any) -> list[Any]:
        """Scale (float32) and zero point (``dtype``) of one of our operators, as constants."""
        scale, zero = nodes.array(node.inputs[1]), nodes.array(node.inputs[2])
        return [
            self.constant(nodes.squeeze(scale.astype(np.float32))),
            self.constant(nodes.squeeze(np.broadcast_to(zero.astype(dtype), scale.shape))),
        ]

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """An initializer; equal ones are one value, so that equal quantizers can be merged."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = self.ir.tensor(array, name=f"paredown_{len(self._constants)}")
            value = self.ir.Value(
                name=tensor.name,
                shape=tensor.shape,
                type=self.ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def put(
        self,
        before: Any,
        op: str,
        inputs: list[Any],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        part: str = "",
        dtype: Any = None,
    ) -> Any:
        """The result of a new node right before another, named after it and its ``part``."""
        name = f"{before.name}/{part or op}"
        new = self.ir.node(op, inputs, attributes or {}, domain=domain, name=name)
        new.metadata_props.update(before.metadata_props)
        new.outputs[0].name = f"{before.outputs[0].name}_{part or op}"
        new.outputs[0].type = self.ir.TensorType(dtype or self.ir.DataType.FLOAT)
        self.graph.insert_before(before, new)
        return new.outputs[0]

    def replace(self, node: Any, value: Any) -> None:
        """Put a value in the place of a node's only result, and remove the node."""
        old = node.outputs[0]
        value.shape, value.type = old.shape, old.type or value.type
        self.ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def sweep(self) -> None:
        """Remove nodes and initializers that nothing uses any more."""
        outputs = {id(v) for v in self.graph.outputs}
        for node in reversed(list(self.graph)):
            if all(not v.uses() and id(v) not in outputs for v in node.outputs):
                self.graph.remove(node, safe=True)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and id(value) not in outputs:
                del self.graph.initializers[name]
                self._constants = {k: v for k, v in self._constants.items() if v is not value}
