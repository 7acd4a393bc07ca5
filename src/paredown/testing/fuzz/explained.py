"""Differences that are no fault of paredown, each with its reason; everything else is open."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from paredown.testing.fuzz.oracles import Difference

EXPLAINED: dict[str, str] = {
    "capture | needed real weights | *DataDependentOutputException*": (
        "the function looks at its values before it computes (a loss that checks its variances): "
        "capture says so and runs it with real weights, as CONTRACTS has it"
    ),
    **dict.fromkeys(
        ("bytes | aten::scatter* | *", "bytes | aten::index_* | *", "bytes | aten::masked_sc* | *"),
        "the rule counts the copy of the target and then the places written into it, which are "
        "written twice: more bytes than the result holds",
    ),
    "memory | *aten::convolution* | *torch.nn.functional.conv_transpose3d*": (
        "torch's CPU kernel makes the result in a buffer of the input's size and keeps it: a few "
        "bytes more than the result where a transposed 3-D convolution makes less than it reads"
    ),
    "memory | *_embedding_bag* | *torch.nn.functional.embedding_bag*": (
        "torch's CPU kernel makes the offsets of its bags one longer than it returns them: 8 bytes"
    ),
}
"""Pattern of kind, details and the shrunk network's calls -> why it is as it is."""


def explanation(difference: Difference, calls: Sequence[str] = ()) -> str | None:
    """The reason for a difference shown by a network of these calls; None while it is open."""
    text = f"{difference.kind} | {difference.detail} | {', '.join(calls)}"
    return next((why for p, why in EXPLAINED.items() if fnmatchcase(text, p)), None)
