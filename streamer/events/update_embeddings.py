"""The embeddings of a batch of item updates as one matrix, and which of them cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamer.events.intake import Update
from streamer.events.values.embeddings import CheckedEmbeddings, PlausibleNorms, check_embeddings, matrix_of


def checked_embeddings(
    updates: Sequence[Update], dimension: int, plausible: PlausibleNorms
) -> tuple[list[int], NDArray[np.float32], CheckedEmbeddings]:
    """Places of the updates that have an embedding (a deletion has none), the matrix float32 (N, D) of these, and what was
    found of its rows.
    """
    upserts = [place for place, update in enumerate(updates) if update.embedding is not None]
    embeddings = [updates[place].embedding or b"" for place in upserts]
    matrix = matrix_of(embeddings, dimension)
    guessed = [row for row, place in enumerate(upserts) if updates[place].guessed]
    return upserts, matrix, check_embeddings(matrix, embeddings, guessed, plausible)
