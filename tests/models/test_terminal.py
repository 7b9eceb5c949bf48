"""Tables that wrap between words, lines that stay lines, and texts that are nothing but texts."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.terminal import print_command, print_message, print_table, shown


def screen(width: int) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=width, emoji=False, highlight=False), output


@given(st.text())
def test_what_is_shown_is_text_whatever_it_holds(text: str) -> None:
    console, output = screen(10_000)
    console.print(f"<{shown(text)}>")
    line = output.getvalue().removesuffix("\n")
    assert line.isprintable()
    assert len(line) >= len(text)
    assert Text.from_markup(shown(text)).spans == []


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_table_wraps_between_words_and_cuts_none(width: int) -> None:
    console, output = screen(width)
    words = [
        "a",
        "message",
        "of",
        "many",
        "words",
        "that",
        "says",
        "wherefore",
        "64-bytes-of-embedding",
        "were",
        "unexpected",
        "here",
    ]
    table = Table("", "letter", "why")
    table.add_row("1", "shop-item-updates.dlq/0:123456", " ".join(words))
    print_table(console, table)
    shown_words = output.getvalue().replace("│", " ").replace("┃", " ").split()
    assert "shop-item-updates.dlq/0:123456" in shown_words
    assert [word for word in shown_words if word in words] == words
    assert console.width == width, "the console is as it was"


def test_table_is_as_narrow_as_the_terminal_where_its_words_fit() -> None:
    console, output = screen(60)
    table = Table("one", "two")
    table.add_row("word " * 40, "other " * 40)
    print_table(console, table)
    assert max(map(len, output.getvalue().splitlines())) == 60


def test_word_without_end_is_folded() -> None:
    console, output = screen(80)
    table = Table("one", "two")
    table.add_row("x" * 5_000, "y")
    print_table(console, table)
    assert max(map(len, output.getvalue().splitlines())) <= 80
    assert output.getvalue().count("x") == 5_000


def test_command_and_message_are_lines_that_no_width_breaks() -> None:
    console, output = screen(20)
    print_command(console, "sidstream", "fit", "a b[bold]", "--bundle", "x" * 40)
    print_message(console, "a fault [of] many words\n  and one \x1b more line")
    assert output.getvalue().splitlines() == [
        f"  sidstream fit 'a b[bold]' --bundle {'x' * 40}",
        "error: a fault [of] many words",
        r"  and one \x1b more line",
    ]
