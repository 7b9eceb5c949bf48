"""Every family of causal LMs from a checkpoint to answers: trained, saved in a bundle, loaded, decoded as brute force says."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from models.bundles.building import FitSettings, fit_bundle, train_bundle  # noqa: E402
from models.bundles.bundle import Bundle  # noqa: E402
from models.bundles.first_model import ModelSettings  # noqa: E402
from models.bundles.model_of_bundle import load_language_model  # noqa: E402
from models.examples.records import TrainingData, TrainingExample, TrainingHistory  # noqa: E402
from models.language.prompts import PromptSettings  # noqa: E402
from models.training.settings import TrainingSettings  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.forward_passes import PlainPasses, forward_passes  # noqa: E402
from study.measures.catalogue_trie import CatalogueTrie  # noqa: E402
from support.tiny_families import BY_ORDER, BY_PADDING, FAMILIES, WINDOWED, write_checkpoint  # noqa: E402

NAMES = [f"thing-{number}" for number in range(10)]
DATA = TrainingData(
    histories=tuple(TrainingHistory(tuple(NAMES[(start + step) % 10] for step in range(4))) for start in range(4)),
    examples=tuple(TrainingExample(name, item=name) for name in NAMES),
)
APART = {*BY_ORDER, *WINDOWED, "roberta as a decoder"}  # prompts that begin alike cannot be one sequence
PROMPT = PromptSettings(max_history=3, max_text_tokens=8)


@pytest.mark.parametrize("family", [*FAMILIES, *WINDOWED, *BY_PADDING])
def test_model_of_any_family_is_trained_saved_loaded_and_decodes_as_brute_force_says(
    family: str, tmp_path: Path
) -> None:
    embeddings = np.random.default_rng(0).normal(size=(len(NAMES), 8)).astype(np.float32)
    fitted = fit_bundle(embeddings, tmp_path / "bundle", FitSettings(size=4, iterations=3))
    checkpoint = write_checkpoint(family, tmp_path / "checkpoint")
    _, outcome = train_bundle(
        fitted.bundle,
        DATA,
        NAMES,
        fitted.codes,
        ModelSettings(checkpoint=checkpoint, prompt=PROMPT),
        TrainingSettings(max_steps=6, batch_size=11, learning_rate=3e-3),
    )
    assert outcome.examples == 22
    # A history is one row for all of its targets, or as many rows.
    assert outcome.rows == (22 if family in APART else 14)
    bundle = Bundle.open(tmp_path / "bundle", need_model=True)
    model, prompts = load_language_model(bundle)
    passes = forward_passes(model, 30)
    assert isinstance(passes, PlainPasses) == (family in APART)

    sids = np.unique(fitted.codes, axis=0)
    layout, vocabulary = bundle.layout, prompts.vocabulary
    history = layout.sid_tokens(fitted.codes[[1, 2]])
    queries = [prompts.build("thing-3"), prompts.build("", history, None)]
    trie = CatalogueTrie(fitted.codes, layout, None)
    answers = beam_search(model, vocabulary, queries, trie, beams=len(sids))
    for prompt, answer in zip(queries, answers, strict=True):
        expected = {}
        for codes in sids:
            tokens = layout.sid_tokens([codes])[0]
            ids = vocabulary.token_ids(np.asarray(tokens)).tolist()
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0].float()
            scores = torch.log_softmax(logits, dim=-1)
            places = itertools.count(len(prompt) - 1)
            expected[tuple(layout.sid_of(codes.tolist()))] = sum(
                float(scores[place, token]) for place, token in zip(places, ids, strict=False)
            )
        assert len(answer) == len(sids)
        for sid in answer:
            assert sid.score == pytest.approx(expected[tuple(sid.tokens)], abs=2e-3)
        assert [sid.score for sid in answer] == sorted((sid.score for sid in answer), reverse=True)
