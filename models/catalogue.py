"""Catalogues in files: the items of a shop with one embedding each, and what is known about how people look for them.

A folder holds ``items.jsonl`` or ``items.tsv`` and one ``items*.npy`` whose row i belongs to item i; ``queries.tsv``,
``queries*.npy``, ``qrels.tsv`` and ``sequences.tsv`` are optional; each text file may be gzipped (``.gz``).
What has been read is valid: unique ids, as many rows as items, finite numbers (``models.data_files`` reads the files).
"""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.attributes import Attributes
from models.data_files import DataFileError, numbered_lines, plain_id, read_matrix
from models.directories import make_directory

MAXIMUM_ID_BYTES: Final = (
    256  # of item and query ids everywhere: LMDB keys end at 511 bytes, a longer id is a mistake upstream
)


class CatalogueError(DataFileError):
    """A catalogue's files are missing, malformed or contradict each other."""


class CatalogueItem(msgspec.Struct, frozen=True, kw_only=True):
    """One product. ``weight`` ≥ 0 is its popularity: it ranks items that share a SID. ``attributes``: what queries filter on."""

    id: str
    title: str
    brand: str = ""
    type: str = ""
    description: str = ""
    weight: float = 1.0
    attributes: Attributes = {}


class CatalogueQuery(msgspec.Struct, frozen=True):
    """One query of people, with its id in the relevance judgements."""

    id: str
    text: str


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items and their embeddings.

    embeddings: float32 (N, D), row i of items[i]. query_embeddings: float32 (Q, D) or None, row i of queries[i].
    qrels: query id → item id → rating (higher is better); an unjudged item is unknown, not bad.
    sequences: user → item ids, oldest first.
    Raises ``CatalogueError`` when the parts contradict each other.
    """

    items: tuple[CatalogueItem, ...]
    embeddings: NDArray[np.float32]
    queries: tuple[CatalogueQuery, ...] = ()
    query_embeddings: NDArray[np.float32] | None = None
    qrels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sequences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_item_ids(self.items)
        _require_matrix(self.embeddings, rows=len(self.items), of="items")
        if self.query_embeddings is not None:
            _require_matrix(self.query_embeddings, rows=len(self.queries), of="queries")
            if self.query_embeddings.shape[1] != self.dimension:
                raise CatalogueError(
                    f"query embeddings have {self.query_embeddings.shape[1]} dimensions but item embeddings have "
                    f"{self.dimension}; compute both with the same model"
                )
        known = {item.id for item in self.items}
        for user, sequence in self.sequences.items():
            _require_known(sequence, known, f"the sequence of user {user!r}")
        queries = {query.id for query in self.queries}
        for query, ratings in self.qrels.items():
            if query not in queries:
                raise CatalogueError(
                    f"qrels name query {query!r}, which is not among the queries; add it or drop its judgements"
                )
            _require_known(ratings, known, f"the judgements of query {query!r}")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def dimension(self) -> int:
        """D, the columns of an embedding."""
        return int(self.embeddings.shape[1])

    @classmethod
    def read(cls, directory: str | Path) -> Catalogue:
        """Reads a catalogue folder; raises ``CatalogueError`` naming file and line of what is wrong."""
        directory = Path(directory)
        items_path = _items_path(directory)
        embeddings_path = _find_matrix(directory, "items")
        if embeddings_path is None:
            raise CatalogueError(
                f"{directory} has no items*.npy; add the embeddings, one row an item, in the order of {items_path.name}, or "
                "let text towers make them (`sidstream towers`, --embed)"
            )
        items = _read_items(items_path)
        _require_some(items)
        embeddings = _read_matrix(embeddings_path, rows=len(items), of=f"items in {items_path.name}")
        query_matrix = _find_matrix(directory, "queries")
        texts = read_texts(directory)
        return cls(
            items=items,
            embeddings=embeddings,
            query_embeddings=_read_matrix(query_matrix, rows=len(texts.queries), of="queries")
            if query_matrix
            else None,
            **texts._asdict(),
        )

    @classmethod
    def read_embedded(
        cls, source: str | Path, embed: Callable[[Sequence[CatalogueItem]], NDArray[np.float32]]
    ) -> Catalogue:
        """Reads a folder or a file of items, and lets ``embed`` make the embeddings of the items; none is read."""
        items = read_items(source)
        return cls(items=items, embeddings=embed(items), **read_texts(Path(source))._asdict())

    @classmethod
    def read_pair(cls, items: str | Path, embeddings: str | Path) -> Catalogue:
        """Reads a plain pair: items as JSON lines (or .tsv, or .gz of either) and a ``.npy`` with one row an item."""
        records = _read_items(Path(items))
        _require_some(records)
        return cls(items=records, embeddings=_read_matrix(Path(embeddings), rows=len(records), of=f"items in {items}"))

    def write(self, directory: str | Path) -> None:
        """Writes a folder that ``read`` reads back equal; the same catalogue gives the same bytes."""
        directory = make_directory(Path(directory))
        _write_lines(directory / "items.jsonl.gz", (_item_line(item) for item in self.items))
        np.save(directory / "items.f32.npy", self.embeddings)
        if self.queries:
            rows = ((query.id, query.text) for query in self.queries)
            _write_table(directory / "queries.tsv.gz", ("query_id", "query"), rows)
        if self.query_embeddings is not None:
            np.save(directory / "queries.f32.npy", self.query_embeddings)
        if self.qrels:
            judgements = ((query, item, str(n)) for query, ratings in self.qrels.items() for item, n in ratings.items())
            _write_table(directory / "qrels.tsv.gz", ("query_id", "item_id", "rating"), judgements)
        if self.sequences:
            for user, sequence in self.sequences.items():
                if any(" " in item for item in sequence):
                    raise CatalogueError(
                        f"the sequence of user {user!r} has an item id with a space, which sequences.tsv cannot hold"
                    )
            users = ((user, " ".join(sequence)) for user, sequence in self.sequences.items())
            _write_table(directory / "sequences.tsv.gz", ("user_id", "items"), users)


def read_items(source: str | Path) -> tuple[CatalogueItem, ...]:
    """The items of a catalogue folder, or of a file of JSON lines (or .tsv, or .gz of either); no embeddings are read.

    Raises ``CatalogueError`` naming file and line of what is wrong.
    """
    source = Path(source)
    items = _read_items(source if source.is_file() else _items_path(source))
    _require_item_ids(items)
    return items


def read_item_ids(source: str | Path) -> tuple[str, ...]:
    """The ids alone, each once: of a catalogue folder, a file of items that need nothing but an id, or a plain list of ids.

    A plain list has one id a line. Raises ``CatalogueError`` naming file and line of what is wrong.
    """
    source = Path(source)
    path = _items_path(source) if source.is_dir() else source
    if ".tsv" in path.suffixes:
        found = ((number, identity) for number, (identity,) in _numbered_rows(path, ("item_id",)))
    else:
        found = ((number, _id_of_line(path, number, line)) for number, line in numbered_lines(path))
    ids = {}
    for number, identity in found:
        control = any(unicodedata.category(character) == "Cc" for character in identity)
        if not identity or len(identity.encode()) > MAXIMUM_ID_BYTES or control:
            raise CatalogueError(
                f"{path} line {number} has the id {identity[:40]!r}; ids have 1 to {MAXIMUM_ID_BYTES} bytes of UTF-8 and no "
                "control characters"
            )
        ids[identity] = number
    if not ids:
        raise CatalogueError(f"{path} names no item; add at least one id, one a line")
    return tuple(ids)


def _id_of_line(path: Path, number: int, line: str) -> str:
    """Of an item as a JSON object, or of a line that is an id itself, quoted as JSON or not."""
    if not line.startswith(("{", '"')):
        return line.strip()
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CatalogueError(f"{path} line {number} is neither an item nor an id ({error}); mend the line") from error
    identity = _id_of(path, number, record) if isinstance(record, dict) else record
    if not isinstance(identity, str):
        raise CatalogueError(f"{path} line {number} names no item; give it an id")
    return identity


def _items_path(directory: Path) -> Path:
    if not directory.is_dir():
        raise CatalogueError(
            f"no catalogue folder {directory}; give a directory with items.jsonl or items.tsv and items.npy"
        )
    path = _find_text(directory, "items.jsonl") or _find_text(directory, "items.tsv")
    if path is None:
        raise CatalogueError(f"{directory} has no items.jsonl, items.tsv or their .gz; add the list of items")
    return path


class CatalogueTexts(NamedTuple):
    """What a folder may hold beside items and embeddings, see ``Catalogue``; empty where it does not."""

    queries: tuple[CatalogueQuery, ...] = ()
    qrels: Mapping[str, Mapping[str, int]] = {}
    sequences: Mapping[str, tuple[str, ...]] = {}


def read_texts(directory: Path) -> CatalogueTexts:
    """Of a catalogue folder; nothing for a file of items."""
    queries, qrels, sequences = (_find_text(directory, name) for name in ("queries.tsv", "qrels.tsv", "sequences.tsv"))
    return CatalogueTexts(
        _read_queries(queries) if queries else (),
        _read_qrels(qrels) if qrels else {},
        _read_sequences(sequences) if sequences else {},
    )


def _require_some(items: Sequence[CatalogueItem]) -> None:
    if not items:
        raise CatalogueError("the catalogue has no items; add at least one")


def _require_item_ids(items: Sequence[CatalogueItem]) -> None:
    _require_some(items)
    first: dict[str, int] = {}
    for row, item in enumerate(items):
        if not item.id or len(item.id.encode()) > MAXIMUM_ID_BYTES:
            raise CatalogueError(
                f"item {row} has the id {item.id[:40]!r}; ids have 1 to {MAXIMUM_ID_BYTES} bytes of UTF-8"
            )
        if item.id in first:
            raise CatalogueError(f"items {first[item.id]} and {row} share the id {item.id!r}; ids must be unique")
        if not (np.isfinite(item.weight) and item.weight >= 0):
            raise CatalogueError(f"item {item.id!r} has the weight {item.weight}; weights are finite and not negative")
        first[item.id] = row


def _require_known(ids: Iterable[str], known: set[str], where: str) -> None:
    for item in ids:
        if item not in known:
            raise CatalogueError(
                f"{where} names item {item!r}, which is not in the catalogue; add the item or drop the mention"
            )


def _require_matrix(matrix: NDArray[np.float32], *, rows: int, of: str) -> None:
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise CatalogueError(
            f"embeddings of {of} have the shape {matrix.shape}; they need two axes: one row each, D columns"
        )
    if matrix.dtype != np.float32:
        raise CatalogueError(f"embeddings of {of} are {matrix.dtype}; convert them to float32")
    if len(matrix) != rows:
        raise CatalogueError(
            f"{len(matrix)} rows of embeddings for {rows} {of}; there must be one row each, in the same order"
        )
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise CatalogueError(
            f"embeddings of {of}: {int((~finite).sum())} rows have NaN or infinite values, the first is row "
            f"{int(np.argmin(finite))}; compute them again"
        )


def _find_text(directory: Path, name: str) -> Path | None:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _find_matrix(directory: Path, stem: str) -> Path | None:
    found = sorted({*directory.glob(f"{stem}.npy"), *directory.glob(f"{stem}.*.npy")})
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CatalogueError(f"{directory} has several embeddings for {stem} ({names}); leave one of them")
    return found[0] if found else None


def _read_matrix(path: Path, *, rows: int, of: str) -> NDArray[np.float32]:
    matrix = read_matrix(path)
    try:
        _require_matrix(matrix, rows=rows, of=of)
    except CatalogueError as error:
        raise CatalogueError(f"{path}: {error}") from None
    return matrix


def _numbered_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The named columns of a tab-separated file with a header line; other columns are ignored."""
    lines = numbered_lines(path)
    _, first = next(lines, (1, ""))
    header = first.split("\t")
    missing = [name for name in columns if name not in header]
    if missing:
        raise CatalogueError(
            f"{path} has the columns {header} but needs {', '.join(missing)}; add a header line with these names"
        )
    places = [header.index(name) for name in columns]
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise CatalogueError(
                f"{path} line {number} has {len(cells)} columns but the header has {len(header)}; mend the line"
            )
        yield number, [cells[place] for place in places]


