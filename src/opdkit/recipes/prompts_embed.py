"""Texts as vectors whose inner product is their cosine, and nearest neighbours among them.

Two embedders behind one interface. The paper's is a sentence-transformers model (arXiv 2604.13016, C.3: all-mpnet-base-v2). The
other needs nothing but this file and is no stand-in for it: `ngrams` counts shared words and character pieces, so a paraphrase is
far and a common phrasing near. Its name says what it is wherever a number of it is shown.

Letters: Q queries, R references, W width of a vector.
"""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from opdkit.types import Finding, UserError

PAPER = "sentence-transformers/all-mpnet-base-v2"
NGRAMS = "ngrams"
WIDTH = 2048
"""Of a hashed vector: two unrelated texts meet by chance at a cosine of about ±.02."""
PIECE = 4
"""Characters of a piece."""
BLOCK = 256 << 20
"""Bytes of cosines held at once."""


class Embedder(Protocol):
    """`name` is told beside every number. `fit` sees all texts once, before the first `embed`."""

    name: str

    def fit(self, texts: Iterable[str]) -> None: ...
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[Q, W] float32, rows of length 1; of 0 where a text says nothing."""
        ...


class HashedNgrams:
    """TF-IDF over words, pairs of words and pieces of four characters, hashed with signs to a fixed width.

    >>> embedder = HashedNgrams(); embedder.fit(["Add 2 and 3.", "Add 2 and 4.", "Name a bird."])
    >>> a, b, c = embedder.embed(["Add 2 and 3.", "ADD 2  and 3.", "Name a bird."])
    >>> bool(abs(a @ b - 1) < 1e-6), bool(a @ c < 0.2)
    (True, True)
    """

    name = "hashed n-gram TF-IDF cosine (no sentence embedding)"

    def __init__(self, width: int = WIDTH):
        self.width = width
        self._texts = 0
        self._seen = np.zeros(width)

    def fit(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._texts += 1
            self._seen[list({place for place, _ in self._places(text)})] += 1

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rarity = np.log((1 + self._texts) / (1 + self._seen)) + 1
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for (place, sign), count in Counter(self._places(text)).items():
                row[place] += sign * (1 + math.log(count)) * rarity[place]
        return _unit(rows)

    def _places(self, text: str) -> list[tuple[int, int]]:
        hashes = (crc32(gram.encode()) for gram in _grams(text))
        return [(h % self.width, 1 if h >> 31 else -1) for h in hashes]


def _grams(text: str) -> Iterator[str]:
    words = normalised(text).split()
    yield from words
    yield from (f"{a} {b}" for a, b in pairwise(words))
    for word in words:
        padded = f"<{word}>"
        yield from (f"#{padded[i : i + PIECE]}" for i in range(max(1, len(padded) - PIECE + 1)))


def normalised(text: str) -> str:
    """But for case, kinds of letters and space.

    >>> normalised("  What is\\n２ + 2? ") == normalised("what is 2 + 2?")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class SentenceModel:
    """A sentence-transformers model (extra `embed`), Hub id or folder. No code of a model's repository is run."""

    def __init__(self, model: str, *, device: str):
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise UserError(
                f"prompts.embedding={model} needs {error.name}",
                hint="pip install 'opdkit[embed]', or prompts.embedding=ngrams",
            ) from None
        try:
            self.model: Any = SentenceTransformer(model, device=device, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"no sentence embeddings from {model}: {' '.join(str(error).split())[:200]}",
                hint="prompts.embedding=FOLDER of a sentence-transformers model, or prompts.embedding=ngrams",
            ) from error
        self.name = model

    def fit(self, texts: Iterable[str]) -> None:
        """Nothing: it was trained elsewhere."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rows = self.model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return _unit(np.asarray(rows, dtype=np.float32))


def open_embedder(named: str | None, *, device: str) -> tuple[Embedder, list[Finding]]:
    """The embedder of `prompts.embedding`; where nothing was named and the paper's is not installed, the other one, told."""
    if named == NGRAMS:
        return HashedNgrams(), []
    if named is not None or importlib.util.find_spec("sentence_transformers") is not None:
        return SentenceModel(named or PAPER, device=device), []
    told = Finding(
        name="embedding_fallback",
        severity="warning",
        message=f"sentence-transformers is not installed, so closeness is {HashedNgrams.name}: it sees shared words, not shared "
        f"meaning, and the threshold of .6 was set for {PAPER}",
        remedy="pip install 'opdkit[embed]'",
        source="arXiv 2604.13016, C.3",
    )
    return HashedNgrams(), [told]


class Remembered:
    """An embedder that embeds a text once, some at a time: the same texts are asked about from both sides."""

    def __init__(self, embedder: Embedder, *, batch: int = 256):
        self.embedder, self.batch = embedder, batch
        self._rows: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        new = list(dict.fromkeys(text for text in texts if text not in self._rows))
        for begin in range(0, len(new), self.batch):
            some = new[begin : begin + self.batch]
            self._rows |= zip(some, self.embedder.embed(some), strict=True)
        return np.stack([self._rows[text] for text in texts]) if texts else np.zeros((0, 1), np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


@dataclass(frozen=True)
class Neighbour:
    """Which reference is nearest, and its cosine."""

    index: int
    cosine: float


def nearest(queries: np.ndarray, references: np.ndarray) -> list[Neighbour]:
    """The nearest reference of every query, exactly; the first of equals. [Q, W] and [R, W] of unit rows.

    >>> nearest(np.eye(2), np.array([[0.6, 0.8], [1.0, 0.0]]))
    [Neighbour(index=1, cosine=1.0), Neighbour(index=0, cosine=0.8)]
    """
    assert len(references), "there is something to be near to"
    step = max(1, BLOCK // (4 * len(references)))
    found = []
    for begin in range(0, len(queries), step):
        cosines = queries[begin : begin + step] @ references.T
        best = cosines.argmax(1)
        found += [Neighbour(int(i), float(row[i])) for i, row in zip(best, cosines, strict=True)]
    return found
