"""The scores of given SIDs, token by token, are those of the searches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from models.sids.layout import Layout
from retriever.search.beam_search import beam_search
from retriever.search.search_parts import Normaliser
from retriever.search.token_scores import token_scores
from store.topology.layout_trie import LayoutTrie
from store.topology.topology import topology_of


@pytest.mark.parametrize("normaliser", ["vocabulary", "layers"])
def test_tokens_of_long_and_short_sids_add_up_to_the_score_of_the_search(
    tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32], normaliser: Normaliser
) -> None:
    bundle = Bundle.open(tiny_model_bundle, need_model=True)
    model, prompts = load_language_model(bundle)
    codes = Codebook.load(bundle.codebook_path).encode(tiny_embeddings)
    own = bundle.layout
    heads = tuple(np.unique(codes[:, 1])[::2].tolist())
    layout = Layout(own.generation + 1, own.codebook_id, own.layers, own.size, heads)
    trie = LayoutTrie(topology_of([np.unique(codes, axis=0)], own.layers, own.size), layout)
    prompt = prompts.build("thing number 7", (), None)
    (found,) = beam_search(model, prompts.vocabulary, [prompt], trie, beams=600, normaliser=normaliser)
    assert {len(sid.tokens) for sid in found} == {own.layers - 1, own.layers}, "both kinds, or nothing is tested"
    scores = token_scores(model, prompts.vocabulary, prompt, [sid.tokens for sid in found], normaliser=normaliser)
    for sid, own_scores in zip(found, scores, strict=True):
        assert own_scores.shape == (len(sid.tokens),)
        assert (own_scores <= 0).all()
        assert own_scores.sum() == pytest.approx(sid.score, abs=1e-4)


def test_no_sids_cost_no_pass(tiny_model_bundle: Path) -> None:
    _, prompts = load_language_model(Bundle.open(tiny_model_bundle, need_model=True))
    assert token_scores(None, prompts.vocabulary, [1], []) == []
