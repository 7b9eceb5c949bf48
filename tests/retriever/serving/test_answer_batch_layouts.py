"""The retriever's transform under another layout than the model's, and by another search than a beam of the usual width."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from retriever.answering.answers import RetrieverError
from retriever.search.marginal_search import marginal_beam_search
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter
from support.answer_batches import (
    LIVE,
    answer_batch,
    answers,
    items_batch,
    query,
    with_short_sids,
    without_layer2_dropout,
)


def test_live_layout_is_followed_by_a_model_with_layer2_dropout_and_items_stay_valid(
    bundle: Bundle, writer: IndexWriter
) -> None:
    answer_queries = answer_batch(bundle, writer, layout="live")
    ask = query(b"q", text="thing number 7", limit=30)
    [before] = answers(answer_queries([ask]))
    layout = with_short_sids(bundle, writer)
    [after] = answers(answer_queries([ask]))
    assert (before.layout, after.layout) == (bundle.layout.generation, layout.generation)
    assert any("<b_" not in item.sid for item in after.items), "SIDs of head tokens are short now"
    assert not any("<b_" not in item.sid for item in before.items)
    assert {item.item_id for item in after.items} <= {f"item-{number}" for number in range(LIVE)}


def test_live_layout_is_refused_for_a_model_without_layer2_dropout(bundle: Bundle, writer: IndexWriter) -> None:
    with pytest.raises(RetrieverError, match=r"without layer-2 dropout.*'marginal'"):
        answer_batch(without_layer2_dropout(bundle), writer, layout="live")


def test_marginal_decoding_follows_the_live_layout_without_layer2_dropout(bundle: Bundle, writer: IndexWriter) -> None:
    plain = without_layer2_dropout(bundle)
    pinned, marginal = answer_batch(plain, writer), answer_batch(plain, writer, layout="marginal")
    asked = [query(b"a", text="thing", history=["item-3", "item-4"], limit=100), query(b"b", text="thing", limit=100)]
    before = answers(pinned(asked))
    for one, other in zip(before, answers(marginal(asked)), strict=True):
        assert [(item.item_id, item.score) for item in one.items] == [
            (item.item_id, item.score) for item in other.items
        ], "no head tokens yet: nothing to sum over"
    layout = with_short_sids(bundle, writer)
    after = answers(marginal(asked))
    for one, other in zip(before, after, strict=True):
        assert other.error is None
        assert (other.layout, other.layout_mode) == (layout.generation, "marginal")
        short = {item.item_id: item.score for item in other.items if "<b_" not in item.sid}
        assert short
        # The sum holds the item's own path; an item with its layer-2 token has no other.
        own = {item.item_id: item.score for item in one.items}
        assert any(item in own for item in short)
        for item in other.items:
            if item.item_id in own:
                expected = own[item.item_id]
                assert item.score == pytest.approx(expected, abs=1e-4) or (
                    item.item_id in short and item.score > expected
                )


def test_marginal_decoding_reads_histories_under_the_layout_of_the_model(bundle: Bundle, writer: IndexWriter) -> None:
    layout = with_short_sids(bundle, writer)
    model, prompts = load_language_model(bundle)
    with writer.snapshot() as snapshot:
        stored = snapshot.find([f"item-{number}".encode() for number in range(LIVE)])
        history = [item for item in stored if item is not None and item.codes[1] in layout.head_tokens][:4]
        prompt = prompts.build(history=bundle.layout.sid_tokens([item.codes for item in history]))
        (expected,) = marginal_beam_search(
            model, prompts.vocabulary, [prompt], SnapshotTrie(snapshot, layout), pinned=bundle.layout
        )
    ask = query(b"q", history=[item.id.decode() for item in history], limit=1)
    [answer] = answers(answer_batch(bundle, writer, layout="marginal")([ask]))
    assert answer.items[0].score == pytest.approx(expected[0].score, abs=1e-4)


def test_items_of_a_sid_are_ranked_by_similarity_to_the_history(bundle: Bundle, writer: IndexWriter) -> None:
    """Items that differ in the left-out token alone: the one whose token the history has comes first."""
    layout = with_short_sids(bundle, writer)
    codes = np.array([[1, token, 1] for token in layout.head_tokens], np.uint16)
    ids = [f"head-{token}" for token in layout.head_tokens]
    writer.apply(items_batch(ids, codes), {})
    history = np.array([[2, token, 5] for token in layout.head_tokens], np.uint16)
    writer.apply(items_batch([f"seen-{token}" for token in layout.head_tokens], history), {})
    reconstructed = Codebook.load(bundle.codebook_path).reconstruct(np.concatenate((codes, history)))
    reconstructed /= np.linalg.norm(reconstructed, axis=1, keepdims=True)
    cosines = reconstructed[: len(codes)] @ reconstructed[len(codes) :].T
    answer_queries = answer_batch(
        bundle, writer, layout="live", ranking="history_similarity", beams=1_000, maximum_limit=400
    )
    for place, token in enumerate(layout.head_tokens):
        [answer] = answers(answer_queries([query(b"q", history=[f"seen-{token}", "nope"], limit=400)]))
        group = [item.item_id for item in answer.items if item.item_id in ids]
        expected = [ids[number] for number in np.argsort(-cosines[:, place])]
        assert group == [item_id for item_id in expected if item_id in group]
        assert len(group) > 1
    assert answers(answer_queries([query(b"q", text="thing")]))[0].error is None, "a query without a history"


@pytest.mark.parametrize("layout", ["pinned", "marginal"])
def test_limit_beyond_the_beams_is_answered_in_full_and_changes_no_other_answer(
    bundle: Bundle, writer: IndexWriter, layout: str
) -> None:
    with_short_sids(bundle, writer)
    answer_queries = answer_batch(bundle, writer, layout=layout, beams=4, ranking="own_probability")
    small = [query(name, text=f"thing number {name.decode()}", limit=4) for name in (b"1", b"2")]
    alone = answers(answer_queries(small))
    large = [query(b"3", text="thing", limit=100), query(b"4", text="thing", limit=33)]
    together = {answer.query_id: answer for answer in answers(answer_queries([small[0], *large, small[1]]))}
    assert len({item.item_id for item in together["3"].items}) == 100
    assert len(together["4"].items) == 33
    for answer in alone:
        assert [item.item_id for item in together[answer.query_id].items] == [item.item_id for item in answer.items]


def test_query_that_asks_for_an_exact_search_gets_one_and_its_answer_says_so(
    bundle: Bundle, writer: IndexWriter
) -> None:
    asked = [
        query(b"exact", text="x", search="exact"),
        query(b"beam", text="x", search="beam"),
        query(b"usual", text="x"),
    ]
    found = {answer.query_id: answer for answer in answers(answer_batch(bundle, writer, beams=4)(asked))}
    assert (found["exact"].search, found["exact"].search_complete) == ("exact", True)
    assert [found[name].search for name in ("beam", "usual")] == ["beam", "beam"]
    assert found["beam"].search_complete is msgspec.UNSET
    assert found["exact"].items[0].score >= found["beam"].items[0].score - 1e-4
    [usual] = answers(answer_batch(bundle, writer, search="exact")([query(b"q", text="x")]))
    assert (usual.search, usual.search_complete) == ("exact", True)


def test_exact_search_whose_budget_is_spent_says_that_it_is_not_complete(bundle: Bundle, writer: IndexWriter) -> None:
    [answer] = answers(answer_batch(bundle, writer, search="exact", exact_budget=2)([query(b"q", text="x")]))
    assert (answer.search, answer.search_complete) == ("exact", False)
    assert len(answer.items) == 10


def test_exact_search_is_refused_where_the_retriever_decodes_marginally(bundle: Bundle, writer: IndexWriter) -> None:
    answer_queries = answer_batch(bundle, writer, layout="marginal")
    outgoing = answer_queries([query(b"q", text="x", search="exact")])
    [answer] = answers(outgoing)
    assert answer.error is not None
    assert answer.error.kind == "SearchUnavailable"
    assert [out.topic for out in outgoing] == ["results"], "nothing is wrong with the query: no dead letter"
    with pytest.raises(RetrieverError, match="do not go together"):
        answer_batch(bundle, writer, layout="marginal", search="exact")
