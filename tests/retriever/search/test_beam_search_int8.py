"""A bundle's model in int8: loaded by the setting, decoded with the fast passes, near what float32 answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.bundles.bundle import Bundle  # noqa: E402
from models.bundles.model_of_bundle import load_language_model  # noqa: E402
from models.language.devices import dtype_named  # noqa: E402
from models.language.int8 import has_int8  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.forward_passes import SharedPromptPasses, forward_passes  # noqa: E402
from study.measures.catalogue_trie import CatalogueTrie  # noqa: E402


def test_bundle_in_int8_is_decoded_with_one_cache_a_query_and_scores_as_in_float32(tiny_model_bundle: Path) -> None:
    bundle = Bundle.open(tiny_model_bundle, need_model=True)
    model, prompts = load_language_model(bundle)
    changed, _ = load_language_model(bundle, dtype=dtype_named("int8"))
    assert has_int8(changed)
    assert not has_int8(model)
    assert isinstance(forward_passes(changed, 40), SharedPromptPasses)
    layout = bundle.layout
    codes = np.random.default_rng(0).integers(layout.size, size=(60, layout.layers)).astype(np.uint16)
    trie, asked = CatalogueTrie(codes, layout, None), [prompts.build("thing 3"), prompts.build("thing 40 red")]
    beams = 2 * len(codes)  # every SID is found, whatever its score
    exact, found = (beam_search(each, prompts.vocabulary, asked, trie, beams=beams) for each in (model, changed))
    for ours, theirs in zip(found, exact, strict=True):
        scores = {sid.tokens: sid.score for sid in theirs}
        assert {sid.tokens for sid in ours} == scores.keys()
        spread = max(scores.values()) - min(scores.values())
        assert max(abs(sid.score - scores[sid.tokens]) for sid in ours) < 0.1 * max(spread, 1.0)
