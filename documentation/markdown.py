"""Markdown of our generated pages: tables whose cells say exactly what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; each cell is Markdown, with its bars escaped. The site gives its last column the most room."""
    lines = [_row(columns), _row(["---"] * len(columns)), *(_row(row) for row in rows)]
    return ['<div class="reference" markdown>', "", *lines, "", "</div>"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def code(text: str) -> str:
    """``text`` as code; nothing for nothing."""
    return f"`{text}`" if text else ""


def unbroken(text: str) -> str:
    """``text`` as code that is never broken into lines."""
    return f"`{text}`{{ .name }}"


def plain(text: str) -> str:
    """A sentence of a docstring or help text: its double backticks are Markdown's single ones, and nothing else is markup."""
    parts = re.split(r"(`[^`]*`)", text.replace("``", "`"))
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]#])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def anchor(name: str) -> str:
    """An empty element that can be linked to."""
    return f'<a id="{name}"></a>'
