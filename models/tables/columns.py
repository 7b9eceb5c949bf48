"""Which column of a table is what of an item: named by a person, or found under the usual names.

What must hold: a column that was named and is not there is refused with those that are; what no name reaches is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from models.attributes import is_name
from models.data_files import DataFileError

_USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("item_id", "id"), "title": ("title",), "embedding": ("embedding",), "brand": ("brand",), "type": ("type",),
    "description": ("description",), "weight": ("weight",), "attributes": ("attributes",),
}  # fmt: skip


@dataclass(frozen=True)
class ColumnNames:
    """As given; None: under the usual name, where there is such a column. ``attributes``: ``NAME`` or ``NAME=COLUMN``, each a
    column that becomes an attribute of the items.
    """

    id: str | None = None
    title: str | None = None
    embedding: str | None = None
    brand: str | None = None
    type: str | None = None
    description: str | None = None
    weight: str | None = None
    attributes: tuple[str, ...] = ()

    def given(self) -> bool:
        """Whether anything was named."""
        return self != ColumnNames()

    def attribute_columns(self) -> dict[str, str]:
        """Attribute → column. Raises ``DataFileError`` for a name that no attribute may have."""
        found = {}
        for one in self.attributes:
            name, _, column = one.partition("=")
            if not is_name(name):
                raise DataFileError(
                    f"--attribute {one!r}: {name!r} is no name of an attribute (letters, digits, _ . or -, and a letter first); "
                    "write NAME=COLUMN"
                )
            if name in found:
                raise DataFileError(f"--attribute names {name!r} twice: give each once")
            found[name] = column or name
        return found

    def chosen(self, columns: Sequence[str], *, of: str, embeddings: bool = True) -> Chosen:
        """What each column of a table is. ``of``: the table's name; ``embeddings``: whether one is needed.

        Raises ``DataFileError`` for a column that is not there or is there twice.
        """
        held = ", ".join(columns) or "none"
        twice = {name for name in columns if columns.count(name) > 1}
        found: dict[str, str] = {}
        for part, usual in _USUAL.items():
            given = getattr(self, part) if part != "attributes" else None
            if given is not None and given not in columns:
                raise DataFileError(f"{of} has no column {given!r} (--{part}); it has {held}")
            present = [name for name in usual if name in columns]
            if given is None and len(present) > 1:
                raise DataFileError(f"{of} has both {' and '.join(present)}: say with --{part} which of them counts")
            if given is not None or present:
                found[part] = given if given is not None else present[0]
        attributes = self.attribute_columns()
        for name, column in attributes.items():
            if column not in columns:
                raise DataFileError(f"{of} has no column {column!r} (--attribute {name}); it has {held}")
        for part in ("id", *(["embedding"] if embeddings else [])):
            if part not in found:
                usual_names = " or ".join(_USUAL[part])
                raise DataFileError(f"{of} has no column {usual_names}; name it with --{part} (it has {held})")
        used = {*found.values(), *attributes.values()}
        if both := used & twice:
            raise DataFileError(f"{of} has the column {min(both)!r} twice: which of them counts cannot be said")
        if not embeddings:
            found.pop("embedding", None)
        unread = tuple(name for name in columns if name not in used)
        return Chosen(parts=found, attributes=attributes, unread=unread)


@dataclass(frozen=True)
class Chosen:
    """``parts``: id, title, embedding … → column; ``attributes``: attribute → column; ``unread``: columns that mean nothing."""

    parts: Mapping[str, str]
    attributes: Mapping[str, str]
    unread: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """All that are read, each once."""
        return list(dict.fromkeys([*self.parts.values(), *self.attributes.values()]))
