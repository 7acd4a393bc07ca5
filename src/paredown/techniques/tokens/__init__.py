"""Techniques that carry fewer tokens through a transformer."""
