"""Patch-by-patch inference of the early stage (MCUNetV2; Lin et al. 2021, arXiv:2110.15352).

A CNN's first maps are the largest and decide what a run must hold. Computed tile by tile of a later
map, none of them exists whole: peak memory falls to what the rest of the network needs. The price
is the overlap of the tiles' inputs, computed once per tile. Results are the same: padding stays at
the image's border, every value is computed from the same numbers.

Where the stage ends is chosen from the captured run: every operator behind which one map alone is
needed is a candidate, in any wiring of convolutions, pools, sums, concatenations and pointwise
operators (`stages`); the one with the lowest peak is taken, the least extra work among equals.

Cost law: peak and extra multiply-accumulates as `peak` counts them. Small convolutions also run at
a lower rate: a patched network is slower, and this technique claims memory alone.

Deviations: the paper searches network and schedule together under the memory of a microcontroller;
here the schedule is fitted to a given network. Redistributing the receptive field changes the
network and needs training: `zoo.mobilenetv2.REDISTRIBUTED`. The paper's depthwise convolutions
overwrite their input; here only what the model itself does in place is. Limits: maps of images
``(batch, channels, height, width)``; a squeeze-and-excitation, an attention or a norm over the
image ends the stage; every module of the stage takes one map and gives one; while training, the
model runs as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from paredown.editing import Editor
from paredown.errors import CaptureError, InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.graph.liveness import liveness
from paredown.runtime.patched import PatchedUnit
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
from paredown.techniques.schedule.peak import Cost, cost, later
from paredown.techniques.schedule.stages import Cut, Found, find
from paredown.workload import Workload

ROLE = "patches"
TILES = (2, 3, 4, 5, 6, 7, 8)
"""Tiles along a side that are tried under a limit."""
WORTH = 0.95
"""A peak must fall below this share of the whole network's."""
ALIKE = 1.02
"""Peaks within this factor count as equal: then the least extra work decides."""


@dataclass(frozen=True)
class Patches(Rewrite):
    """Run the early stage of a CNN patch by patch: the same results from less memory."""

    name: ClassVar[str] = "patches"
    paper: ClassVar[str | None] = "mcunetv2"
    family: ClassVar[str] = "schedule"
    stage: ClassVar[Stage] = Stage.RUN
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.SCHEDULE})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.MEMORY})
    maturity: ClassVar[Any] = "stable"

    tiles: Annotated[int, Choice(2, 3, 4, 7), "tiles along each side of the stage's result"] = 4
    limit: Annotated[
        int, "bytes a run may allocate, for the least extra work; 0: few as can be"
    ] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if self.tiles < 2:
            raise InputError(f"patches: tiles must be at least 2, got {self.tiles}")
        if self.limit < 0:
            raise InputError(f"patches: limit must not be negative, got {self.limit}")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Tiles alone: with each, the stage of the lowest peak."""
        return {f"{n}x{n}": {"tiles": n} for n in (2, 4, 7)}

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Every module that the early stage may hold, ``path:patches``: where it ends is chosen."""
        model = workload.model
        done = [p for p, m in model.named_modules() if isinstance(m, PatchedUnit)]
        if done:
            why = "its early stage runs in patches already"
            return Sites((), {site(p, workload, ROLE): why for p in done})
        if workload.run != "forward":
            return Sites((), {f":{ROLE}": f"a run of {workload.run!r} is not one pass of an image"})
        found = find(graph)
        names = {site(u.path, workload, ROLE): None for c in found.cuts for u in c.units}
        try:
            self._choose(graph, found, found.cuts)
            self._runs(graph, Sites(tuple(names)))
        except NotApplicable as e:
            return Sites((), dict.fromkeys(names or [f":{ROLE}"], str(e)))
        return Sites(tuple(names))

    def _runs(self, graph: Graph, sites: Sites) -> None:
        """Raise ``NotApplicable`` where the model's own code does not run on stand-ins."""
        try:
            after = self.preview(graph, sites).graph
        except (CaptureError, InputError) as e:
            raise NotApplicable(f"the model's code needs its early maps: {e}") from None
        shapes = [[g.tensors[t].shape for t in g.outputs] for g in (graph, after)]
        if shapes[0] != shapes[1]:
            raise NotApplicable("the model's result holds its early maps")

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Where the stage ends and its program: from shapes alone."""
        return self.assume(workload, capture(workload), sites)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The very same, from the graph at hand."""
        if sites.overrides:
            raise InputError("patches: its settings are of the network, not of a site")
        may = {p for _, p in paths(workload, sites.ok)}
        found = find(graph)
        cuts = [c for c in found.cuts if all(u.path in may for u in c.units)]
        tiles, chosen, price = self._choose(graph, found, cuts)
        return Decisions(
            {
                "stage": chosen.stage.to_json(),
                "tiles": tiles,
                "units": [[u.path, u.channels, u.dtype] for u in chosen.units],
                "peak": price.peak,
                "overhead": round(price.overhead, 6),
            }
        )

    def _choose(self, graph: Graph, found: Found, cuts: list[Cut]) -> tuple[int, Cut, Cost]:
        """Tiles, stage and its cost. Raises ``NotApplicable`` where none lowers the peak."""
        before = liveness(graph)
        after = [later(graph, c) for c in cuts]
        every: list[tuple[int, Cut, Cost]] = []
        for tiles in TILES if self.limit else (self.tiles,):
            for c, rest in zip(cuts, after, strict=True):
                if rest > WORTH * before.high_water:
                    continue
                try:
                    every.append((tiles, c, cost(graph, c, tiles, rest)))
                except InputError:
                    # A tile of this cut lies in padding alone: it is no candidate.
                    continue
        if not cuts:
            raise NotApplicable(f"no early stage to compute in patches: {found.reason}")
        if not every:
            raise NotApplicable("its peak lies behind any stage that patches could compute")
        least = min(e[2].peak for e in every)
        if least > WORTH * before.high_water:
            raise NotApplicable(
                f"patches would not lower its peak: {least} of {before.high_water} bytes are left"
            )
        if self.limit and least > self.limit:
            raise NotApplicable(f"no schedule fits {self.limit} bytes: {least} are the fewest")
        most = self.limit or ALIKE * least
        fitting = [e for e in every if e[2].peak <= most]

        def order(e: tuple[int, Cut, Cost]) -> tuple[int, int, int]:
            # Of equal ends, one that is a whole block's.
            return e[2].patched_macs - e[2].stage_macs, e[2].peak, len(e[1].units)

        return min(fitting, key=order)

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Put the hook on the model: no weight and no name changes."""
        values: Mapping[str, Any] = decisions.values
        editor = Editor(workload)
        editor.attach("", "patched", {k: values[k] for k in ("stage", "tiles", "units")})
        units = {u[0] for u in values["units"]}
        note = (
            f"{values['tiles']} x {values['tiles']} patches up to {values['units'][-1][0]}: "
            f"a run allocates {values['peak'] / 2**20:.2f} MiB at most (counted), "
            f"{100 * values['overhead']:.1f} % of the network's work is done again"
        )
        touched = [s for s, p in paths(workload, sites.ok) if p in units]
        return editor.change(self, touched or sites.ok, decisions, notes=[note])
