"""A bundle with an instruction and titles in its prompts: what is served is what was learnt, token for token."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.building import train_bundle
from models.bundles.bundle import Bundle
from models.bundles.first_model import ModelSettings
from models.bundles.item_encoder import ItemEncoder
from models.bundles.model_of_bundle import load_language_model
from models.catalogue import CatalogueItem
from models.examples.alignment import AlignmentSettings
from models.examples.records import TrainingExample
from models.language.instruction import DEFAULT_INSTRUCTION
from models.language.prompts import PromptBuilder, PromptSettings
from models.training.example_table import ExampleTable
from models.training.settings import TrainingSettings
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import Query
from streamer.settings.retriever import RetrieverSettings

transformers = pytest.importorskip("transformers")

COUNT = 40
IDS = [f"item-{number}" for number in range(COUNT)]
TITLES = [f"brass candle number {number}" if number % 5 else "" for number in range(COUNT)]
EXAMPLES = [
    TrainingExample("candle 7", "ada", (IDS[3], IDS[5], IDS[6]), IDS[7]),
    TrainingExample("candle 9", item=IDS[9]),
    TrainingExample(user="bob", history=(IDS[1],), item=IDS[2]),
]


def checkpoint(directory: Path) -> Path:
    """One with a chat template, as its makers would publish it."""
    import torch

    from models.language.tokenizer import train_tokenizer

    own = train_tokenizer(TITLES, size=320)._tokenizer
    own.add_special_tokens(["<s>", "<|user|>", "<|assistant|>"])
    configuration = transformers.LlamaConfig(
        vocab_size=own.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(configuration).save_pretrained(directory)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>")
    theirs.chat_template = "{{ bos_token }}<|user|>{{ messages[0]['content'] }}<|assistant|>"
    theirs.save_pretrained(directory)
    return directory


@pytest.fixture(params=["a new model", "a checkpoint"])
def bundle(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path, codes: NDArray[np.uint16]) -> Bundle:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    settings = ModelSettings(
        checkpoint=checkpoint(tmp_path / "checkpoint") if request.param == "a checkpoint" else None,
        hidden_size=16,
        model_layers=1,
        heads=2,
        user_buckets=4,
        prompt=PromptSettings(max_history=2, max_text_tokens=4, history_text=3),
        instruction=DEFAULT_INSTRUCTION,
    )
    items = [CatalogueItem(id=item, title=title) for item, title in zip(IDS, TITLES, strict=True)]
    trained, outcome = train_bundle(
        Bundle.open(tmp_path / "bundle"),
        EXAMPLES,
        IDS,
        codes,
        settings,
        TrainingSettings(max_steps=2, batch_size=4),
        items=items,
        alignment=AlignmentSettings(("title-to-sid", "sid-to-title"), 0.5),
    )
    assert outcome.examples == 2 * len(EXAMPLES)
    return trained


@pytest.fixture
def codes(tiny_bundle: Path, tiny_embeddings: NDArray[np.float32]) -> NDArray[np.uint16]:
    encoder = ItemEncoder.of(Bundle.open(tiny_bundle))
    return encoder.encode(tiny_embeddings[:COUNT], [item.encode() for item in IDS])


@pytest.fixture
def reader(bundle: Bundle, tmp_path: Path, codes: NDArray[np.uint16]) -> Iterator[IndexReader]:
    layout = bundle.layout
    batch = CodesBatch(
        ids=[item.encode() for item in IDS],
        codes=codes,
        weights=np.ones(COUNT, np.float32),
        titles=TITLES,
        updated_at=np.zeros(COUNT, np.int64),
        deleted=np.zeros(COUNT, bool),
    )
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        writer.apply(batch, {("item-codes", 0): COUNT})
        with IndexReader(writer.path) as reader:
            yield reader


def test_prompt_that_is_served_is_the_one_that_was_learnt(
    bundle: Bundle, reader: IndexReader, codes: NDArray[np.uint16]
) -> None:
    record = Bundle.open(bundle.directory, need_model=True).manifest
    assert record.format == 3
    assert record.language_model is not None
    assert record.language_model.training["alignment"] == {"tasks": ["title-to-sid", "sid-to-title"], "share": 0.5}
    model, prompts = load_language_model(bundle)
    assert prompts.settings == record.language_model.prompt
    answerer = Answerer(bundle=bundle, model=model, prompts=prompts, reader=reader, settings=RetrieverSettings())
    asked = [
        Asked(str(number), Query(text=example.query, user=example.user, history=example.history))
        for number, example in enumerate(EXAMPLES)
    ]
    nothing = Asked("nothing", Query())
    assert all(answer.items for answer in answerer.answers(asked))
    answerer.answers([nothing])
    assert [one.reads_something for one in (*asked, nothing)] == [True, True, True, False]
    rows = {item: row for row, item in enumerate(IDS)}
    learnt = ExampleTable(EXAMPLES, prompts, bundle.layout, rows, codes, prompts.title_ids(TITLES))
    for one, row in zip(asked, range(len(EXAMPLES)), strict=True):
        (batch,) = learnt.batch(np.array([row]), 0.0, np.random.default_rng(0)).token_ids.tolist()
        assert batch[: len(one.prompt)] == one.prompt
        assert one.prompt[-1] == prompts.vocabulary.separator_id
        assert batch[len(one.prompt)] >= prompts.vocabulary.sid_base


def test_chat_template_stands_once_around_the_whole_prompt(bundle: Bundle) -> None:
    model, prompts = load_language_model(bundle)
    ids = prompts.build("candle", (), "ada")
    if model.config.model_type != "llama" or prompts.tokenizer.chat_frame is None:
        assert prompts.settings.instruction[-1].before == "Which item comes next?"
        return
    begin, user, assistant = (prompts.tokenizer.encode(token)[0] for token in ("<s>", "<|user|>", "<|assistant|>"))
    assert [ids.index(token) for token in (begin, user, assistant)] == [0, 1, len(ids) - 2]
    assert [ids.count(token) for token in (begin, user, assistant)] == [1, 1, 1]
    plain = PromptBuilder(prompts.vocabulary, prompts.tokenizer, PromptSettings())
    assert set(plain.build("candle", (), "ada")) < set(ids)
