"""Whole systems from other fields that exercise the library."""
