"""Token merging, training-free (ToMe; Bolya et al. 2023, arXiv:2210.09461; official code
facebookresearch/ToMe).

Every block merges the most alike of its patch tokens between attention and feed-forward: bipartite
soft matching on the keys, averages weighted by size, the sizes' logarithm in later attention logits
(proportional attention). Class tokens take no part.

Cost law: a block on n of N tokens costs n / N of its linear layers and (n / N)^2 of its attention
products; matching adds (n / 2)^2 multiply-accumulates per key channel.

Deviations: class tokens stand outside of the two sets instead of in them with a score of minus
infinity (the same pairs); the sources left are in order with or without a class token; ``share``
spreads what goes evenly over the blocks, which is the paper's constant r where it divides. Limits:
pre-norm encoder blocks that call torch's scaled dot product attention; the number of tokens given
up is fixed when the technique is applied; a model that averages its tokens averages merged ones
once each; dropout and stochastic depth of the blocks are off while recovery trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from paredown.techniques.tokens.blocks import Blocks
from paredown.techniques.tokens.common import FewerTokens


@dataclass(frozen=True)
class TokenMerging(FewerTokens):
    """Merge alike tokens of a vision transformer, block by block (Bolya et al. 2023)."""

    name: ClassVar[str] = "token-merging"
    paper: ClassVar[str | None] = None
    method: ClassVar[str] = "merging"

    def most(self, patches: int) -> int:
        """Half of the patches are sources."""
        return patches // 2

    def own_settings(self, blocks: Blocks) -> dict[str, Any]:
        """How many tokens in front are no patches."""
        return {"prefix": blocks.prefix}
