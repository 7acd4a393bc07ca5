"""Whole architectures by name, one file per paper: ``create("mobilenetv2", width=0.35)``."""

from paredown.zoo._count import row, rows
from paredown.zoo._table import create, example, feature_info, names, variant
from paredown.zoo._variant import Variant

__all__ = ["Variant", "create", "example", "feature_info", "names", "row", "rows", "variant"]
