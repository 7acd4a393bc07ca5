"""What expert parallelism moves: the all-to-all time bound of decoding, copies between nodes.

Insights into DeepSeek-V3 (Zhao et al. 2025, arXiv:2505.09343), section 2.3: every layer sends each
token to its experts (dispatch, FP8) and their results back (combine, BF16); two micro-batches take
turns, so a layer takes no less than two exchanges. Section 4.3: routing limited to few nodes sends
a token over the network once per node instead of once per expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

from paredown.cost.serving.model import Experts, LanguageModel
from paredown.errors import InputError, NotApplicable


@dataclass(frozen=True)
class Exchange:
    """Tokens per device and micro-batch, and the bytes of one value each way."""

    tokens: int = 32
    dispatch_bytes: float = 1.0
    combine_bytes: float = 2.0

    def nbytes(self, model: LanguageModel, hidden: int | None = None) -> float:
        """Bytes that one device sends for one layer's dispatch and combine.

        ``hidden`` replaces the model's width (the paper rounds 7168 to 7000). Raises
        ``NotApplicable`` for a model without experts.
        """
        e = model.experts
        if e is None:
            raise NotApplicable(f"{model.name} has no experts: nothing is exchanged")
        copies = self.tokens * (e.active + e.shared)
        return (self.dispatch_bytes + self.combine_bytes) * copies * (hidden or model.hidden)

    def seconds(self, model: LanguageModel, bytes_s: float, hidden: int | None = None) -> float:
        """Seconds of one layer's dispatch and combine over a link of ``bytes_s`` per device."""
        if not bytes_s > 0:
            raise InputError(f"a link's bandwidth must be above 0, got {bytes_s}")
        return self.nbytes(model, hidden) / bytes_s

    def token_seconds(
        self, model: LanguageModel, bytes_s: float, hidden: int | None = None
    ) -> float:
        """Seconds per output token that no overlap can go below (section 2.3.2).

        Compute of one micro-batch hides behind the exchange of the other. Dense layers are counted
        as the paper does, as if they exchanged too.
        """
        return model.layers * 2 * self.seconds(model, bytes_s, hidden)


def nodes_reached(experts: Experts) -> float:
    """Groups (nodes) that the experts of one token lie in on average, without a limit.

    Exact for experts drawn alike without replacement: each group is missed with the share of draws
    that avoid it.
    """
    each = experts.routed // experts.groups
    avoid = comb(experts.routed - each, experts.active) / comb(experts.routed, experts.active)
    return experts.groups * (1 - avoid)


def network_copies(experts: Experts) -> dict[str, float]:
    """Copies of one token that cross the network: per expert, per node, and per node at most.

    Section 4.3: 8 t, then (with copies within a node by NVLink) at most ``limit`` t.
    """
    most = float(experts.limit or min(experts.groups, experts.active))
    return {
        "per expert": float(experts.active),
        "per node": nodes_reached(experts),
        "at most": min(most, float(experts.active)),
    }


def speculative_gain(acceptance: float, *, extra: float = 0.0) -> float:
    """Tokens per second with one further token predicted, relative to none (section 2.3.3).

    A step yields 1 + acceptance tokens and takes 1 + ``extra`` of its time.
    """
    if not 0 <= acceptance <= 1 or extra < 0:
        raise InputError(f"acceptance lies in [0, 1] and extra above 0, got {acceptance}, {extra}")
    return (1 + acceptance) / (1 + extra)
