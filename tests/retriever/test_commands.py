"""``sidstream ask``: what is written is what the client is asked, a wrong condition asks nothing, an answer is shown as it is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import retriever.client
from models.errors import SidstreamError
from retriever.commands import show_answer
from sidstream import app
from streamer.events.records import Answer, AnswerItem
from streamer.filters.slate import SlateRule

WORDS = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


class AskedClient:
    """Stands for the client: notes what it is asked."""

    asked: dict[str, Any]

    def __init__(self, _settings: object) -> None:
        pass

    def __enter__(self) -> AskedClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, text: str, **asked: Any) -> Answer:
        AskedClient.asked = {"text": text, **asked}
        return Answer(query_id="q")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that declares attributes."""
    file = tmp_path / "shop.toml"
    file.write_text('[attributes.filterable]\nprice = "number"\nbrand = "string"\ntags = "strings"\n')
    monkeypatch.setenv("SIDSTREAM_CONFIG", str(file))
    monkeypatch.setattr(retriever.client, "Client", AskedClient)
    AskedClient.asked = {}


def ask(*words: str) -> Any:
    return CliRunner(env=WORDS).invoke(app, ["ask", *words])


@pytest.mark.usefixtures("shop")
def test_client_is_asked_to_explain_only_where_the_command_line_says_so() -> None:
    assert ask("kettle").exit_code == 0
    assert AskedClient.asked["explain"] is False
    assert ask("kettle", "--explain", "--why-not", "a", "--why-not", "b").exit_code == 0
    assert (AskedClient.asked["explain"], AskedClient.asked["why_not"]) == (True, ["a", "b"])


@pytest.mark.usefixtures("shop")
def test_slate_reaches_the_client_and_a_wrong_rule_asks_nothing() -> None:
    assert ask("kettle", "--at-most", "brand:2", "--at-most", "prefix/2:3").exit_code == 0
    rules = (SlateRule(per="brand", most=2), SlateRule(per="prefix", most=3, tokens=2))
    assert AskedClient.asked["slate"] == rules
    AskedClient.asked = {}
    refused = ask("kettle", "--at-most", "brnd:2")
    assert isinstance(refused.exception, SidstreamError)
    assert "is brand meant" in str(refused.exception)
    assert not AskedClient.asked


@pytest.mark.usefixtures("shop")
def test_conditions_exclusions_and_the_history_reach_the_client() -> None:
    words = ["kettle", "--where", "price<=30", "--where", "brand=Acme|Bosch", "--exclude", "a", "--exclude", "b"]
    assert ask(*words, "--history", "c", "--keep-history").exit_code == 0
    asked = AskedClient.asked
    assert asked["filter"] == {"all": [{"field": "price", "lte": 30}, {"field": "brand", "in": ["Acme", "Bosch"]}]}
    assert (asked["exclude"], asked["history"], asked["keep_history"]) == (["a", "b"], ["c"], True)


@pytest.mark.usefixtures("shop")
def test_conditions_and_a_filter_in_json_are_both_meant_and_neither_is_no_filter() -> None:
    ask("kettle", "--where", "tags~red", "--filter-json", '{"field": "anything", "lt": 3}')
    assert AskedClient.asked["filter"] == {
        "all": [{"field": "tags", "contains": "red"}, {"field": "anything", "lt": 3}]
    }
    ask("kettle")
    assert AskedClient.asked["filter"] is None
    assert AskedClient.asked["keep_history"] is False


@pytest.mark.usefixtures("shop")
def test_wrong_condition_is_marked_and_nothing_is_asked() -> None:
    answer = ask("kettle", "--where", "price<=cheap")
    assert isinstance(answer.exception, SidstreamError)
    assert str(answer.exception) == "price is a number, and 'cheap' is none\n  price<=cheap\n         ^^^^^"
    answer = ask("kettle", "--filter-json", "[]")
    assert answer.exit_code == 2
    assert "this is no JSON object" in answer.output
    assert AskedClient.asked == {}


def test_partial_answer_of_shards_says_whose_items_are_missing(shop: None, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = Answer(query_id="q", missing_partitions=(2, 3, 4, 7), note="a partial answer: no shard answered")
    monkeypatch.setattr(AskedClient, "ask", lambda *_args, **_asked: partial)
    found = ask("kettle")
    assert found.exit_code == 0
    assert "nothing of the partitions 2-4,7 is in it" in found.output


def test_markup_in_a_title_is_shown_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=120)
    item = AnswerItem(item_id="a", title="Cable [2-pack] [/] 5 m", sid="<a_1><c_2>", score=-1.0)
    show_answer(console, Answer(query_id="q", items=(item,), skipped_history=("[/]",)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Cable [2-pack] [/] 5 m" in shown


def test_terminal_says_which_leg_found_an_item_and_why_one_answered_alone() -> None:
    console = Console(file=io.StringIO(), width=140)
    items = (
        AnswerItem(item_id="a", title="a kettle", sid="<a_1>", score=-1.0, found_by="both"),
        AnswerItem(item_id="b", title="a newcomer", sid="<a_2>", score=-1.5, found_by="dense", new=True),
    )
    show_answer(console, Answer(query_id="q", items=items, legs=("dense",), note="nearest vectors alone: [no] model"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "found by" in shown
    assert "dense, new" in shown
    assert "nearest vectors alone: [no] model" in shown
