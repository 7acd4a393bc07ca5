"""The catalogue of papers, their claim cards and the recorded findings."""

from paredown.papers._catalogue import catalogue, entry
from paredown.papers.runner import card_keys, reproduce

__all__ = ["card_keys", "catalogue", "entry", "reproduce"]
