"""What the cards of token routing and of bit-level scaling rest on: canvases, tables, checks."""

import math

import pytest
import torch

from paredown.papers.cards import bit_scaling, routing
from paredown.papers.cards._paired import Paired
from paredown.workloads import digits


def test_digits_take_the_share_of_the_canvas_that_is_stated():
    ink, _ = digits.split("validation", routing.SOURCE)
    images, large = routing.canvases(ink, 0.0, torch.Generator().manual_seed(0))
    again, same = routing.canvases(ink, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
    assert torch.equal(large, same)
    assert 0.35 < float(large.float().mean()) < 0.65
    rows = (images[:, 0] > -0.5).any(2).sum(1) / routing.CANVAS
    assert float(rows[~large].max()) <= routing.SMALL[1] + 2 / routing.CANVAS
    assert float(rows[large].min()) > 0.6
    # The ink of a digit is on its canvas: none is cut off.
    assert float((images > -0.5).flatten(1).sum(1).min()) > 8


def test_the_subjects_are_what_their_names_say():
    nets = {name: routing.network(name) for name in routing.SUBJECTS}
    assert nets["routed"].routed
    assert not nets["static"].routed
    assert nets["narrow"].full_macs < 0.8 * nets["static"].full_macs
    gates = nets["routed"].full_macs - nets["static"].full_macs
    assert 0 < gates < 0.02 * nets["static"].full_macs


def test_correlation():
    x = torch.randn(50)
    assert routing.correlation(x, 3 * x + 1) == pytest.approx(1)
    assert routing.correlation(x, -x) == pytest.approx(-1)
    assert routing.correlation(x, torch.ones(50)) == 0


def test_tables_and_rises_of_the_bits_card():
    assert bit_scaling.widths("pixels 24 W4A16") == (4, 16)
    one, sizes = {}, bit_scaling.CHANNELS["full"]
    for style in bit_scaling.STYLES:
        for channels in sizes:
            name = f"{style} {channels}"
            one[name] = 2.0
            for bits in bit_scaling.BITS:
                one[f"{name} W{bits}A16"] = 2.0 * math.exp(8 - bits)
                one[f"bits, {name} W{bits}A16"] = channels * bits
    by = Paired([0, 1], [one, one])
    assert bit_scaling.worse(by, "pixels", 3, sizes) == pytest.approx([5.0, 5.0])
    found = bit_scaling.tables(by)
    assert len(found["distance"]) == 2 * len(sizes) * len(bit_scaling.BITS)
    for style in bit_scaling.STYLES:
        front = [row for row in found["front"] if row["style"] == style]
        bits = [row["bits"] for row in front]
        assert bits == sorted(bits)
        # Bits alone decide the distance here, so the smallest model leads at every width.
        assert {row["model"] for row in front} == {f"{style} {sizes[0]}"}
