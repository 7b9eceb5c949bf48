"""Text → hashed features: words, pairs of neighbouring words and three-letter pieces, each a row number of a table
(the word hashing of DSSM, Huang et al. 2013; with a hash instead of a list, so that no vocabulary is fitted or shipped).

NumPy and the standard library only: a producer that embeds text needs no more. What must hold: the same text gives
the same features in every process, version and language of the world; a text that is not white space has at least one.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.catalogue import CatalogueItem

FIELDS: Final = ("query", "title", "brand", "type", "description")
KINDS: Final = ("word", "pair", "piece")
GROUPS: Final = len(FIELDS) * len(KINDS)
PADDING_GROUP: Final = GROUPS  # the group of features that only fill a block up
MAXIMUM_WORDS: Final = 64  # of a field; what a product is stands at the beginning
_LONGEST_WORD: Final = 24  # letters that are read of a word; a sentence without spaces is one word
_PIECE: Final = 3

_WORD: Final = re.compile(r"[^\W_]+")
_MARKS: Final = re.compile(r"\S+")  # the words of a text that has no letters or digits


@dataclass(frozen=True, eq=False)
class Bags:
    """Features of N texts, one after the other.

    features: int64 (F,) row numbers of the table; groups: int64 (F,) field · 3 + kind; shares: float32 (F,) 1/√n for
    each of the n features that a text has in that group; starts: int64 (N + 1,), text i owns starts[i] to starts[i + 1].
    """

    features: NDArray[np.int64]
    groups: NDArray[np.int64]
    shares: NDArray[np.float32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 (N,): how many features each text has; 0 only for white space."""
        return np.diff(self.starts)

    def take(self, texts: NDArray[np.integer]) -> Bags:
        """The bags of these texts, in this order."""
        lengths = self.lengths[texts]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(starts[-1]) + np.repeat(self.starts[texts] - starts[:-1], lengths)
        return Bags(self.features[places], self.groups[places], self.shares[places], starts)


class FeatureHasher:
    """Hashes features into ``rows`` numbers; keeps the numbers of words that it has seen."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._known: dict[str, tuple[int, tuple[int, ...]]] = {}

    def queries(self, texts: Sequence[str]) -> Bags:
        """Bags of query texts."""
        return self._bags([("query", text)] for text in texts)

    def items(self, items: Sequence[CatalogueItem]) -> Bags:
        """Bags of items: title, brand, type and description."""
        return self._bags([(field, getattr(item, field)) for field in FIELDS[1:]] for item in items)

    def _bags(self, texts: Iterator[list[tuple[str, str]]]) -> Bags:
        features: list[int] = []
        sizes: list[int] = []  # of each group of each text
        groups: list[int] = []
        starts = [0]
        for fields in texts:
            for field, text in fields:
                first = FIELDS.index(field) * len(KINDS)
                for kind, numbers in enumerate(self._field(text)):
                    features.extend(numbers)
                    sizes.append(len(numbers))
                    groups.append(first + kind)
            starts.append(len(features))
        counts = np.array(sizes, dtype=np.int64)
        shares = (1 / np.sqrt(np.maximum(counts, 1))).astype(np.float32)
        return Bags(
            np.array(features, dtype=np.int64),
            np.repeat(np.array(groups, dtype=np.int64), counts),
            np.repeat(shares, counts),
            np.array(starts, dtype=np.int64),
        )

    def _field(self, text: str) -> tuple[dict[int, None], dict[int, None], dict[int, None]]:
        """Different features of each kind, in the order of the text."""
        words = split_words(text)
        whole: dict[int, None] = {}
        pieces: dict[int, None] = {}
        for word in words:
            known = self._known.get(word)
            if known is None:
                known = self._known[word] = self._word(word)
            whole[known[0]] = None
            for piece in known[1]:
                pieces[piece] = None
        pairs = {self._number(f"{first} {second}"): None for first, second in pairwise(words)}
        return whole, pairs, pieces

    def _word(self, word: str) -> tuple[int, tuple[int, ...]]:
        return self._number(f"={word}"), tuple(self._number(piece) for piece in word_pieces(word))

    def _number(self, feature: str) -> int:
        return feature_hash(feature) % self._rows


def feature_hash(feature: str) -> int:
    """32 bits of a feature; unlike Python's own hash the same in every process."""
    return zlib.crc32(feature.encode("utf-8", "surrogatepass"))


def word_pieces(word: str) -> list[str]:
    """The three-letter pieces of a word as features, its two ends marked.

    >>> word_pieces("tea")
    ['#<te', '#tea', '#ea>']
    """
    framed = f"<{word}>"
    return [f"#{framed[at : at + _PIECE]}" for at in range(max(len(framed) - _PIECE + 1, 1))]


def split_words(text: str) -> list[str]:
    """The first words of a text, lower case, in Unicode's compatibility form.

    >>> split_words("Überkanne, 1.7 L ")
    ['überkanne', '1', '7', 'l']
    >>> split_words("!?")
    ['!?']
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    words = _WORD.findall(plain) or _MARKS.findall(plain)
    return [word[:_LONGEST_WORD] for word in words[:MAXIMUM_WORDS]]
