"""Whole architectures by name, one file per paper: ``create("mobilenetv2", width=0.35)``."""

from paredown.zoo._table import create, example, names

__all__ = ["create", "example", "names"]
