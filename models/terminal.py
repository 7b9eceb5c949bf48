"""What commands of every part print, made fit for a person's terminal.

What strangers wrote (titles, ids, headers, errors, file names) goes through ``printable`` or ``shown``: no byte of it can move
the cursor, set a title, change colours or turn the direction of writing, and no bracket of it is taken for markup.
"""

from __future__ import annotations

import shlex
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ENDLESS: Final = 10_000  # columns
# A longer word is no word of a language: it is folded.
_LONGEST_WORD: Final = 64


def terminal(*, stderr: bool = False) -> Console:
    """The console of a command: nothing in a text is taken for a picture or a number to colour."""
    return Console(stderr=stderr, highlight=False, emoji=False)


def printable(text: str) -> str:
    """``text`` with everything that is no visible character or space as an escape: control characters, marks that turn
    the direction of writing, halves of surrogate pairs.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def shown(value: object) -> str:
    """A value inside of a line with markup: printable, its own brackets no markup.

    >>> shown("x[bold].npy")
    'x\\\\[bold].npy'
    """
    return escape(printable(str(value)))


def printable_bytes(content: bytes | None) -> str:
    """A key or a header: as text where it is UTF-8, other bytes as escapes."""
    return "" if content is None else printable(content.decode("utf-8", "backslashreplace"))


def print_line(console: Console, line: str, style: str = "") -> None:
    """A line that a person copies, a command or a path: never broken, whatever the width; no markup in it."""
    console.print(Text(printable(line), style), soft_wrap=True)


def print_command(console: Console, *words: object) -> None:
    """A command to copy, on a line of its own; what needs quotes for a shell has them."""
    print_line(console, f"  {shlex.join(map(str, words))}")


def print_message(console: Console, message: str) -> None:
    """Why a command has failed; its lines stay lines."""
    text = Text.assemble(("error:", "bold red"), " ", "\n".join(map(printable, message.split("\n"))))
    console.print(text, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Cells wrap between words. A table whose longest words do not fit is printed wider than the terminal, never cut."""
    endless = console.options.update_width(_ENDLESS)
    cells = [
        [Measurement.get(console, endless, cell) for cell in (column.header, *column.cells)] for column in table.columns
    ]
    least = [min(_LONGEST_WORD, max(cell.minimum for cell in column)) for column in cells]
    widths = [max(cell.maximum for cell in column) for column in cells]
    borders = Measurement.get(console, endless, table).maximum - sum(widths)
    while borders + sum(widths) > console.width:
        spare = [width - minimum for width, minimum in zip(widths, least, strict=True)]
        if not any(spare):
            break
        widest = max(range(len(widths)), key=lambda column: (spare[column] > 0, widths[column]))
        widths[widest] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.no_wrap, column.overflow = width, False, "fold"
    before = console.width
    console.width = max(before, borders + sum(widths))
    try:
        console.print(table)
    finally:
        console.width = before
