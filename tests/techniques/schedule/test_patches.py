"""Patches: the same results for any tiles, ends and sizes; less memory, counted and allocated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.liveness import liveness
from paredown.runtime.export import export
from paredown.runtime.native.lower import lower
from paredown.runtime.patches import Schedule, Window, cut
from paredown.technique import Sites
from paredown.techniques.schedule import in_place
from paredown.techniques.schedule.patches import Patches
from paredown.techniques.schedule.peak import cost
from paredown.techniques.schedule.stages import find
from paredown.testing.networks import build
from paredown.workload import Workload
from paredown.zoo.mobilenetv2 import MobileNetV2


class Branched(nn.Module):
    """Strides, a dilated, a grouped and an even kernel, three kinds of joins, own code between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.left = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.right = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.short = nn.Conv2d(16, 12, 1, 2)
        self.long = nn.Conv2d(16, 12, 3, 2, 1)
        self.mean = nn.AvgPool2d(2, 1, 1)
        self.even = nn.Conv2d(12, 6, 2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, 5)``."""
        x = F.hardswish(self.pool(self.stem(x)))
        x = torch.cat([self.left(x) + x, torch.sigmoid(self.right(x))], 1)
        x = F.relu6(self.short(x) + self.long(x))
        return self.head(self.even(self.mean(x)).mean((2, 3)))


class Squeezed(nn.Module):
    """A mean over the image gates its first map: no stage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, 2)``."""
        x = x * x.mean((2, 3), keepdim=True)
        x = x.softmax(2)
        return self.head(self.conv(x).mean((2, 3)))


def branched(side: tuple[int, int] = (63, 50), dtype: torch.dtype = torch.float64) -> Workload:
    """Seeded, odd sizes, statistics that are not one and zero."""
    torch.manual_seed(0)
    model = Branched().eval().to(dtype)
    nn.init.uniform_(model.stem[1].running_mean, -0.5, 0.5)
    return Workload(model, (torch.randn(2, 3, *side, dtype=dtype),), name="branched")


def patched(workload: Workload, **settings: int) -> Workload:
    """The workload in patches."""
    technique = Patches(**settings)
    return technique.apply(workload, technique.sites(workload, capture(workload))).workload


def test_every_end_and_number_of_tiles_gives_the_stage_itself() -> None:
    workload = branched((39, 34))
    graph, model = capture(workload), workload.model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    cuts = find(graph).cuts
    assert len(cuts) >= 6
    for c in cuts:
        kept: list[Tensor] = []
        last = model.get_submodule(c.units[-1].path)
        hook = last.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out.clone()))
        with torch.inference_mode():
            model(*workload.inputs)
            hook.remove()
            for tiles in (1, 3):
                x = workload.inputs[0].clone()
                got = Schedule(c.stage, tiles).run(x, tensors.__getitem__)
                torch.testing.assert_close(got, kept[-1], rtol=0, atol=1e-13)


def test_a_patched_model_gives_the_same_at_every_size_and_trains_as_it_was() -> None:
    workload = branched()
    after = patched(workload, tiles=3)
    for side in ((63, 50), (40, 40), (47, 33)):
        x = torch.randn(1, 3, *side, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(after.model(x), workload.model(x), rtol=0, atol=1e-12)
    x = workload.inputs[0]
    torch.testing.assert_close(after.model.train()(x), workload.model.train()(x), rtol=0, atol=0)


def test_bytes_and_work_are_what_the_captured_run_allocates_and_does() -> None:
    workload = branched((96, 96), torch.float32)
    graph = capture(workload)
    change = Patches(tiles=4).apply(workload, Patches(tiles=4).sites(workload, graph))
    after = capture(change.workload)
    values = change.decisions.values
    high = liveness(after).high_water
    assert high < 0.6 * liveness(graph).high_water
    # Stand-ins and a pool's indices are not counted.
    assert values["peak"] <= high * 1.05
    assert high <= values["peak"] * 1.35
    assert after.macs / graph.macs - 1 == pytest.approx(values["overhead"], abs=1e-5)


def test_one_tile_costs_nothing_and_more_tiles_cost_more_work() -> None:
    graph = capture(branched((96, 96)))
    c = find(graph).cuts[-2]
    extra = [cost(graph, c, n).overhead for n in (1, 2, 4, 8)]
    assert extra[0] == 0
    assert extra == sorted(extra)
    assert extra[1] < extra[-1]


def test_a_limit_is_kept_with_the_least_work_or_refused() -> None:
    workload = branched((96, 96))
    graph = capture(workload)
    sites = Patches().sites(workload, graph)
    least = Patches(tiles=8).assume(workload, graph, sites).values
    loose = int(least["peak"] * 1.5)
    chosen = Patches(limit=loose).assume(workload, graph, sites).values
    assert chosen["peak"] <= loose
    assert chosen["overhead"] <= least["overhead"]
    with pytest.raises(NotApplicable, match="are the fewest"):
        Patches(limit=10).assume(workload, graph, sites)


def test_modules_kept_out_stay_out_of_the_stage() -> None:
    workload = branched((96, 96))
    graph = capture(workload)
    sites = Patches().sites(workload, graph)
    kept = sites.only(["*"], ["long:*", "short:*"])
    units = {u[0] for u in Patches().assume(workload, graph, kept).values["units"]}
    assert not units & {"long", "short"}


def test_refusals_say_why() -> None:
    squeezed = Workload(Squeezed().eval(), (torch.randn(1, 3, 16, 16),))
    found = Patches().sites(squeezed, capture(squeezed))
    assert not found.ok
    twice = patched(branched())
    assert "already" in next(iter(Patches().sites(twice, capture(twice)).refused.values()))
    vit = build("vit")
    assert not Patches().sites(vit, capture(vit)).ok
    with pytest.raises(InputError, match="at least 2"):
        Patches(tiles=1)
    with pytest.raises(NotApplicable):
        Patches().apply(squeezed, Sites(()))


def test_mobilenetv2_needs_the_bytes_that_the_paper_counts() -> None:
    with torch.device("meta"):
        model = MobileNetV2().eval()
    graph = capture(Workload(model, (torch.zeros(1, 3, 224, 224, device="meta"),)))
    c = next(c for c in find(graph).cuts if c.units[-1].path == "blocks.3")
    assert in_place.layerwise(graph) == 1372 * 1024
    assert in_place.patched(graph, c, 4) == 171.5 * 1024
    rows, columns = Schedule(c.stage, 4).walks(224, 224)
    sides = {b - a for w in (*rows, *columns) for a, b in [w.need[c.stage.start]]}
    assert max(sides) == 75
    assert cost(graph, c, 4).overhead == pytest.approx(0.10, abs=0.01)


def test_windows_follow_torch() -> None:
    for size, stride, pad, dilation in ((3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 2, 2), (2, 2, 0, 1)):
        w = Window(size, stride, pad, pad, dilation)
        for n in (11, 12, 17):
            x = torch.zeros(1, 1, n, n)
            got = F.conv2d(x, torch.zeros(1, 1, size, size), None, stride, pad, dilation)
            assert w.length(n) == got.shape[2]
            (low, high), (before, after) = w.reads((0, w.length(n)), n)
            assert (low, before) == (0, pad)
            assert after <= pad
            assert high <= n
    assert [b - a for a, b in cut(10, 4)] == [2, 3, 3, 2]
    assert len(cut(3, 8)) == 3


def test_the_native_engine_gives_the_same_bits_from_a_smaller_arena() -> None:
    from paredown.runtime import backend

    if backend("native").available() is not None:
        pytest.skip("no native engine here")
    workload = branched((96, 96), torch.float32)
    workload.model.mean = nn.Identity()
    after = patched(workload, tiles=3)
    plans = [lower(export(w), "branched")[0] for w in (workload, after)]
    assert plans[1].arena_bytes < 0.75 * plans[0].arena_bytes
    # Convolutions and maxima pad themselves.
    assert not [s.fallback for s in plans[1].steps if s.fallback and "padding" in s.fallback]
    want, got = (backend("native").lower(w, threads=1)(*w.inputs) for w in (workload, after))
    assert torch.equal(want, got)
