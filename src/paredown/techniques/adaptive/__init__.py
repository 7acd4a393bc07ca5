"""Techniques that spend effort by the input."""