def _read_items(path: Path) -> tuple[CatalogueItem, ...]:
    if ".tsv" in path.suffixes:
        return tuple(
            CatalogueItem(id=identity, title=title)
            for _, (identity, title) in _numbered_rows(path, ("item_id", "title"))
        )
    return tuple(_item(path, number, line) for number, line in numbered_lines(path))


def _item(path: Path, number: int, line: str) -> CatalogueItem:
    try:
        # Null says "none" of what an item need not have.
        record = {name: value for name, value in _RECORD.decode(line).items() if value is not None}
        identity = _id_of(path, number, record)
        record.pop("item_id", None)
        if identity is not None:
            record["id"] = identity
        return msgspec.convert(record, CatalogueItem)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CatalogueError(
            f"{path} line {number} is not an item ({error}); each line is a JSON object with item_id and title"
        ) from error


def _id_of(path: Path, number: int, record: Mapping[str, Any]) -> Any:
    """What an item's record says of its id, under either name; ``None`` for nothing."""
    ids = {name: plain_id(record[name]) for name in ("item_id", "id") if record.get(name) is not None}
    if len(set(map(repr, ids.values()))) > 1:
        raise CatalogueError(
            f"{path} line {number} has the item_id {ids['item_id']!r} and the id {ids['id']!r}: give one of them"
        )
    return next(iter(ids.values()), None)


