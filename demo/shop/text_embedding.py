"""An embedding computed from a product's text alone: no model, no download, no fitting, NumPy only.

Each word (without the s of a plural), each pair of neighbouring words and each three-letter piece of a word is a feature.
A feature's hash picks one row of a fixed matrix of random signs (a random projection of the bag of features to
D dimensions); the text is the weighted sum of its rows, scaled to length 1. A producer that sees a new product embeds it
with no state and gets the same numbers as everybody else. Texts that share words lie close together; so do "kettle" and
"kettles"; synonyms do not.

Weights stand in for the inverse document frequencies that a fitted embedder would learn from a catalogue. They read a title as
a shop writes it: function words and figures say little, a colour or size less than a material, and the brand in front
less than the noun.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.catalogue import CatalogueItem
from models.towers.text_features import feature_hash, word_pieces

DIMENSION: Final = 128
_ROWS: Final = 1 << 15  # features share a row once in 32,768; more rows cost memory (16 MiB at D=128), fewer blur words
_BLOCK: Final = 2_048  # texts at a time: bounds the gathered rows to some tens of MiB


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION_WORDS: Final = _word_set("a an and at by for from in of on or the to two three up with x")
_COLOUR_WORDS: Final = _word_set(
    "black white grey gray cream sage navy terracotta pink silver blue graphite gold olive burgundy rust mustard ecru green "
    "orange sand red yellow purple turquoise brass chrome copper nickel brown tan beige amber emerald charcoal teal lilac "
    "mint lime taupe dusty matt midnight rose heather forest slate petrol brushed polished antique satin deep warm pastel sky"
)
_UNITS: Final = _word_set("l ml cm m g kg w lm mm inch size pieces colours xs s xl xxl eu ages players person dpi gsm")
_FUNCTION_WEIGHT: Final = 0.05
_FIGURE_WEIGHT: Final = 0.15
_COLOUR_WEIGHT: Final = 0.3
_BRAND_WEIGHT: Final = 0.45
_EXTRA_WEIGHT: Final = 0.45  # words after "with" or "for": features and uses
_WORD_WEIGHT: Final = 0.6
_PAIR_SHARE: Final = 0.5
_PIECES_SHARE: Final = 0.5
_TYPE_WEIGHT: Final = 1.0

_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def item_text(item: CatalogueItem) -> str:
    """The text of an item that the demo embeds: its title, then its type after a vertical bar."""
    return f"{item.title} | {item.type}" if item.type else item.title


class TextEmbedder:
    """Embeds texts as unit vectors; two embedders with equal ``dimension`` and ``seed`` agree to the last bit on one machine.

    >>> embeddings = TextEmbedder().embed(["glass kettle", "glass kettles", "dog bed"])
    >>> bool(embeddings[0] @ embeddings[1] > 0.5 > embeddings[0] @ embeddings[2])
    True
    """

    def __init__(self, dimension: int = DIMENSION, *, seed: int = 0) -> None:
        if dimension < 8 or dimension % 8:
            raise ValueError(f"dimension is {dimension}; it must be a positive multiple of 8")
        self.dimension = dimension
        # Raw bits, because NumPy promises their stream for ever, and not that of its normal distribution.
        raw = np.random.PCG64(seed).random_raw(_ROWS * dimension // 64 + 1).astype("<u8").view(np.uint8)
        bits = np.unpackbits(raw[: _ROWS * dimension // 8]).reshape(_ROWS, dimension)
        self._signs: NDArray[np.float32] = (bits.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(dimension))
        self._numbers: dict[str, int] = {}
        self._hashes: list[int] = []
        self._weights: list[float] = []
        self._vectors: NDArray[np.float32] = np.empty((1024, dimension), dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 (N, D), rows of length 1; a text without any word becomes the unit vector of the empty feature."""
        embeddings = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            embeddings[start : start + len(block)] = self._embed_block(block)
        return embeddings

    def embed_items(self, items: Sequence[CatalogueItem]) -> NDArray[np.float32]:
        """float32 (N, D): ``embed`` of each item's ``item_text``."""
        return self.embed([item_text(item) for item in items])

    def _embed_block(self, texts: Sequence[str]) -> NDArray[np.float32]:
        words: list[int] = []
        shares: list[float] = []
        starts: list[int] = []
        for text in texts:
            starts.append(len(words))
            title, _, kind = text.lower().partition(" | ")
            self._read_title(title, words, shares)
            self._read_type(kind, words, shares)
            if len(words) == starts[-1]:
                words.append(self._number(""))
                shares.append(1.0)
        numbers = np.array(words, dtype=np.int64)
        weights = np.array(shares, dtype=np.float32)
        sums = np.add.reduceat(self._vectors[numbers] * weights[:, None], starts, axis=0)
        pairs, pair_weights = self._pairs(numbers, weights, starts)
        sums += np.add.reduceat(self._signs[pairs] * pair_weights[:, None], starts, axis=0)
        lengths = np.sqrt(np.einsum("nd,nd->n", sums, sums))
        embeddings: NDArray[np.float32] = sums / np.maximum(lengths, np.float32(1e-12))[:, None]
        return embeddings

    def _pairs(
        self, numbers: NDArray[np.int64], weights: NDArray[np.float32], starts: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and weights of each word's pair with the word before; weight 0 for the first word of a text."""
        hashes = np.array(self._hashes, dtype=np.uint64)[numbers]
        before = np.roll(hashes, 1)
        mixed = (before * np.uint64(0x9E3779B97F4A7C15)) ^ (hashes * np.uint64(0xC2B2AE3D27D4EB4F))
        pair_weights = np.minimum(weights, np.roll(weights, 1)) * np.float32(_PAIR_SHARE)
        pair_weights[list(starts)] = 0
        return ((mixed >> np.uint64(40)) % np.uint64(_ROWS)).astype(np.int64), pair_weights

    def _read_title(self, title: str, words: list[int], shares: list[float]) -> None:
        extra = False
        for place, word in enumerate(_WORD.findall(title)):
            number = self._numbers.get(word)
            if number is None:
                number = self._number(word)
            weight = self._weights[number]
            if weight == _WORD_WEIGHT:
                if place == 0:
                    weight = _BRAND_WEIGHT
                elif extra:
                    weight = _EXTRA_WEIGHT
            elif word in ("with", "for"):
                extra = True
            words.append(number)
            shares.append(weight)

    def _read_type(self, kind: str, words: list[int], shares: list[float]) -> None:
        for word in _WORD.findall(kind):
            words.append(self._number(word))
            shares.append(_TYPE_WEIGHT)

    def _number(self, word: str) -> int:
        """The word's row in ``_vectors``, made when the word is seen first."""
        if word in self._numbers:
            return self._numbers[word]
        number = len(self._hashes)
        if number == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._vectors[number] = self._word_vector(word)
        self._hashes.append(feature_hash(_stem(word)))
        self._weights.append(_weight(word))
        self._numbers[word] = number
        return number

    def _word_vector(self, word: str) -> NDArray[np.float32]:
        whole = self._signs[feature_hash(_stem(word)) % _ROWS]
        pieces = [feature_hash(piece) % _ROWS for piece in word_pieces(word)]
        share = np.float32(_PIECES_SHARE / np.sqrt(len(pieces)))
        vector: NDArray[np.float32] = whole + self._signs[pieces].sum(axis=0) * share
        return vector


def _stem(word: str) -> str:
    """The word without the s of a plural.

    >>> _stem("kettles"), _stem("glass"), _stem("kids")
    ('kettle', 'glass', 'kid')
    """
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _weight(word: str) -> float:
    if word in _FUNCTION_WORDS:
        return _FUNCTION_WEIGHT
    if word in _UNITS or any(letter.isdigit() for letter in word):
        return _FIGURE_WEIGHT
    return _COLOUR_WEIGHT if word in _COLOUR_WORDS else _WORD_WEIGHT
