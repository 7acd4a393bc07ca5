"""Which transformer blocks of a captured run can give tokens up, read from its dataflow.

A block qualifies when it computes ``y = x + attention(...x)`` and ``y + feed_forward(...y)`` with
its own children one after another and nothing else of its own: the pre-norm encoder block, whatever
its class is called and whichever library it is from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from paredown.graph.graph import Graph, Node, Ref, Tensor
from paredown.workload import Workload

ATTENTION = "aten::_scaled_dot_product"
SPECIAL = 8
"""Class tokens and registers at most."""


@dataclass(frozen=True)
class Block:
    """One block: its current path, its children before and after the cut, its input tensor."""

    path: str
    first: tuple[str, ...]
    attention: str
    second: tuple[str, ...]
    takes: int
    gives: int


@dataclass
class Blocks:
    """A chain of blocks over the same ``(batch, tokens, channels)``, and why others are not in."""

    chain: list[Block] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    prefix: int = 0
    grid: tuple[int, int] = (0, 0)
    reason: str | None = None
    """Why no block can act, where that concerns them all."""

    @property
    def patches(self) -> int:
        """Tokens that are patches of the image."""
        return self.tokens - self.prefix


class _Refusal(Exception):
    """Why a block is not one that can give tokens up."""


def find(workload: Workload, graph: Graph) -> Blocks:
    """The chain of blocks of a workload's captured run."""
    out = Blocks()
    if workload.run != "forward":
        out.reason = f"a run of {workload.run!r} keeps every token"
    flow = _Flow(graph)
    seen: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op.startswith(ATTENTION):
            seen.setdefault(flow.block_of(node) or node.module, []).append(node)
    found: list[Block] = []
    for path, nodes in seen.items():
        try:
            found.append(flow.read(path, nodes))
        except _Refusal as e:
            out.refused[path] = str(e)
    for block in found:
        if not out.chain or flow.base(block.takes) == flow.base(out.chain[-1].gives):
            out.chain.append(block)
        else:
            out.refused[block.path] = "its input is not the block before it, token for token"
    if out.chain and out.reason is None:
        _measure(out, flow)
    return out


def _measure(out: Blocks, flow: _Flow) -> None:
    """How many tokens there are, which of them are no patches, and the grid of those that are."""
    out.tokens = flow.tensor(out.chain[0].takes).shape[1]
    before = [n for n in flow.graph.nodes if n.outputs and n.outputs[0] <= out.chain[0].takes]
    for node in reversed(before):
        shape = flow.tensor(node.outputs[0]).shape
        if node.op == "aten::convolution" and len(shape) == 4:
            extra = out.tokens - shape[2] * shape[3]
            if 0 <= extra <= SPECIAL:
                out.prefix, out.grid = extra, (shape[2], shape[3])
                break
    else:
        out.reason = f"no convolution makes patches of its {out.tokens} tokens"
        return
    if out.prefix and not any(flow.puts_patches_last(n, out) for n in before):
        out.reason = f"its {out.prefix} extra tokens do not stand before the patches"


class _Flow:
    """Who makes and who reads which tensor of a run."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made = graph.producers()
        self.own: dict[str, list[Node]] = {}
        for node in graph.nodes:
            if not node.view:
                self.own.setdefault(node.module, []).append(node)

    def tensor(self, t: int) -> Tensor:
        """A tensor of the run."""
        return self.graph.tensors[t]

    def base(self, t: int) -> int:
        """The tensor behind views that do not mix tokens (shapes unchanged or rows flattened)."""
        while (node := self.made.get(t)) is not None and node.view and node.inputs:
            t = node.inputs[0]
        return t

    def block_of(self, node: Node) -> str | None:
        """The nearest module around an attention that adds twice."""
        path = node.module
        while path:
            path = path.rpartition(".")[0]
            if sum(n.op == "aten::add" for n in self.own.get(path, ())) >= 2:
                return path
        return None

    def read(self, path: str, attentions: list[Node]) -> Block:
        """A block from its two additions; raises ``_Refusal``."""
        own = self.own.get(path, [])
        if not path or [n.op for n in own] != ["aten::add", "aten::add"]:
            raise _Refusal("its own code does more than add attention, then feed-forward")
        if len(attentions) != 1:
            raise _Refusal(f"its attention runs {len(attentions)} times")
        self._plain(attentions[0])
        one, two = own
        x, y = _split(one), _split(two)
        inside = [n for n in self.graph.nodes if n.module.startswith(path + ".")]
        before = [n for n in inside if n.index < one.index]
        after = [n for n in inside if one.index < n.index < two.index]
        if len(before) + len(after) != len(inside) or attentions[0] not in before:
            raise _Refusal("its parts do not run in the order attention, feed-forward")
        takes = self._residual(x, before, path, "attention")
        if self.tensor(takes).shape != self.tensor(one.outputs[0]).shape:
            raise _Refusal("its residual changes shape")
        first, second = self._chain(path, before, takes), self._chain(path, after, one.outputs[0])
        if self.base(one.outputs[0]) not in {self.base(t) for t in y}:
            raise _Refusal("its feed-forward is not added to what attention left")
        name = attentions[0].module.removeprefix(path + ".")
        attention = next((c for c in first if name == c or name.startswith(c + ".")), "")
        return Block(path, first, attention, second, takes, two.outputs[0])

    def _plain(self, node: Node) -> None:
        q, k = (self.tensor(t).shape for t in node.inputs[:2])
        if len(q) != 4 or q != k:
            raise _Refusal("its attention is not of tokens among themselves, head by head")
        if len(node.inputs) > 3:
            raise _Refusal("its attention takes a mask")
        if True in node.args or node.kwargs.get("is_causal"):
            raise _Refusal("its attention is causal: every token is a result")

    def _residual(self, pair: tuple[int, int], part: list[Node], path: str, what: str) -> int:
        """Which of two addends comes from outside of ``part``: the residual stream."""
        made = {t for n in part for t in n.outputs}
        outside = [t for t in pair if self.base(t) not in made and t not in made]
        if len(outside) != 1 or len(self.tensor(outside[0]).shape) != 3:
            raise _Refusal(f"its {what} is not added to a stream of tokens")
        return outside[0]

    def _chain(self, path: str, part: list[Node], takes: int) -> tuple[str, ...]:
        """Names of the children that ran, each reading only what the one before it made."""
        names = list(dict.fromkeys(n.module.removeprefix(path + ".").split(".")[0] for n in part))
        held = {self.base(takes), takes}
        for name in names:
            nodes = [n for n in part if _under(n.module, f"{path}.{name}")]
            made = {t for n in nodes for t in n.outputs}
            for node in nodes:
                for t in node.inputs:
                    if self.tensor(t).kind != "intermediate" or t in made or t in held:
                        continue
                    if self.base(t) not in held:
                        raise _Refusal(f"{name} reads more than what came before it")
            held = made
        return tuple(names)

    def puts_patches_last(self, node: Node, out: Blocks) -> bool:
        """Whether a node joins the extra tokens and the patches, in this order."""
        if node.op != "aten::cat" or self.tensor(node.outputs[0]).shape[1:2] != (out.tokens,):
            return False
        return self.tensor(node.inputs[-1]).shape[1] == out.patches


def _split(node: Node) -> tuple[int, int]:
    if len(node.inputs) != 2 or not all(isinstance(a, Ref) for a in node.args[:2]):
        raise _Refusal("its residual is not a sum of two tensors")
    return node.inputs[0], node.inputs[1]


def _under(module: str, path: str) -> bool:
    return module == path or module.startswith(path + ".")
