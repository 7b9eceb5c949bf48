"""A model that reads the codes of a query's embedding: its prompts are those of training, also where a query has no embedding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.item_encoder import ItemEncoder
from models.bundles.model_of_bundle import load_language_model
from models.examples.query_codes import QueryCodes
from models.examples.records import TrainingData, TrainingExample
from models.language.prompts import PromptBuilder
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import Query
from streamer.settings.retriever import RetrieverSettings
from support.dense_bundles import dense_bundle

IDS = [f"item-{number}" for number in range(200)]


@pytest.fixture
def bundle(tiny_model_bundle: Path, tmp_path: Path, tiny_embeddings: NDArray[np.float32]) -> Bundle:
    return dense_bundle(tiny_model_bundle, tmp_path / "bundle", tiny_embeddings, IDS)


@pytest.fixture
def reader(bundle: Bundle, tmp_path: Path, tiny_embeddings: NDArray[np.float32]) -> Iterator[IndexReader]:
    layout, count = bundle.layout, len(IDS)
    codes = ItemEncoder.of(bundle).encode(tiny_embeddings[:count], [item.encode() for item in IDS])
    batch = CodesBatch(
        ids=[item.encode() for item in IDS],
        codes=codes,
        weights=np.ones(count, np.float32),
        titles=IDS,
        updated_at=np.zeros(count, np.int64),
        deleted=np.zeros(count, bool),
    )
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        writer.apply(batch, {("item-codes", 0): count})
        with IndexReader(writer.path) as reader:
            yield reader


@pytest.mark.parametrize("dense", [True, False])
def test_prompt_that_is_served_is_the_one_that_was_learnt(
    bundle: Bundle, reader: IndexReader, tiny_embeddings: NDArray[np.float32], dense: bool
) -> None:
    model, plain = load_language_model(bundle)
    settings = msgspec.structs.replace(plain.settings, query_codes=True, max_history=2)
    prompts = PromptBuilder(plain.vocabulary, plain.tokenizer, settings)
    answerer = Answerer(
        bundle=bundle, model=model, prompts=prompts, reader=reader, settings=RetrieverSettings(dense=dense)
    )
    embedding = tiny_embeddings[250]
    history = IDS[3:6]
    asked = [
        Asked("both", Query(text="thing 7", embedding=embedding.tolist(), history=tuple(history))),
        Asked("no history", Query(text="thing 7", embedding=embedding.tolist())),
        Asked("no embedding", Query(text="thing 7", history=tuple(history))),
        Asked("nothing but an embedding", Query(embedding=embedding.tolist())),
    ]
    answers = answerer.answers(asked)
    assert all(answer.items for answer in answers)

    encoder = ItemEncoder.of(bundle)
    codes = encoder.encode(tiny_embeddings[: len(IDS)], [item.encode() for item in IDS])
    named = QueryCodes(IDS, codes, encoder.encode_queries, lambda texts: embedding[None], settings.max_history)
    examples = named.write_into(
        TrainingData(
            examples=(
                TrainingExample(query="thing 7", history=tuple(history), item=IDS[0]),
                TrainingExample(query="thing 7", item=IDS[0]),
            )
        )
    ).examples
    rows = {item: row for row, item in enumerate(named.item_ids)}
    learnt = [
        prompts.build(
            example.query, bundle.layout.sid_tokens(named.codes[[rows[item] for item in example.history]]), None
        )
        for example in examples
    ]
    assert [asked[0].prompt, asked[1].prompt] == learnt
    tokens = bundle.layout.sid_tokens(codes[3:6])
    assert asked[2].prompt == prompts.build("thing 7", tokens, None)
    # A query of nothing but an embedding says something to this model, and nothing to one without query codes.
    assert asked[3].reads_something
    own = Asked("own", Query(embedding=embedding.tolist()))
    Answerer(bundle=bundle, model=model, prompts=plain, reader=reader, settings=RetrieverSettings()).answers([own])
    assert not own.reads_something
