"""The retriever's transform with one bundle that is loaded already: queries as records, answers out of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from models.attributes import AttributeType
from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.language.prompts import PromptBuilder
from models.sids.layout import Layout
from retriever.answering.answers import Answerer
from retriever.serving.answer_batch import AnswerBatch
from retriever.serving.answering import Answering, CurrentAnswering
from retriever.serving.loaded_bundle import LoadedBundle
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import ANSWER, Answer
from streamer.settings.retriever import RetrieverSettings

LIVE = 300  # items of the index


def answer_batch_of(
    bundle: Bundle,
    model: Any,
    prompts: PromptBuilder | None,
    reader: IndexReader,
    settings: RetrieverSettings,
    *,
    results_topic: str = "results",
    dead_letter_topic: str = "dlq",
    filterable: Mapping[str, AttributeType] | None = None,
) -> tuple[AnswerBatch, Answerer]:
    """The transform, and the answerer to which it gives its queries."""
    answerer = Answerer(
        bundle=bundle, model=model, prompts=prompts, reader=reader, settings=settings, filterable=filterable
    )
    current = CurrentAnswering(Answering(LoadedBundle(bundle, answerer, reader)))
    batch = AnswerBatch(
        current,
        settings=settings,
        results_topic=results_topic,
        dead_letter_topic=dead_letter_topic,
        filterable=filterable,
    )
    return batch, answerer


def items_batch(ids: list[str], codes: NDArray[np.uint16], *, deleted: bool = False) -> CodesBatch:
    count = len(ids)
    return CodesBatch(
        ids=[item_id.encode() for item_id in ids],
        codes=codes,
        weights=np.ones(count, np.float32),
        titles=[f"title of {item_id}" for item_id in ids],
        updated_at=np.zeros(count, np.int64),
        deleted=np.full(count, deleted),
    )


def batch_and_answerer(bundle: Bundle, writer: IndexWriter, **settings: Any) -> tuple[AnswerBatch, Answerer]:
    model, prompts = load_language_model(bundle)
    own = RetrieverSettings(**{"ranking": "weight_and_recency"} | settings)  # scores are then those of SIDs
    return answer_batch_of(bundle, model, prompts, IndexReader(writer.path), own)


def answer_batch(bundle: Bundle, writer: IndexWriter, **settings: Any) -> AnswerBatch:
    return batch_and_answerer(bundle, writer, **settings)[0]


def query(key: bytes | None, value: bytes | None = None, **fields: Any) -> Message:
    return Message(
        topic="queries",
        partition=0,
        offset=5,
        key=key,
        value=json.dumps(fields).encode() if value is None else value,
        timestamp=(1, int(time.time() * 1000)),
    )


def answers(outgoing: list[Any]) -> list[Answer]:
    return [ANSWER.decode(out.value) for out in outgoing if out.topic == "results"]


def with_short_sids(bundle: Bundle, writer: IndexWriter) -> Layout:
    """Makes a layout live that leaves out the five fullest layer-2 tokens."""
    with writer.snapshot() as snapshot:
        fullest = np.argsort(-snapshot.census()[1])[:5]
    old = bundle.layout
    layout = Layout(
        generation=old.generation + 1,
        codebook_id=old.codebook_id,
        layers=old.layers,
        size=old.size,
        head_tokens=tuple(sorted(fullest.tolist())),
    )
    writer.put_layout(layout, {})
    return layout


def without_layer2_dropout(bundle: Bundle) -> Bundle:
    """The bundle as if its model had been trained without."""
    record = bundle.manifest.language_model
    assert record is not None
    plain = msgspec.structs.replace(record, layer2_dropout=0.0)
    return Bundle(bundle.directory, msgspec.structs.replace(bundle.manifest, language_model=plain), bundle.id)
