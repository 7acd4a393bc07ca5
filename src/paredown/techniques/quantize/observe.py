"""Activation ranges of many modules in one streaming pass: histograms that grow by doubling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.workload import Workload

_BINS = 4096
_SAMPLE = 1 << 16
"""Values counted of one tensor at most; its extremes are taken over all of them."""


SAMPLED = 2048
"""Rows kept of one layer's inputs at least, where there are as many."""


class Histogram:
    """Counts over ``[-reach, reach]``; a wider batch doubles ``reach``, merging pairs of bins."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.reach = 0.0
        self.low, self.high = float("inf"), float("-inf")

    def add(self, x: Tensor) -> None:
        """Take in a tensor of any shape; raises ``InputError`` for NaN or infinity."""
        x = x.detach().float().reshape(-1)
        if not x.numel():
            return
        low, high = (float(v) for v in torch.aminmax(x))
        if not (low > float("-inf") and high < float("inf")):
            raise InputError("a calibration input makes it NaN or infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        widest = max(-low, high)
        if self.reach == 0.0:
            self.reach = widest
        while self.reach and widest > self.reach:
            self._double()
        # An odd step does not fall into step with channels or rows, whose sizes are mostly even.
        step = x.numel() // _SAMPLE
        x = x[:: step | 1] if step > 1 else x
        if self.reach:
            self.counts += torch.histc(x, _BINS, -self.reach, self.reach).double()
        else:
            self.counts[_BINS // 2] += x.numel()

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(dim=1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[_BINS // 4 : 3 * _BINS // 4] = merged
        self.reach *= 2

    def range(self, percentile: float) -> tuple[float, float]:
        """The interval that leaves ``100 - percentile`` percent out at either end.

        100 is minimum and maximum; never wider than what was seen.
        """
        if percentile >= 100.0 or not self.reach:
            return self.low, self.high
        below = torch.cumsum(self.counts, 0)
        total = float(below[-1])
        cut = total * (100.0 - percentile) / 100.0
        width = 2 * self.reach / _BINS
        first = int(torch.searchsorted(below, torch.tensor(cut, dtype=below.dtype), right=True))
        last = int(torch.searchsorted(below, torch.tensor(total - cut, dtype=below.dtype)))
        low = -self.reach + width * first
        high = -self.reach + width * (last + 1)
        return max(low, self.low), min(high, self.high)


class Peaks:
    """Largest absolute value and mean square of each column (the last dimension), over all rows."""

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.squares: Tensor | None = None
        self.rows = 0

    def mean_square(self) -> Tensor:
        """``(columns,)`` float64; raises ``InputError`` where nothing passed."""
        if self.squares is None:
            raise InputError("no calibration input reaches it; leave the site out")
        return self.squares / self.rows

    def sides(self) -> tuple[Tensor, Tensor]:
        """Largest absolute values and mean squares; raises as `mean_square`."""
        squares = self.mean_square()
        assert self.values is not None
        return self.values, squares

    def add(self, x: Tensor) -> None:
        """Take in ``(..., columns)``; raises ``InputError`` for NaN or infinity."""
        x = x.detach().float().reshape(-1, x.shape[-1])
        if not x.numel():
            return
        peaks = x.abs().amax(dim=0)
        if not bool(torch.isfinite(peaks).all()):
            raise InputError("a calibration input makes it NaN or infinite")
        self.values = peaks if self.values is None else torch.maximum(self.values, peaks)
        squares = x.square().sum(dim=0, dtype=torch.float64)
        self.squares = squares if self.squares is None else self.squares + squares
        self.rows += len(x)


class Rows:
    """A sample of the rows (all but the last dimension flattened) of what passes, evenly spread.

    Holds `SAMPLED` to twice as many float32 rows; a full sample loses every second one.
    """

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.parts: list[Tensor] = []
        self.step, self.seen, self.count = 1, 0, 0

    def add(self, x: Tensor) -> None:
        """Take in ``(..., columns)``; raises ``InputError`` for NaN or infinity."""
        self.histogram.add(x)
        x = x.detach().float().reshape(-1, x.shape[-1])
        first = -self.seen % self.step
        self.seen += len(x)
        taken = x[first :: self.step].clone()
        if not len(taken):
            return
        self.parts.append(taken)
        self.count += len(taken)
        if self.count >= 2 * SAMPLED:
            whole = torch.cat(self.parts)[::2]
            # What is held are rows 0, step, 2 step ...: with every second gone, of twice the step.
            self.parts, self.count, self.step = [whole], len(whole), 2 * self.step

    @property
    def values(self) -> Tensor:
        """``(rows, columns)``; raises ``InputError`` where nothing passed."""
        if not self.parts:
            raise InputError("no calibration input reaches it; leave the site out")
        return torch.cat(self.parts)


def input_rows(workload: Workload, at: Iterable[str]) -> dict[str, Rows]:
    """Samples of the first input of each module in ``at``; raises as `input_histograms`."""
    return _inputs(workload, {path: Rows() for path in at})


def input_histograms(
    workload: Workload, at: Iterable[str], divided: Mapping[str, Tensor] | None = None
) -> dict[str, Histogram]:
    """Histograms of the first input of each module in ``at`` over the calibration inputs.

    ``divided`` holds factors by path that columns are divided by before they are counted. Raises
    ``InputError`` without calibration items, or naming the module where one overflows.
    """
    return _inputs(workload, {path: Histogram() for path in at}, divided)


def input_peaks(workload: Workload, at: Iterable[str]) -> dict[str, Peaks]:
    """Largest values by column of the first input of each module; raises as
    `input_histograms`.
    """
    return _inputs(workload, {path: Peaks() for path in at})


Seen = TypeVar("Seen", Histogram, Peaks, Rows)


def _inputs(
    workload: Workload, seen: dict[str, Seen], divided: Mapping[str, Tensor] | None = None
) -> dict[str, Seen]:
    copy = workload.copy()
    copy.model.eval()

    def watch(path: str) -> Any:
        def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if divided and path in divided:
                x = (x / divided[path]).to(x.dtype)
            try:
                seen[path].add(x)
            except InputError as e:
                raise InputError(f"{path}: {e}; look at the data or leave the site out") from None

        return pre

    for path in seen:
        copy.model.get_submodule(path).register_forward_pre_hook(watch(path), with_kwargs=True)
    items = 0
    with torch.inference_mode():
        for args, kwargs in copy.calibration_inputs():
            copy.once((args, kwargs))
            items += 1
    if not items:
        raise InputError("calibration data is empty")
    return seen
