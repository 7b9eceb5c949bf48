"""Embeddings on the wire: which bytes are one of D numbers, and whether their norms are those of the fit.

Bytes alone do not tell float16 from float32 of half the dimensions or from bfloat16. An event may say its dtype; what does not
is taken for float16 only where the result looks like the embeddings that the codebook was fitted on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

DTYPES: Final = ("float32", "float16")
_SIZES: Final = {"float32": 4, "float16": 2}
# How far beyond the fit's own norms a norm is still plausible: a catalogue may drift; other bytes miss by orders of magnitude.
_DRIFT: Final = 4.0
# Of a bundle that does not know the norms of its fit.
_ANY_NORM: Final = (1e-3, 1e3)


class EmbeddingError(ValueError):
    """Bytes or numbers that are no embedding; ``kind``: the dead letter's class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class PlausibleNorms:
    """Lengths that an embedding may have without a doubt; ``known``: whether they come from the bundle's fit."""

    minimum: float
    maximum: float
    known: bool = True

    @classmethod
    def of(cls, quantiles: Sequence[float] | None) -> PlausibleNorms:
        """From the fit's norms at 0, 1, 50, 99 and 100 % of its items; None: the bundle does not say.

        >>> PlausibleNorms.of([1.0, 1.0, 1.0, 1.0, 1.0])
        PlausibleNorms(minimum=0.25, maximum=4.0, known=True)
        """
        if quantiles is None:
            return cls(*_ANY_NORM, known=False)
        least, low, _, high, most = quantiles
        return cls(min(least, low / _DRIFT), max(most, high * _DRIFT))

    def implausible(self, norms: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Boolean (N,) of norms float32 (N,)."""
        return ~((norms >= self.minimum) & (norms <= self.maximum))


def embedding_bytes(embedding: bytes | list[float], dtype: str | None, dimension: int) -> tuple[bytes, bool]:
    """Little-endian float32 or float16 bytes of ``dimension`` numbers, and whether float16 is a guess.

    Raises:
        EmbeddingError: an unsupported dtype, or not that many numbers.
    """
    if dtype is not None and dtype not in _SIZES:
        raise EmbeddingError(
            "UnsupportedDtype",
            f"embeddings of dtype {dtype[:40]!r} are not supported: convert them to float32 (or float16) and say so",
        )
    if isinstance(embedding, bytes):
        size = len(embedding)
        if dtype is not None:
            if size != _SIZES[dtype] * dimension:
                raise EmbeddingError(
                    "WrongDimension",
                    f"{size} bytes of {dtype} are {size / _SIZES[dtype]:g} numbers; this codebook takes {dimension}: "
                    f"{_SIZES[dtype] * dimension} bytes",
                )
            return embedding, False
        if size == 4 * dimension:
            return embedding, False
        if size == 2 * dimension:
            return embedding, True
        raise EmbeddingError(
            "WrongDimension",
            f"{size} bytes of embedding; this codebook takes {4 * dimension} (float32) or {2 * dimension} (float16)",
        )
    if len(embedding) != dimension:
        raise EmbeddingError(
            "WrongDimension", f"{len(embedding)} numbers of embedding; this codebook takes {dimension}"
        )
    with np.errstate(over="ignore"):
        return np.asarray(embedding, "<f8").astype("<f4").tobytes(), False


def query_embedding(embedding: bytes | list[float], dimension: int) -> NDArray[np.float32]:
    """The embedding (D,) of a query: D numbers, or the bytes of D float32.

    Raises:
        EmbeddingError: not that many, NaN, infinity, or nothing but zeros.
    """
    content, _ = embedding_bytes(embedding, "float32", dimension)
    vector = np.frombuffer(content, "<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.sqrt(np.sum(vector * vector)))
    if not np.isfinite(norm):
        raise EmbeddingError("EmbeddingNotFinite", "the embedding holds NaN, infinity or numbers beyond float32")
    if norm == 0:
        raise EmbeddingError("EmbeddingZero", "every number of the embedding is zero: it has no direction")
    return vector


def matrix_of(embeddings: Sequence[bytes], dimension: int) -> NDArray[np.float32]:
    """Float32 (N, D) from N embeddings' float32 or float16 bytes, told apart by their lengths."""
    joined = b"".join(embeddings)
    if len(joined) == 4 * dimension * len(embeddings):
        return np.frombuffer(joined, "<f4").reshape(-1, dimension)
    matrix = np.empty((len(embeddings), dimension), np.float32)
    for size, dtype in ((4, "<f4"), (2, "<f2")):
        rows = [row for row, content in enumerate(embeddings) if len(content) == size * dimension]
        if rows:
            content = b"".join([embeddings[row] for row in rows])
            matrix[rows] = np.frombuffer(content, dtype).reshape(-1, dimension)
    return matrix


@dataclass(frozen=True)
class CheckedEmbeddings:
    """What is wrong with rows of a matrix: ``faults`` by row; ``strange``: usable rows of an implausible norm, with the norms."""

    faults: dict[int, EmbeddingError]
    strange: NDArray[np.int64]
    norms: NDArray[np.float32]


def check_embeddings(
    matrix: NDArray[np.float32], embeddings: Sequence[bytes], guessed: Sequence[int], plausible: PlausibleNorms
) -> CheckedEmbeddings:
    """``matrix`` (N, D) of ``embeddings``; ``guessed``: the rows that were taken for float16 without being told."""
    # A finite squared norm means finite numbers, and scores that cannot overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        norms: NDArray[np.float32] = np.sqrt(np.einsum("nd,nd->n", matrix, matrix))
    strange = plausible.implausible(norms)
    faults: dict[int, EmbeddingError] = {}
    if guessed:
        # Float32 numbers of few digits, read as float16, are every other one zero.
        nonzero = matrix[guessed] != 0
        hollow = ~nonzero[:, 0::2].any(axis=1) & nonzero.any(axis=1)
        for row in itertools.compress(guessed, hollow | (strange[guessed] & (norms[guessed] != 0))):
            faults[row] = _ambiguous(embeddings[row], float(norms[row]), plausible)
    if strange.any():
        for row in np.flatnonzero(strange & (norms == 0)).tolist():
            faults[row] = EmbeddingError(
                "EmbeddingZero",
                "every number of the embedding is zero, or too small to tell from it: it has no direction; send the real "
                "embedding, or a null value to delete the item",
            )
        for row in np.flatnonzero(~np.isfinite(norms)).tolist():
            faults.setdefault(
                row,
                EmbeddingError("EmbeddingNotFinite", "the embedding holds NaN, infinity or numbers beyond float32"),
            )
        if faults:
            strange[list(faults)] = False
    return CheckedEmbeddings(faults, np.flatnonzero(strange), norms)


def _ambiguous(content: bytes, norm: float, plausible: PlausibleNorms) -> EmbeddingError:
    numbers = len(content) // 2
    readings = {
        f"{numbers / 2:g} numbers of float32": np.frombuffer(content[: len(content) // 4 * 4], "<f4"),
        f"{numbers} numbers of bfloat16": (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4"),
    }
    with np.errstate(over="ignore", invalid="ignore"):
        likely = [
            name
            for name, reading in readings.items()
            if not plausible.implausible(np.sqrt(np.sum(reading.astype(np.float32) ** 2)))
        ]
    guess = f" ({' or '.join(likely)}, by their norm)" if likely else ""
    known = "the fit's embeddings have" if plausible.known else "embeddings have"
    finite = np.isfinite(norm)
    return EmbeddingError(
        "AmbiguousEmbedding" if finite else "EmbeddingNotFinite",
        f"{len(content)} bytes of embedding without a dtype would be float16 "
        f"{f'of norm {norm:.3g}' if finite else 'with NaN or infinity'}, where {known} norms of "
        f"{plausible.minimum:.3g} to {plausible.maximum:.3g}: they seem to be something else{guess}; send float32, or say "
        "dtype float16 in the event or its content-type if they are that",
    )
