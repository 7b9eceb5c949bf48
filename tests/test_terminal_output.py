"""Nothing that a stranger wrote reaches a terminal as more than text: held by looking at the code of every command.

A value inside of an f-string that is printed is a number with a format, or goes through ``models.terminal``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("models", "store", "streamer", "retriever", "gateway", "study", "demo")
# Methods whose text is markup to Rich; the demo's own ones hand it on.
MARKUP = {"print", "rule", "status", "add_row", "_say", "_act"}
# ``markup`` is the name of what has been made fit already.
FIT = {"shown", "len", "_time", "_severity"}
NUMBER = re.compile(r"[<>^+ ]?\d*,?(\.\d+)?[dfge%,]?")


def files() -> Iterator[Path]:
    for part in PARTS:
        yield from sorted((ROOT / part).rglob("*.py"))
    yield ROOT / "sidstream.py"


def is_fit(node: ast.expr, fit: set[str]) -> bool:
    """Whether no character of a stranger's can come of this expression as it is."""
    match node:
        case ast.Constant():
            return True
        case ast.JoinedStr():
            return all(is_fit(part, fit) for part in node.values)
        case ast.FormattedValue(value=value, format_spec=spec):
            text = ast.unparse(spec)[2:-1] if spec is not None else ""
            # A width alone is none: a text takes it too.
            return (bool(re.search(r"[dfge%,]$", text)) and NUMBER.fullmatch(text) is not None) or is_fit(value, fit)
        case ast.IfExp(body=one, orelse=other):
            return is_fit(one, fit) and is_fit(other, fit)
        case ast.BinOp(left=one, right=other):
            return is_fit(one, fit) and is_fit(other, fit)
        case ast.Call(func=ast.Name(id=name)):
            return name in fit
        case ast.Name(id=name):
            return name == "markup"
    return False


def faults(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        plain = isinstance(node.func, ast.Name) and node.func.id == "print"
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if not plain and method not in MARKUP:
            continue
        fit = {"printable", "printable_bytes", "ascii_json", "pretty", "_line"} if plain else FIT
        for text in node.args:
            if isinstance(text, ast.JoinedStr | ast.BinOp | ast.IfExp) and not is_fit(text, fit):
                yield f"{path.relative_to(ROOT)}:{text.lineno}: {ast.unparse(text)}"
            elif method == "add_row" and isinstance(text, ast.Name | ast.Attribute) and not is_fit(text, fit):
                yield f"{path.relative_to(ROOT)}:{text.lineno}: the cell {ast.unparse(text)}"


def test_what_a_command_prints_of_a_stranger_goes_through_the_one_place_for_it() -> None:
    found = [fault for path in files() for fault in faults(path)]
    assert not found, "wrap these values in models.terminal.shown (printable for a bare print):\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("expression", "fit"),
    [
        ('f"{title}"', False),
        ('f"{title:<20}"', False),
        ('f"{title!r}"', False),
        ('f"{escape(title)}"', False),
        ('f"{shown(title)}"', True),
        ('f"{count:,} of {share:.1%} in {seconds:6.2f} s"', True),
        ("f\"{'one' if many else 'another'} {len(items)}\"", True),
        ("f\"{'one' if many else title}\"", False),
        ('"in " + f"{path}"', False),
    ],
)
def test_the_rule_tells_texts_from_numbers(expression: str, fit: bool) -> None:
    assert is_fit(ast.parse(expression, mode="eval").body, FIT) == fit
