"""A bundle that can answer: verified, its model in memory, its index open, all read that a first query would wait for.

What must hold: bundle and index have one codebook; nothing of it changes while it answers, whatever happens to its directory;
``close`` gives back its memory and the index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from models.bundles.bundle import Bundle
from models.bundles.manifest import BundleError
from models.language.prompts import PromptBuilder
from retriever.answering.admission import BundleLimits
from retriever.answering.answers import Answerer
from store.reading.reader import IndexReader
from store.topology.layout_trie import require_layout
from streamer.settings import RetrieverSettings, Settings

log = structlog.get_logger(__name__)


class LoadedBundle:
    """``id`` of the bundle, its ``answerer``, its ``limits`` of queries, and the directory of its ``index``."""

    def __init__(self, bundle: Bundle, answerer: Answerer, reader: IndexReader) -> None:
        self.id = bundle.id
        self.index = reader.path
        self.limits = BundleLimits(bundle.manifest.dimension, bundle.layout.layers)
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


def load_bundle(directory: Path, index: Path, settings: Settings, *, wanted: str | None = None) -> LoadedBundle:
    """The bundle of a directory over an index, ready for its first query. ``wanted``: the id that it must have.

    Raises:
        SidstreamError: one of the two is missing, damaged, or not as the settings need it, or they have two codebooks; what
            costs little is looked at first.
    """
    reader = IndexReader(index)
    try:
        bundle = Bundle.open(directory)
        if wanted is not None and bundle.id != wanted:
            raise BundleError(
                f"{directory} holds the bundle {bundle.id} by now, not {wanted}: copy {wanted} there again"
            )
        with reader.snapshot() as snapshot:
            require_layout(snapshot, bundle.layout)
        bundle = open_bundle(directory, settings.retriever)
        model, prompts = load_model(bundle, settings)
        if model is None:
            log.warning(
                "no_language_model",
                bundle=str(directory),
                advice="items are found by their vectors alone; run `sidstream train` on the bundle, then deploy it or start the "
                "retriever anew",
            )
        answerer = Answerer(
            bundle=bundle,
            model=model,
            prompts=prompts,
            reader=reader,
            settings=settings.retriever,
            filterable=settings.attributes.filterable,
        )
    except BaseException:
        reader.close()
        raise
    return LoadedBundle(bundle, answerer, reader)


def open_bundle(directory: Path, own: RetrieverSettings) -> Bundle:
    """The bundle of a directory, verified. It needs a language model, unless it can answer by vectors alone."""
    bundle = Bundle.open(directory)
    if bundle.manifest.language_model is not None or bundle.manifest.dense is None or not own.dense:
        return Bundle.open(directory, need_model=True)
    return bundle


def load_model(bundle: Bundle, settings: Settings) -> tuple[Any | None, PromptBuilder | None]:
    """The bundle's language model and its prompts, on the device and threads of the settings; None and None without one."""
    import torch

    from models.bundles.model_of_bundle import load_language_model
    from models.language.devices import device_named, dtype_named

    own = settings.retriever
    torch.set_num_threads(own.threads)
    if bundle.manifest.language_model is None:
        return None, None
    device, dtype = device_named(own.device), dtype_named(own.dtype)
    model, prompts = load_language_model(bundle, device=device, dtype=dtype)
    log.info(
        "model_loaded",
        bundle=bundle.id,
        model=bundle.manifest.model_id,
        base=None if (base := bundle.manifest.language_model.base) is None else f"{base.given} ({base.id})",
        device=str(device),
        dtype="int8" if dtype is torch.int8 else str(model.dtype),
    )
    return model, prompts
