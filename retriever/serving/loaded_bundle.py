"""A bundle that can answer: verified, its model in memory, its index open, all read that a first query would wait for.

What must hold: bundle and index have one codebook; nothing of it changes while it answers, whatever happens to its directory;
``close`` gives back its memory and the index.
"""

from __future__ import annotations

from models.bundles.bundle import Bundle
from retriever.answering.admission import BundleLimits
from retriever.answering.answers import Answerer
from store.reading.reader import IndexReader


class LoadedBundle:
    """``id`` of the bundle, its ``answerer``, its ``limits`` of queries, and the directory of its ``index``."""

    def __init__(self, bundle: Bundle, answerer: Answerer, reader: IndexReader) -> None:
        self.id = bundle.id
        self.index = reader.path
        self.limits = BundleLimits(bundle.manifest.dimension, bundle.layout.layers, bundle.layout.size)
        self._answerer: Answerer | None = answerer
        self._reader = reader

    @property
    def answerer(self) -> Answerer:
        assert self._answerer is not None, f"the bundle {self.id} was closed"
        return self._answerer

    def close(self) -> None:
        """Nobody may answer with it any more."""
        self._answerer = None
        self._reader.close()
