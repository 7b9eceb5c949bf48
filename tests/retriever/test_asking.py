"""What is sent of a query, without a broker."""

from __future__ import annotations

import pytest

from retriever.asking import QueryTextError, query_record
from streamer.events.records import QUERY, Query


def test_query_is_sent_with_the_seconds_that_it_may_take() -> None:
    record = query_record("q1", Query(text="shoes"), 2.5)
    assert record["key"] == b"q1"
    sent = QUERY.decode(record["value"])
    assert (sent.text, sent.timeout_ms) == ("shoes", 2_500)


@pytest.mark.parametrize("query", [Query(text="\udcff"), Query(user="a\udcffb"), Query(history=("a", "\udcff"))])
def test_text_that_is_no_utf_8_is_refused_in_a_sentence(query: Query) -> None:
    with pytest.raises(QueryTextError, match=r"has '\\udcff', which is no character: send it as UTF-8"):
        query_record("q1", query, 1.0)
