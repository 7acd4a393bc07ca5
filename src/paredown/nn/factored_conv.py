"""Convolutions built factored: a kernel as a sum of one-way filters (arXiv:2304.04964).

Boukraichi et al. 2023 train the factors from the start, so no full kernel is ever learnt. Their
exact arrangement is not certain, so the three that fit are here: the SVD of every 2-D kernel
("per-kernel"), of the whole layer ("shared"), and the canonical polyadic form ("cp").
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from paredown.errors import InputError

Form = Literal["per-kernel", "shared", "cp"]


class FactoredConv2d(nn.Module):
    """A "same" ``kernel x kernel`` convolution as one-way convolutions without anything between.

    Weights by ``form`` for rank R: "per-kernel" ``inputs * outputs * R * 2k``, each kernel being
    ``sum_r u_r v_r^T``; "shared" ``R * k * (inputs + outputs)``, through R channels; "cp"
    ``R * (inputs + outputs + 2k)``. The start has the variance of He initialisation (fan in).
    Raises ``InputError`` for an even kernel or a rank below 1.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, rank: int, *, form: Form = "shared"
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or rank < 1:
            raise InputError(f"needs an odd kernel and a rank of at least 1, got {kernel}, {rank}")
        self.inputs, self.outputs, self.kernel = inputs, outputs, kernel
        self.rank, self.form = rank, form
        side = kernel // 2

        def conv(i: int, o: int, size: tuple[int, int], groups: int, *, bias: bool) -> nn.Conv2d:
            reach = (side if size[0] > 1 else 0, side if size[1] > 1 else 0)
            return nn.Conv2d(i, o, size, padding=reach, groups=groups, bias=bias)

        row, column = (1, kernel), (kernel, 1)
        if form == "per-kernel":
            inner = inputs * outputs * rank
            steps = [
                conv(inputs, inner, row, inputs, bias=False),
                conv(inner, outputs, column, outputs, bias=True),
            ]
        elif form == "shared":
            steps = [
                conv(inputs, rank, row, 1, bias=False),
                conv(rank, outputs, column, 1, bias=True),
            ]
        else:
            steps = [
                conv(inputs, rank, (1, 1), 1, bias=False),
                conv(rank, rank, row, rank, bias=False),
                conv(rank, rank, column, rank, bias=False),
                conv(rank, outputs, (1, 1), 1, bias=True),
            ]
        self.steps = nn.Sequential(*steps)
        self._init()

    def _convs(self) -> list[nn.Conv2d]:
        return [step for step in self.steps if isinstance(step, nn.Conv2d)]

    @torch.no_grad()
    def _init(self) -> None:
        """Each step keeps the variance of its input but the last, which has He's gain."""
        steps = self._convs()
        for i, step in enumerate(steps):
            fan = step.weight[0].numel()
            gain = 2.0 if i == len(steps) - 1 else 1.0
            step.weight.normal_(0, (gain / fan) ** 0.5)
            if step.bias is not None:
                step.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        if self.form == "per-kernel":
            first, last = self._convs()
            # From channels (input, output, rank) to (output, input, rank), as the groups read.
            x = first(x).unflatten(1, (self.inputs, self.outputs, self.rank))
            return last(x.transpose(1, 2).flatten(1, 3))
        return self.steps(x)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv2d:
        """The one convolution it equals."""
        steps = self._convs()
        w: list[Tensor] = [step.weight for step in steps]
        k = self.kernel
        if self.form == "per-kernel":
            v = w[0].reshape(self.inputs, self.outputs, self.rank, k)
            u = w[1].reshape(self.outputs, self.inputs, self.rank, k)
            weight = torch.einsum("oirh,iorw->oihw", u, v)
        elif self.form == "shared":
            weight = torch.einsum("orh,riw->oihw", w[1][..., 0], w[0][:, :, 0])
        else:
            weight = torch.einsum(
                "ri,rw,rh,or->oihw",
                w[0][:, :, 0, 0],
                w[1][:, 0, 0],
                w[2][:, 0, :, 0],
                w[3][:, :, 0, 0],
            )
        out = nn.Conv2d(self.inputs, self.outputs, k, padding=k // 2).to(weight)
        out.weight.copy_(weight)
        bias = steps[-1].bias
        assert bias is not None
        assert out.bias is not None
        out.bias.copy_(bias)
        return out

    @classmethod
    @torch.no_grad()
    def from_dense(cls, conv: nn.Conv2d, rank: int, *, form: Form = "shared") -> FactoredConv2d:
        """The nearest factored form of a given convolution, by singular values.

        Exact at full rank: ``k`` per kernel, ``k * min(inputs, outputs)`` shared. Raises
        ``InputError`` for "cp", which has no closed solution, and for a convolution that is not
        square, odd, ungrouped and "same" at stride 1.
        """
        out_channels, in_channels, k, wide = conv.weight.shape
        plain = (conv.groups, conv.stride, conv.dilation, conv.padding)
        if form == "cp":
            raise InputError('the "cp" form has no closed solution: train it from the start')
        if k != wide or plain != (1, (1, 1), (1, 1), (k // 2, k // 2)):
            raise InputError(f"only square ungrouped convolutions at stride 1 factor, got {conv}")
        out = cls(in_channels, out_channels, k, rank, form=form).to(conv.weight)
        first, last = out._convs()
        if form == "per-kernel":
            u, s, vt = torch.linalg.svd(conv.weight.double(), full_matrices=False)
            u, s, vt = _cut(u, s, vt, rank)
            root = s.sqrt()
            rows = (root.unsqueeze(-1) * vt).transpose(0, 1)
            columns = (u * root.unsqueeze(-2)).transpose(-1, -2)
            first.weight.copy_(rows.reshape(first.weight.shape))
            last.weight.copy_(columns.reshape(last.weight.shape))
        else:
            matrix = conv.weight.double().permute(0, 2, 1, 3).reshape(out_channels * k, -1)
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            u, s, vt = _cut(u, s, vt, rank)
            root = s.sqrt()
            rows = (root.unsqueeze(-1) * vt).reshape(rank, in_channels, 1, k)
            columns = (u * root).reshape(out_channels, k, rank).transpose(1, 2)
            first.weight.copy_(rows)
            last.weight.copy_(columns.unsqueeze(-1))
        assert last.bias is not None
        if conv.bias is not None:
            last.bias.copy_(conv.bias)
        return out


def _cut(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading ``rank`` terms, padded with zeros beyond the full rank."""
    have = s.shape[-1]
    if rank > have:
        pad = rank - have
        s = nn.functional.pad(s, (0, pad))
        u = nn.functional.pad(u, (0, pad))
        vt = nn.functional.pad(vt, (0, 0, 0, pad))
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]
