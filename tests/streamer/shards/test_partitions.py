"""Sets of partitions have one text each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.settings import SettingsError, load_settings
from streamer.shards.partitions import EVERY, holds, numbers_of, overlap, text_of


@given(st.sets(st.integers(0, 300)))
def test_text_of_a_set_names_that_set_and_no_other(numbers: set[int]) -> None:
    assert numbers_of(text_of(numbers)) == numbers


@given(st.sets(st.integers(0, 40), min_size=1), st.sets(st.integers(0, 40), min_size=1))
def test_sets_overlap_where_a_partition_is_in_both(one: set[int], other: set[int]) -> None:
    assert overlap(text_of(one), text_of(other)) == bool(one & other)
    assert overlap(EVERY, text_of(other))
    assert all(holds(text_of(one), number) == (number in one) for number in range(41))


@pytest.mark.parametrize(
    ("given_", "text"),
    [("3, 0-1 ,2,6", "0-3,6"), ([0, 1, 5], "0-1,5"), (["0-3", 7], "0-3,7"), (4, "4"), ("", EVERY), ([], EVERY)],
)
def test_setting_takes_a_text_or_a_list_and_keeps_the_one_text(given_: object, text: str) -> None:
    assert load_settings(indexer={"partitions": given_}).indexer.partitions == text


def test_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDSTREAM_INDEXER__PARTITIONS", "0-3,6")
    settings = load_settings(topics={"prefix": "shop-"})
    assert settings.indexer.partitions == "0-3,6"
    assert settings.retriever_group == "shop-sidstream-retriever-partitions-0-3_6"
    assert load_settings(indexer={"partitions": ""}).retriever_group == "sidstream-retriever"


@pytest.mark.parametrize("wrong", ["3-1", "a", "0-", "-1", "0,,2", "0-200000", "١"])
def test_text_that_names_no_partitions_is_refused_with_how_to_write_them(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"indexer\.partitions: .*partitions"):
        load_settings(indexer={"partitions": wrong})
