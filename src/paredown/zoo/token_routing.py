"""RoutedViT: every token finds its own way through layers and scales (DiT: Ma et al. 2023,
arXiv:2308.03409; not the diffusion transformer).

A routing space of layers by scales of strides 4, 8, 16, 32: at each node a token's gates decide
whether a block transforms it, whether it stays at its scale, and whether it goes down to the next
(both is possible; with neither, its way is over: early stop). Arrivals at a node are summed. The
classifier sees the mean of the tokens that ended, scale by scale.

The authors' repository holds no code, and the abstract gives the only published count (B5: 10.3
GFLOPs), so no named size is in the zoo's table. Ours: gates are hard, their gradients a sigmoid's,
and Gumbel noise is off, as it cost 9 points or more in the few hundred steps of the claim card; a
token that does not go down adds zeros to its cell of four; tokens without an open scaling gate end,
transformed by the block or not; blocks are PVT v2's (arXiv:2106.13797) without the convolution in
the MLP, as a token's neighbours may be gone, and positions are fixed sines after a convolution of
stride ``patch``; the budget term is the squared distance of the batch's mean share of work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.varying import shapes_alone
from paredown.nn.embed import patches, sincos_2d
from paredown.nn.features import need_size
from paredown.nn.init import small_init
from paredown.nn.token_routing import OPEN, Node, ReducedBlock, Went, Work

Arrivals = tuple[Tensor, Tensor]
"""Tokens ``(batch, n, channels)`` and where they are ``(batch, n, 1)``; absent ones are zeros."""
VARIES = "every token takes the way that its gates choose"


class RoutedViT(nn.Module):
    """A routing space for ``(batch, in_channels, image_size, image_size)`` images.

    ``widths`` are the channels of the scales, ``layers`` the nodes of the longest way; a node at
    scale s exists from layer s on. Returns logits ``(batch, num_classes)``; while training
    ``(logits, share)``, the share ``(batch,)`` of its full work that each image took, for `loss`.
    In evaluation only open paths are computed. With ``routed=False`` it is the static network
    that takes all paths, without gates. Raises ``InputError`` for sizes that do not divide.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 320, 512),
        layers: int = 8,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 224,
        patch: int = 4,
        heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        ratios: Sequence[float] = (8, 8, 4, 4),
        routed: bool = True,
    ) -> None:
        super().__init__()
        scales = len(widths)
        if not len(heads) == len(reductions) == len(ratios) == scales or layers < scales:
            raise InputError(
                f"{scales} widths, {len(heads)} heads, {len(reductions)} reductions, "
                f"{len(ratios)} ratios and {layers} layers: as many of each, layers not fewer"
            )
        side = patches(image_size, patch)
        if side % 2 ** (scales - 1):
            raise InputError(
                f"{scales} scales of a map of {side}: image_size must be a multiple of "
                f"{patch * 2 ** (scales - 1)}"
            )
        self.image_size, self.widths, self.routed = image_size, tuple(widths), routed
        self.varies = VARIES if routed else None
        self.stem = nn.Conv2d(in_channels, widths[0], 2 * patch - 1, patch, patch - 1)
        self.stem_norm = nn.LayerNorm(widths[0])
        self.register_buffer("position", sincos_2d(side, widths[0]), persistent=False)
        self.nodes = nn.ModuleList(
            nn.ModuleList(
                Node(
                    ReducedBlock(widths[s], heads[s], side >> s, reductions[s], ratios[s]),
                    widths[s],
                    widths[s + 1] if s + 1 < scales else None,
                    last=layer == layers - 1,
                    gated=routed,
                )
                for s in range(min(layer + 1, scales))
            )
            for layer in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.head = nn.Linear(sum(widths), num_classes)
        self.apply(small_init)
        for node in self._all():
            if node.gate is not None:
                nn.init.constant_(node.gate.proj.bias, OPEN)
        kernel = in_channels * (2 * patch - 1) ** 2
        self.fixed_macs = side**2 * widths[0] * kernel + sum(widths) * num_classes
        """MACs of the stem and the classifier."""
        self.full_macs = self.fixed_macs + sum(_full_macs(node) for node in self._all())
        """MACs of an image whose tokens take every path."""

    position: Tensor

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images to logits, or to logits and shares."""
        if self.training and self.routed:
            logits, macs = self.route(x, gathered=False)
            return logits, (macs / self.full_macs).to(logits.dtype)
        # Fake tensors have no gates to look at: every path is run, for its expected share.
        return self._walk(x, gathered=self.routed and not shapes_alone(x))[0]

    def route(self, x: Tensor, *, gathered: bool) -> tuple[Tensor, Tensor]:
        """Logits and each image's MACs ``(batch,)``, by the budget's formula.

        The formula: the stem and the classifier, and for every node its counts of each kind of
        `nn.token_routing.Work` times the MACs of one. Masked execution (``gathered`` False) is
        differentiable in the gates and computes everything.
        """
        logits, went = self._walk(x, gathered=gathered)
        macs = logits.new_full((len(x),), self.fixed_macs, dtype=torch.float64)
        for node, one in went:
            counts = one.counts()
            macs = macs + (counts * counts.new_tensor(astuple(node.macs))).sum(1)
        return logits, macs

    @torch.no_grad()
    def macs(self, images: Tensor) -> Tensor:
        """MACs ``(batch,)`` of each image as evaluation runs it."""
        return self.route(images, gathered=self.routed)[1]

    @torch.no_grad()
    def expect(self, batches: Iterable[Tensor]) -> None:
        """Take the shares of work that a preview is to expect from batches of images.

        Raises ``InputError`` where there are none.
        """
        counts: dict[Node, Tensor] = {}
        images = 0
        for batch in batches:
            images += len(batch)
            for node, one in self._walk(batch, gathered=self.routed)[1]:
                counts[node] = one.counts().sum(0) + counts.get(node, 0)
        if not images:
            raise InputError("RoutedViT: no images to take the expected shares of work from")
        for node, sums in counts.items():
            full = sums.new_tensor(astuple(node.full)).clamp(min=1)
            node.expected = Work(*(sums / images / full).tolist())

    def _walk(self, x: Tensor, *, gathered: bool) -> tuple[Tensor, list[tuple[Node, Went]]]:
        """Logits, and what every node did in the order that they ran."""
        need_size(x, network="RoutedViT", exactly=self.image_size)
        x = self.stem_norm(self.stem(x).flatten(2).mT) + self.position
        here: list[Arrivals] = [(x, torch.ones_like(x[..., :1]))]
        ended: list[Arrivals | None] = [None] * len(self.widths)
        went: list[tuple[Node, Went]] = []
        for layer in self.nodes:
            coming: list[Arrivals | None] = [None] * (len(here) + 1)
            for s, node in enumerate(_nodes(layer)):
                one: Went = node(*here[s], gathered=gathered)
                went.append((node, one))
                ended[s] = _joined(ended[s], one.x * one.ends, one.ends)
                coming[s] = _joined(coming[s], one.x * one.stays, one.stays)
                if one.lower is not None and one.below is not None:
                    coming[s + 1] = (one.lower, one.below)
            here = [arrivals for arrivals in coming if arrivals is not None]
        pooled = [
            (norm(tokens) * there).sum(1) / there.sum(1).clamp(min=1)
            for norm, (tokens, there) in zip(self.norms, (e for e in ended if e), strict=True)
        ]
        return self.head(torch.cat(pooled, 1)), went

    def _all(self) -> Iterator[Node]:
        for layer in self.nodes:
            yield from _nodes(layer)


def loss(
    out: Tensor | tuple[Tensor, Tensor], target: Tensor, *, budget: float, weight: float = 1.0
) -> Tensor:
    """Cross-entropy and ``weight`` times the squared distance of the mean share from ``budget``.

    ``out`` is what a `RoutedViT` returns while training.
    """
    if isinstance(out, Tensor):
        return F.cross_entropy(out, target)
    logits, share = out
    return F.cross_entropy(logits, target) + weight * (share.mean() - budget).square()


def _nodes(layer: nn.Module) -> Iterator[Node]:
    for node in layer.children():
        assert isinstance(node, Node)
        yield node


def _joined(so_far: Arrivals | None, tokens: Tensor, there: Tensor) -> Arrivals:
    """The sum of tokens that arrive at the same places; present where any of them is."""
    if so_far is None:
        return tokens, there
    return so_far[0] + tokens, torch.maximum(so_far[1], there)


def _full_macs(node: Node) -> int:
    """MACs of a node whose gates are all open."""
    each = zip(astuple(node.full), astuple(node.macs), strict=True)
    return sum(round(count * macs) for count, macs in each)
