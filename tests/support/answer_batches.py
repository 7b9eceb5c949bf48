"""The retriever's transform with one bundle that is loaded already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.attributes import AttributeType
from models.bundles.bundle import Bundle
from models.language.prompts import PromptBuilder
from retriever.answering.answers import Answerer
from retriever.serving.answer_batch import AnswerBatch
from retriever.serving.answering import Answering, CurrentAnswering
from retriever.serving.loaded_bundle import LoadedBundle
from store.reading.reader import IndexReader
from streamer.settings.retriever import RetrieverSettings


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
