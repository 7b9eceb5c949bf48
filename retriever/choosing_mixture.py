"""The end of a training: λ and α of the mixture are chosen on held-out examples, by the retriever's own answers, and written into
the bundle with the dense part.

What must hold: the model is asked as the retriever asks it, over an index of the items that it was trained on; weights of items
are those of the catalogue, as they are published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
import numpy as np

from models.bundles.bundle import Bundle
from models.bundles.dense_part import add_dense_part
from models.catalogue import Catalogue
from models.commands.after_training import Trained
from models.dense.fit_mixture import FittedMixture, Found, HeldOut, fit_mixture
from models.dense.mixture import NEAREST
from models.progress import WorkProgress
from models.terminal import shown
from store.writing.catalogue_index import write_catalogue
from streamer.events.records import Query
from streamer.settings.retriever import RetrieverSettings

_ASKED_AT_ONCE: Final = 32


def choose_mixture(trained: Trained) -> Bundle:
    """The bundle with its dense part; says in words what was chosen, on what, and what it finds."""
    console, shop = trained.console, trained.shop
    encoder = None if trained.towers is None else trained.towers.query_encoder()
    with WorkProgress(console) as work, TemporaryDirectory() as directory:
        asking = work.task("choosing the mixture: asking the model", unit="queries", total=len(trained.held_out))
        fitted = fit_mixture(
            shop.embeddings,
            [item.id for item in shop.items],
            trained.histories,
            trained.held_out,
            lambda examples: ask_model(trained, examples, Path(directory) / "index", asking.update),
            embed_texts=None if encoder is None else encoder.encode,
            max_history=_max_history(trained.bundle),
            seed=trained.seed,
        )
        asking.end()
    bundle = add_dense_part(
        trained.bundle,
        fitted.space,
        weights=fitted.weights,
        figures=fitted.figures,
        query_tower=None if trained.towers is None else trained.towers.path("query"),
    )
    for sentence in _sentences(fitted, shop):
        console.print(f"  {shown(sentence)}", soft_wrap=True)
    return bundle


def _max_history(bundle: Bundle) -> int | None:
    """Newest items of a history that the retriever looks at, once the bundle has its model."""
    record = bundle.manifest.language_model
    return None if record is None else record.prompt.max_history


def ask_model(
    trained: Trained, examples: Sequence[HeldOut], index: Path, progress: Callable[[int], None]
) -> list[Found]:
    """The items that the model finds for each example, as rows, with their log-probabilities."""
    import torch

    from models.bundles.model_of_bundle import load_language_model
    from models.language.devices import device_named
    from retriever.answering.answers import Answerer
    from retriever.answering.asked import Asked
    from store.reading.reader import IndexReader

    bundle, shop = trained.bundle, trained.shop
    if not index.exists():
        weights = np.array([item.weight for item in shop.items])
        write_catalogue(index, bundle.layout, shop.items, trained.codes, weights)
    model, prompts = load_language_model(bundle, device=device_named("auto"))  # where training was
    ids = [item.id for item in shop.items]
    rows = {item: row for row, item in enumerate(ids)}
    settings = RetrieverSettings(dense=False, maximum_limit=max(RetrieverSettings().maximum_limit, NEAREST))
    found: list[Found] = []
    with IndexReader(index) as reader, torch.inference_mode():
        answerer = Answerer(bundle=bundle, model=model, prompts=prompts, reader=reader, settings=settings)
        for start in range(0, len(examples), _ASKED_AT_ONCE):
            part = examples[start : start + _ASKED_AT_ONCE]
            asked = [
                Asked(
                    str(number),
                    # A target that the buyer has had before may be answered: who has to be found is not excluded.
                    Query(
                        text=example.text,
                        embedding=msgspec.UNSET if example.embedding is None else example.embedding,
                        history=tuple(ids[row] for row in example.history),
                        limit=NEAREST,
                        exclude_history=False,
                    ),
                )
                for number, example in enumerate(part)
            ]
            for answer in answerer.answers(asked):
                items = np.array([rows[item.item_id] for item in answer.items], dtype=np.int64)
                found.append((items, np.array([item.score for item in answer.items], dtype=np.float64)))
            progress(start + len(part))
    return found


def _sentences(fitted: FittedMixture, shop: Catalogue) -> list[str]:
    if words := fitted.in_words():
        return words
    return [
        f"the mixture of the model and the {len(shop):,} items' vectors keeps the weights that it has without measuring: there "
        "were no held-out examples with a history (or a text, with --embed) to choose by; give more examples, or --validation"
    ]
