"""Surrogates that read a network's canonical text (`graph.text`): cost or quality from words."""

from paredown.cost.reading.ridge import Ridge
from paredown.cost.reading.tokens import Vocabulary, tokens

__all__ = ["Ridge", "Vocabulary", "tokens"]
