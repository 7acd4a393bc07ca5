"""Techniques that make training cheaper."""
