"""Graph-based token propagation, training-free (GTP-ViT; Xu et al. 2024, arXiv:2311.03035; official
code Ackesnal/GTP-ViT).

Every block gives up the patches of the lowest score between attention and feed-forward. The score
needs no class token: the attention a patch pays itself times the attention it gets (each the
largest over heads). What goes is first added to the patches that stay, ``x += alpha A x_gone``,
along a graph that is fixed once after the patch embedding: neighbours on the grid, the most alike
patches, or both, symmetrically normalised. Sizes are sent along and enter later attention logits by
their logarithm; ``kept`` below 1 zeroes the smallest attention weights of each head's map.

Cost law: as token merging's; a block that gives up P of n patches adds P n multiply-accumulates per
channel for sending and none for matching. Attention is computed in the open (its weights are the
score), so torch's fused kernel is lost; thinning sorts n^2 weights per head and saves nothing here.

Deviations: a patch without a neighbour among those that stay sends to the nearest one on the grid
with weight 1 (``rescue``; the paper loses it); ``kept`` keeps exactly the stated share. With
``alpha=0`` it is plain pruning by the same score; ``select="random"`` ranks places by a seed, as a
control. Limits: those of token merging; the image's size is fixed when the technique is applied.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from paredown.errors import InputError
from paredown.technique import Choice
from paredown.techniques.tokens.blocks import Blocks
from paredown.techniques.tokens.common import FewerTokens


@dataclass(frozen=True)
class TokenPropagation(FewerTokens):
    """Give up patches, sending what they hold along a graph (GTP-ViT, Xu et al. 2024)."""

    name: ClassVar[str] = "token-propagation"
    paper: ClassVar[str | None] = "gtp-vit"
    method: ClassVar[str] = "propagation"

    alpha: Annotated[float, Choice(0.1, 0.3), "weight of what is sent on; 0: plain pruning"] = 0.1
    graph: Annotated[
        str, Choice("spatial", "semantic", "mixed"), "what links patches: grid, likeness, both"
    ] = "spatial"
    neighbours: Annotated[int, "most alike patches that each is linked to"] = 8
    kept: Annotated[float, Choice(1.0, 0.8), "share of each head's attention weights kept"] = 1.0
    rescue: Annotated[bool, "a patch without a linked neighbour sends to the nearest"] = True
    select: Annotated[str, "attention, or random (a control)"] = "attention"
    seed: Annotated[int, "of the random control"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        super().__post_init__()
        if self.alpha < 0:
            raise InputError(f"alpha must be at least 0, got {self.alpha}")
        if self.graph not in ("spatial", "semantic", "mixed"):
            raise InputError(f"graph {self.graph!r}: spatial, semantic or mixed")
        if not 0 < self.kept <= 1:
            raise InputError(f"kept must lie in (0, 1], got {self.kept}")
        if self.neighbours < 1:
            raise InputError(f"neighbours must be at least 1, got {self.neighbours}")
        if self.select not in ("attention", "random"):
            raise InputError(f"select {self.select!r}: attention or random")

    def most(self, patches: int) -> int:
        """All but one."""
        return patches - 1

    def idle(self) -> bool:
        """Without a token given up there is still attention to thin out, if asked."""
        return self.kept == 1

    def own_settings(self, blocks: Blocks) -> dict[str, Any]:
        """The knobs, the grid, and one score per place for the random control."""
        draw = random.Random(self.seed)
        noise = [draw.random() for _ in range(blocks.patches)] if self.select == "random" else []
        return {
            "prefix": blocks.prefix,
            "grid": list(blocks.grid),
            "alpha": self.alpha,
            "graph": self.graph,
            "neighbours": self.neighbours,
            "kept": self.kept,
            "rescue": self.rescue,
            "noise": noise,
        }
