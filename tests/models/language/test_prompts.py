"""Prompts and text tokens: every part optional, cut where they are too long, the same text the same ids after a reload."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.errors import SidstreamError
from models.language.instruction import parse_instruction
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import TextTokenizer, train_tokenizer
from models.sids.vocabulary import SidVocabulary

pytest.importorskip("tokenizers")

TITLES = ["Red trail running shoes", "Blue running jacket", "Laptop bag 15 inch", "Gaming laptop 16 GB"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(TITLES, size=400)


@pytest.fixture(scope="module")
def builder(tokenizer: TextTokenizer) -> PromptBuilder:
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=4, layers=3, size=8)
    return PromptBuilder(vocabulary, tokenizer, PromptSettings(max_history=2, max_text_tokens=4))


def test_begin_user_history_text_separator_in_this_order(builder: PromptBuilder) -> None:
    vocabulary = builder.vocabulary
    history = np.array([[1, 9, 17], [2, 18, -1]])
    text = builder.tokenizer.encode("running shoes")
    assert builder.build("running shoes", history, "ada") == [
        vocabulary.begin_id,
        vocabulary.user_id("ada"),
        *(vocabulary.sid_base + token for token in (1, 9, 17, 2, 18)),
        *text,
        vocabulary.separator_id,
    ]


@pytest.mark.parametrize(("text", "history", "user"), [("", (), None), ("shoes", (), None), ("", (), "ada")])
def test_every_part_is_optional(builder: PromptBuilder, text: str, history: tuple[()], user: str | None) -> None:
    prompt = builder.build(text, history, user)
    assert prompt[0] == builder.vocabulary.begin_id
    assert prompt[-1] == builder.vocabulary.separator_id
    assert len(prompt) == 2 + len(builder.tokenizer.encode(text)) * bool(text) + bool(user)


def test_a_long_history_keeps_its_newest_items_and_a_long_text_its_first_tokens(builder: PromptBuilder) -> None:
    history = [np.array([token, 8 + token, 16 + token]) for token in range(5)]
    text = "red trail running shoes blue running jacket laptop bag"
    prompt = builder.build(text, history)
    base = builder.vocabulary.sid_base
    assert prompt[1:7] == [base + token for token in (3, 11, 19, 4, 12, 20)]
    assert prompt[7:-1] == builder.tokenizer.encode(text)[:4]
    assert len(prompt) == builder.width - 1  # all but the user


def test_no_history_allowed_means_no_history(tokenizer: TextTokenizer) -> None:
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=0, layers=3, size=8)
    builder = PromptBuilder(vocabulary, tokenizer, PromptSettings(max_history=0))
    assert builder.build("", [np.array([1, 9, 17])]) == [vocabulary.begin_id, vocabulary.separator_id]


def test_text_ids_survive_saving_and_ignore_case(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    reloaded = TextTokenizer.load(tmp_path)
    for text in ("Red RUNNING shoes", "日本語 ümläut 🙂", "", "  spaces   here "):
        assert reloaded.encode(text) == tokenizer.encode(text)
        assert all(0 <= token < tokenizer.size for token in tokenizer.encode(text))
    assert tokenizer.encode("RED SHOES") == tokenizer.encode("red shoes")
    assert tokenizer.encode_batch(TITLES[:4]) == [tokenizer.encode(title) for title in TITLES[:4]]
    assert tokenizer.encode("日本語")  # bytes: no script is unknown


def test_a_tokenizer_too_large_for_the_vocabulary_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(SidstreamError, match="do not belong together"):
        PromptBuilder(SidVocabulary(text_size=10, user_buckets=0, layers=3, size=8), tokenizer)


def worded(tokenizer: TextTokenizer, text: str, **settings: int) -> PromptBuilder:
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=4, layers=3, size=8)
    return PromptBuilder(vocabulary, tokenizer, PromptSettings(instruction=parse_instruction(text), **settings))


def test_words_stand_around_what_a_prompt_says_and_go_with_it(tokenizer: TextTokenizer) -> None:
    builder = worded(tokenizer, "[User {user}. ][Bought {history}. ][Wants {query}. ]Next?", max_history=2)
    vocabulary, ids = builder.vocabulary, tokenizer.encode
    user, sid = vocabulary.user_id("ada"), [vocabulary.sid_base + token for token in (1, 9, 17)]
    begin, end = [vocabulary.begin_id], [*ids("Next?"), vocabulary.separator_id]
    bought, wants = [*ids("Bought "), *sid, *ids(". ")], [*ids("Wants "), *ids("shoes"), *ids(". ")]
    history = np.array([[1, 9, 17]])
    assert builder.build("shoes", history, "ada") == [*begin, *ids("User "), user, *ids(". "), *bought, *wants, *end]
    assert builder.build("shoes") == [*begin, *wants, *end]
    assert builder.build("", history) == [*begin, *bought, *end]
    assert builder.build() == [*begin, *end]
    longest = builder.build("red trail running shoes blue running jacket " * 9, [np.array([1, 9, 17])] * 3, "ada")
    assert len(longest) == builder.width


def test_titles_stand_behind_their_items_and_an_item_without_one_stands_alone(tokenizer: TextTokenizer) -> None:
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=0, layers=3, size=8)
    builder = PromptBuilder(vocabulary, tokenizer, PromptSettings(max_history=2, history_text=2))
    base = vocabulary.sid_base
    history = np.array([[0, 8, 16], [1, 9, 17], [2, 18, -1]])
    assert builder.build("", history, None, ["cut with its item", "", "Red trail running shoes"]) == [
        vocabulary.begin_id,
        *(base + token for token in (1, 9, 17, 2, 18)),
        *tokenizer.encode("red trail running shoes")[:2],
        vocabulary.separator_id,
    ]
    plain = PromptBuilder(vocabulary, tokenizer, PromptSettings(max_history=2))
    assert builder.build("", history) == plain.build("", history, None, ["titles", "are", "not read"])
    assert builder.title_ids(["\ud83d half a pair", "long " * 10_000]).shape == (2, 2)


@pytest.mark.parametrize(
    ("text", "slot"), [("{history} {query}", "user"), ("{user} {query}", "history"), ("{user} {history}", "query")]
)
def test_instruction_that_would_leave_out_what_queries_bring_is_refused(
    tokenizer: TextTokenizer, text: str, slot: str
) -> None:
    with pytest.raises(SidstreamError, match=rf"no slot \{{{slot}\}}"):
        worded(tokenizer, text).require_slots()


def test_titles_without_a_history_are_refused() -> None:
    with pytest.raises(SidstreamError, match="let max_history be 1 or more"):
        PromptSettings(max_history=0, history_text=3)
