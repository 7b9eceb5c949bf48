"""Each architecture and each loss from examples to answers: trained, saved in a bundle, loaded, decoded over an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundles.bundle import Bundle
from models.examples.records import TrainingExample
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from models.bundles.building import FitSettings, fit_bundle, train_bundle  # noqa: E402
from models.bundles.first_model import ModelSettings  # noqa: E402
from models.bundles.model_of_bundle import load_language_model  # noqa: E402
from models.training.settings import TrainingSettings  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402

NAMES = ["anchor", "basket", "candle", "drum", "engine", "feather", "guitar", "hammer", "island", "jacket"]
EXAMPLES = [TrainingExample(f"{name} please", item=name) for name in NAMES]


@pytest.mark.parametrize(
    ("architecture", "loss"),
    [
        ("llama", "cross-entropy"),
        ("qwen", "cross-entropy"),
        ("baichuan", "cross-entropy"),
        ("llama", "focal"),
        ("llama", "mile"),
    ],
)
def test_what_was_learnt_is_found_first_after_the_way_through_a_bundle(
    architecture: Any, loss: Any, tmp_path: Path
) -> None:
    embeddings = np.random.default_rng(0).normal(size=(len(NAMES), 8)).astype(np.float32)
    fitted = fit_bundle(embeddings, tmp_path / "bundle", FitSettings(size=8, iterations=3, head_method="top-k", k=1))
    train_bundle(
        fitted.bundle,
        EXAMPLES,
        NAMES,
        fitted.codes,
        ModelSettings(hidden_size=32, model_layers=2, heads=2, tokenizer_size=300, architecture=architecture),
        TrainingSettings(max_steps=100, batch_size=len(NAMES), learning_rate=1e-2, loss=loss),
    )
    bundle = Bundle.open(tmp_path / "bundle", need_model=True)
    model, prompts = load_language_model(bundle)
    batch = CodesBatch(
        ids=[name.encode() for name in NAMES],
        codes=fitted.codes,
        weights=np.ones(len(NAMES), dtype=np.float32),
        titles=NAMES,
        updated_at=np.zeros(len(NAMES), dtype=np.int64),
        deleted=np.zeros(len(NAMES), dtype=bool),
    )
    queries = [prompts.build(example.query) for example in EXAMPLES]
    with IndexWriter.open(tmp_path / "index", codebook_id=fitted.codebook.id, layers=3, size=8) as writer:
        writer.apply(batch, {("item-codes", 0): len(NAMES)})
        with IndexReader(tmp_path / "index") as reader, reader.snapshot() as snapshot:
            answers = beam_search(model, prompts.vocabulary, queries, SnapshotTrie(snapshot, bundle.layout), beams=5)
    for answer, codes in zip(answers, fitted.codes, strict=True):
        assert len(answer) == 5
        assert answer[0].tokens == bundle.layout.sid_of(codes.tolist())
        assert all(np.isfinite(sid.score) for sid in answer)
