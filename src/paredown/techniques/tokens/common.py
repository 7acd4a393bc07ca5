"""What the token techniques share: their sites, how many tokens each block gives up, the edit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from paredown.editing import Editor
from paredown.errors import CaptureError, InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.runtime.tokens import ReducedBlock
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.quantize.common import paths, site
from paredown.techniques.tokens.blocks import Blocks, find
from paredown.workload import Workload

ROLE = "tokens"


@dataclass(frozen=True)
class FewerTokens(Rewrite, ABC):
    """Blocks give tokens up between attention and feed-forward. Subclasses say which and how."""

    family: ClassVar[str] = "tokens"
    stage: ClassVar[Stage] = Stage.SPARSITY
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.ATTENTION})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SHAPES, Lowers.TIME})
    method: ClassVar[str] = ""

    share: Annotated[
        float, Choice(0.25, 0.4, 0.55, 0.7), "share of the patches gone after the last block"
    ] = 0.4
    per_block: Annotated[int, "tokens each block gives up (0: by share)"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 <= self.share < 1:
            raise InputError(f"share must lie in [0, 1), got {self.share}")
        if self.per_block < 0:
            raise InputError(f"per_block must be at least 0, got {self.per_block}")

    @abstractmethod
    def most(self, patches: int) -> int:
        """The most tokens one block can give up when it has ``patches``."""

    @abstractmethod
    def own_settings(self, blocks: Blocks) -> dict[str, Any]:
        """What the method's hook is told."""

    def idle(self) -> bool:
        """Whether nothing is left to do where no token is given up."""
        return True

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Shares alone: how many tokens go matters more than how."""
        return {f"{s:g}": {"share": s} for s in (0.25, 0.4, 0.55, 0.7)}

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Every pre-norm encoder block over the same tokens, ``path:tokens``."""
        model = workload.model
        reduced = [p for p, m in model.named_modules() if isinstance(m, ReducedBlock)]
        if reduced:
            why = "its blocks give tokens up already"
            return Sites((), {site(p, workload, ROLE): why for p in reduced})
        blocks = find(workload, graph)
        refused = {site(p, workload, ROLE): why for p, why in blocks.refused.items()}
        names = tuple(site(b.path, workload, ROLE) for b in blocks.chain)
        reason = blocks.reason or self._cannot(workload, graph, blocks, names)
        if reason is not None:
            return Sites((), refused | dict.fromkeys(names, reason))
        return Sites(names, refused)

    def _cannot(
        self, workload: Workload, graph: Graph, blocks: Blocks, names: tuple[str, ...]
    ) -> str | None:
        """Why the network as a whole does not run on fewer tokens, found by running it."""
        if not names:
            return None
        try:
            plan = self._plan(workload, blocks, Sites(names))
        except NotApplicable as e:
            return str(e)
        try:
            after = self.preview(graph, Sites(names)).graph
        except CaptureError as e:
            return f"the model's code needs every token: {e}"
        shapes = [[g.tensors[t].shape for t in g.outputs] for g in (graph, after)]
        if shapes[0] != shapes[1]:
            return f"its result has one entry per token: {sum(plan.values())} would be missing"
        return None

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """How many tokens each block gives up, and what the hook needs: from shapes alone."""
        blocks = find(workload, capture(workload))
        return self._decide(workload, blocks, sites)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The very same, from the graph at hand."""
        return self._decide(workload, find(workload, graph), sites)

    def _decide(self, workload: Workload, blocks: Blocks, sites: Sites) -> Decisions:
        plan = self._plan(workload, blocks, sites)
        return Decisions(
            {
                "method": self.method,
                "settings": self.own_settings(blocks),
                "tokens": blocks.tokens,
                "prefix": blocks.prefix,
                "blocks": [
                    {
                        "path": b.path,
                        "first": list(b.first),
                        "attention": b.attention,
                        "second": list(b.second),
                        "remove": plan.get(b.path, 0),
                    }
                    for b in blocks.chain
                ],
            }
        )

    def _plan(self, workload: Workload, blocks: Blocks, sites: Sites) -> dict[str, int]:
        """Current block path -> tokens it gives up. Raises ``NotApplicable`` when none can go."""
        for name, over in sites.overrides.items():
            if alien := sorted(set(over) - {"share", "per_block"}):
                raise InputError(f"{self.name}: {alien[0]} is one for the network, not of {name}")
        acting = {p: s for s, p in paths(workload, sites.ok)}
        chain = [b.path for b in blocks.chain if b.path in acting]
        left, plan = blocks.patches, dict[str, int]()
        for i, path in enumerate(chain):
            own = self.at(sites, acting[path])
            gone = own.share * blocks.patches
            due = round(gone * (i + 1) / len(chain)) - round(gone * i / len(chain))
            plan[path] = min(own.per_block or due, max(0, self.most(left)))
            left -= plan[path]
        if chain and not sum(plan.values()) and self.idle():
            raise NotApplicable(f"{self.share:g} of {blocks.patches} patches rounds to none")
        return plan

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Put the hook on the model: nothing else changes, no weight, no name."""
        editor = Editor(workload)
        values: Mapping[str, Any] = decisions.values
        editor.attach("", "fewer_tokens", {k: values[k] for k in ("method", "settings", "blocks")})
        gone = sum(b["remove"] for b in values["blocks"])
        left = values["tokens"] - gone
        note = f"{values['tokens']} tokens enter, {left} leave ({values['prefix']} never go)"
        paths_ = {b["path"] for b in values["blocks"] if b["remove"]}
        touched = [s for s, p in paths(workload, sites.ok) if p in paths_]
        return editor.change(self, touched or sites.ok, decisions, notes=[note])
