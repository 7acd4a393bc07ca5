"""Ridge regression on hashed n-grams of tokens: the baseline of surrogates that read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError


def hashed(
    texts: Sequence[Sequence[str]], *, buckets: int = 1024, longest: int = 2
) -> NDArray[np.float64]:
    """Logarithms of counts of n-grams up to ``longest`` by hash: (texts, buckets)."""
    out = np.zeros((len(texts), buckets))
    for row, words in zip(out, texts, strict=True):
        for n in range(1, longest + 1):
            for i in range(len(words) - n + 1):
                gram = " ".join(words[i : i + n]).encode()
                row[int.from_bytes(blake2b(gram, digest_size=4).digest(), "little") % buckets] += 1
    return np.log1p(out)


@dataclass
class Ridge:
    """A linear model of hashed n-grams; ``strength`` is chosen by leaving one out."""

    buckets: int = 1024
    longest: int = 2
    strengths: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

    def fit(self, texts: Sequence[Sequence[str]], labels: Sequence[float]) -> Ridge:
        """Learn labels of token sequences. Raises ``InputError`` for fewer than three."""
        from sklearn.linear_model import RidgeCV

        if len(texts) < 3 or len(texts) != len(labels):
            raise InputError(f"{len(texts)} texts and {len(labels)} labels: three of each at least")
        self._model = RidgeCV(self.strengths).fit(self._features(texts), np.asarray(labels))
        return self

    def predict(self, texts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """One value per text."""
        return np.asarray(self._model.predict(self._features(texts)))

    def _features(self, texts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        return hashed(texts, buckets=self.buckets, longest=self.longest)
