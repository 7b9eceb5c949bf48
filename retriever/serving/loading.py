"""Loading a bundle: verified, its model read, its index opened, topology and vectors read.

What must hold: what costs little is looked at first; a load that fails or gives way leaves nothing open.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from models.bundles.bundle import Bundle
from models.bundles.manifest import BundleError
from models.language.prompts import PromptBuilder
from retriever.answering.answers import Answerer
from retriever.answering.parts import require_own_shard
from retriever.serving.loaded_bundle import LoadedBundle
from retriever.serving.pace import Pace
from store.reading.reader import IndexReader
from store.topology.layout_trie import require_layout
from streamer.process.run import collect_garbage_rarely
from streamer.settings import Settings
from streamer.settings.retriever import RetrieverSettings

log = structlog.get_logger(__name__)


def load_bundle(
    directory: Path, index: Path, settings: Settings, *, wanted: str | None = None, pace: Pace | None = None
) -> LoadedBundle:
    """The bundle of a directory over an index, ready for its first query. ``wanted``: the id that it must have; ``pace``: of a
    load beside a bundle that answers.

    Raises:
        SidstreamError: one of the two is missing, damaged, or not as the settings need it, or they have two codebooks; what
            costs little is looked at first. ``LoadInterruptedError`` of ``pace``.
    """
    reader = IndexReader(index, between_blocks=pace)
    try:
        bundle = Bundle.open(directory)
        if wanted is not None and bundle.id != wanted:
            raise BundleError(
                f"{directory} holds the bundle {bundle.id} by now, not {wanted}: copy {wanted} there again"
            )
        with reader.snapshot() as snapshot:
            require_layout(snapshot, bundle.layout)
            require_own_shard(snapshot.partitions, settings)
        bundle = open_bundle(directory, settings.retriever)
        if pace is not None:
            pace()
        model, prompts = load_model(bundle, settings)
        if model is None:
            log.warning(
                "no_language_model",
                bundle=str(directory),
                advice="items are found by their vectors alone; run `sidstream train` on the bundle, then deploy it or start the "
                "retriever anew",
            )
        if pace is not None:
            pace()
        answerer = Answerer(
            bundle=bundle,
            model=model,
            prompts=prompts,
            reader=reader,
            settings=settings.retriever,
            filterable=settings.attributes.filterable,
            partitions=settings.indexer.partitions,
        )
    except BaseException:
        reader.close()
        raise
    if pace is not None:
        pace.end()
    return LoadedBundle(bundle, answerer, reader)


@cache
def _import_once() -> None:
    """What a model needs, a million objects, is imported before the garbage collector is told to leave alone what there is: each
    look at all of it would hold up the queries of that moment for a third of a second."""
    importlib.import_module("retriever.serving.imports")
    collect_garbage_rarely()


def open_bundle(directory: Path, own: RetrieverSettings) -> Bundle:
    """The bundle of a directory, verified. It needs a language model, unless it can answer by vectors alone."""
    bundle = Bundle.open(directory)
    if bundle.manifest.language_model is not None or bundle.manifest.dense is None or not own.dense:
        return Bundle.open(directory, need_model=True)
    return bundle


def load_model(bundle: Bundle, settings: Settings) -> tuple[Any | None, PromptBuilder | None]:
    """The bundle's language model and its prompts, on the device and threads of the settings; None and None without one."""
    import torch

    own = settings.retriever
    torch.set_num_threads(own.threads)
    if bundle.manifest.language_model is None:
        return None, None
    _import_once()
    from models.bundles.model_of_bundle import load_language_model
    from models.language.devices import device_named, dtype_named

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
