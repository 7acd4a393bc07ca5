"""Rows of the networks that restore, detect and generate: MAXIM, DRCT, LeYOLO, DiCo."""

from __future__ import annotations

from paredown.zoo._variant import Variant

ROWS: dict[str, Variant] = {}