_RECORD: Final = msgspec.json.Decoder(dict[str, Any])


def _item_line(item: CatalogueItem) -> str:
    record = msgspec.to_builtins(item)
    if not item.attributes:
        del record["attributes"]
    return msgspec.json.encode({"item_id": record.pop("id"), **record}).decode()


def _read_queries(path: Path) -> tuple[CatalogueQuery, ...]:
    return tuple(CatalogueQuery(identity, text) for _, (identity, text) in _numbered_rows(path, ("query_id", "query")))


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, item, rating) in _numbered_rows(path, ("query_id", "item_id", "rating")):
        try:
            qrels.setdefault(query, {})[item] = int(rating)
        except ValueError:
            raise CatalogueError(f"{path} line {number} has the rating {rating!r}; ratings are whole numbers") from None
    return qrels


def _read_sequences(path: Path) -> dict[str, tuple[str, ...]]:
    return {user: tuple(items.split()) for _, (user, items) in _numbered_rows(path, ("user_id", "items"))}


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    # mtime=0 and no file name in the header: the same lines give the same bytes.
    with path.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
        for line in lines:
            stream.write(line.encode() + b"\n")


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    def line(cells: tuple[str, ...]) -> str:
        if any("\t" in cell or "\n" in cell or "\r" in cell for cell in cells):
            raise CatalogueError(f"{path.name} cannot hold a tab or a line end, as in {cells}; replace it by a space")
        return "\t".join(cells)

    _write_lines(path, (line(cells) for cells in (header, *rows)))
