"""The page of all kinds of error that an event, a query or a request may meet, read from the places that raise them."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from documentation.markdown import anchor, plain, table, unbroken

PAGE: Final = "reference/errors.md"
_ROOT: Final = Path(__file__).resolve().parent.parent
_PARTS: Final = ("streamer", "retriever", "gateway", "models")
_KIND: Final = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+)+")
# What carries a kind, and where a person meets it.
_CARRIERS: Final = {
    "EventError": "dead letter",
    "EmbeddingError": "dead letter",
    "FormatError": "dead letter",
    "AttributeFault": "dead letter",
    "AnswerError": "answer",
    "QueryRefused": "answer",
    "refused": "HTTP",
    "Problem": "HTTP",
}
_ANSWERS: Final = ("retriever", "streamer/shards")  # what is refused there is a query or a part of one
_MOST_MESSAGES: Final = 3
_OF_ITS_OWN: Final = "a sentence made of what was sent"
_BEGINNING: Final = """\
# Kinds of error

Made from the code: every kind that an event, a query or a request may meet, with what its message says (… stands
for what is filled in). A *dead letter* has the kind in its header `dlq.errors.class` and the message in
`dlq.errors.message` ([topics](../topics.md), `sidstream dlq list`); an *answer* has both in `error`, for a query
that is a dead letter too; over *HTTP* the kind is the end of `type` in `application/problem+json` (RFC 9457).
"""


class Raised(NamedTuple):
    """One place that raises a kind; ``message`` is empty where it comes from elsewhere."""

    kind: str
    met_in: str
    message: str


def raised() -> Iterator[Raised]:
    """Every place, in the order of the files."""
    for part in _PARTS:
        for path in sorted((_ROOT / part).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for statement in tree.body:  # a kind that has a name of its own
                if isinstance(statement, ast.AnnAssign) and (kind := _kind(statement.value)):
                    yield Raised(kind, _met_in("EventError", path), "")
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in _CARRIERS:
                    yield from _of_call(node, _met_in(ast.unparse(node.func), path))


def _met_in(carrier: str, path: Path) -> str:
    """A query that is a dead letter has an answer too."""
    met_in = _CARRIERS[carrier]
    answers = any(path.is_relative_to(_ROOT / part) for part in _ANSWERS)
    return "answer" if met_in == "dead letter" and answers else met_in


def _of_call(call: ast.Call, met_in: str) -> Iterator[Raised]:
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    for place, one in enumerate(given):
        for choice in (one.body, one.orelse) if isinstance(one, ast.IfExp) else (one,):
            if kind := _kind(choice):
                yield Raised(kind, met_in, _text(given[place + 1]) if place + 1 < len(given) else "")


def _kind(value: ast.expr | None) -> str:
    """The kind that an expression is, if it is one."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and _KIND.fullmatch(value.value):
        return value.value
    return ""


def _text(message: ast.expr) -> str:
    """What a message says before it is filled in."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in message.values)
    return ""


def errors_page() -> str:
    """The page, in Markdown."""
    places: dict[str, set[str]] = defaultdict(set)
    messages: dict[str, dict[str, None]] = defaultdict(dict)
    for one in raised():
        places[one.kind].add(one.met_in)
        if one.message:
            messages[one.kind].setdefault(one.message)
    rows = []
    for kind in sorted(places):
        said = list(messages[kind])
        cell = "<br>".join(plain(message) for message in said[:_MOST_MESSAGES]) or _OF_ITS_OWN
        if len(said) > _MOST_MESSAGES:
            cell += f"<br>and {len(said) - _MOST_MESSAGES} more"
        rows.append((anchor(kind) + unbroken(kind), ", ".join(sorted(places[kind])), cell))
    return "\n".join([_BEGINNING, *table(("kind", "met in", "its message"), rows), ""])
