"""Claim cards, grouped by family."""
