"""Large language models on nodes: bytes, work and time per token by formula, without a capture.

`model` says what a language model is (TOML, or a Hugging Face ``config.json``); the others price it
on devices of the catalogue.
"""

from paredown.cost.serving.model import LanguageModel, load, names, read

__all__ = ["LanguageModel", "load", "names", "read"]
