"""What is explained is on the terminal, markup in ids as it is."""

from __future__ import annotations

import io

from rich.console import Console

from retriever.explanation_tables import show_explanations
from streamer.events.records import Answer, AnswerExplanation, AnswerItem, ItemExplanation, NotAnswered


def shown_of(answer: Answer) -> str:
    output = io.StringIO()
    show_explanations(Console(file=output, width=160), answer)
    return output.getvalue()


def test_layers_parts_and_what_there_was_to_choose_from_are_shown() -> None:
    why = ItemExplanation(
        by_layer={"<a_1>": -0.25, "<c_2>": -1.5}, log_sid=-1.75, sid_items=7, share=0.125, log_model=-3.83, log_dense=-2.0,
        cosine=0.875,
    )  # fmt: skip
    about = AnswerExplanation(
        layout_reason="retriever.layout is pinned", sids=50, expansions=1234, live_items=300, let_through=30, excluded=2,
        sharpness=12.0, share_of_dense=0.5, share_of_dense_new=1.0, boost_of_new=0.25,
    )  # fmt: skip
    item = AnswerItem(item_id="[/]sku", title="", sid="<a_1><c_2>", score=-2.0, explanation=why)
    text = shown_of(Answer(query_id="q", items=(item,), explanation=about))
    for part in ("[/]sku", "<a_1> -0.25 <c_2> -1.50", "-1.75", "0.125", "-3.83", "-2.00", "0.875"):
        assert part in text
    assert "retriever.layout is pinned" in text
    assert "30 of 300 live items were let through, 2 of them excluded" in text
    assert "50 SIDs exactly, in 1,234 expansions" in text
    assert "λ 12, dense share α 0.5, of new items 1, boost of new items β 0.25" in text


def test_items_that_are_missing_have_a_sentence_each() -> None:
    missing = (NotAnswered(item_id="[b]", reason="not_let_through", message="it fails [price]"),)
    assert shown_of(Answer(query_id="q", why_not=missing)) == "[b] not let through: it fails [price]\n"


def test_answer_without_an_explanation_shows_nothing_more() -> None:
    assert shown_of(Answer(query_id="q", items=(AnswerItem(item_id="a", title="", sid="", score=-1.0),))) == ""
