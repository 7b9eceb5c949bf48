"""The stream's interactions → a file of training examples, point-in-time correct (``point_in_time``), whatever their number.

What must hold: the same records give the same bytes, in whichever partitions and order they lie, and however often each was sent;
the file is whole or not there; memory is bounded by a portion of ``spool`` and the newest interactions of one user.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from models.errors import SidstreamError
from streamer.events.interactions import CheckedInteraction
from streamer.events.records import QUERY, UNDECODABLE, Query
from streamer.interactions.letters import check_interactions
from streamer.interactions.moments import written_moment
from streamer.interactions.point_in_time import (
    AskedQuery,
    JoinedInteraction,
    Left,
    MomentExample,
    NewestInteractions,
    Window,
    best_query,
    examples_of_user,
)
from streamer.interactions.reading import InteractionReader, records_in, records_of
from streamer.interactions.spool import Spool, parts_for, place_of, read_together
from streamer.settings import Settings

_LINE: Final = msgspec.json.Encoder().encode
_NAMED_BITS: Final = 27  # 16 MiB say which query ids are named at all


class ExamplesError(SidstreamError):
    """No examples can be made; the message says why."""


class MadeExamples(msgspec.Struct, frozen=True, kw_only=True):
    """What was written to ``output``: interactions from ``since`` to before ``until`` (milliseconds since the epoch).

    ``interactions``: that can be used, of all times; ``refused``: those that cannot, ``letters`` of them new dead letters;
    ``named``: those of the window that name a query, ``joined``: to one that is still on its topic. ``repeated``, ``twice``,
    ``nothing``: interactions that gave no example, as in ``Left``; ``crowded``: users of whom the newest ``MOST_OF_A_USER``
    interactions alone were looked at.
    """

    output: str
    since: int
    until: int
    examples: int
    users: int
    interactions: int
    refused: int
    letters: int
    named: int
    joined: int
    repeated: int
    twice: int
    nothing: int
    crowded: int


def make_examples(
    settings: Settings, window: Window, output: Path, *, progress: Callable[[int], None] = lambda _read: None
) -> MadeExamples:
    """Looks at what is new (``check_interactions``), reads all interactions and the queries that they name, and writes the
    examples of the window as JSON lines, gzipped where ``output`` ends in .gz. ``progress`` hears of interactions read so far.

    Raises:
        ExamplesError: there would be no example, or the file cannot be written.
        LogReadError: the broker does not answer.
    """
    letters = check_interactions(settings).refused.total()
    try:
        with tempfile.TemporaryDirectory(prefix=".examples-", dir=output.parent) as directory:
            made = _Making(settings, window, Path(directory)).run(output, progress)
    except OSError as error:
        raise ExamplesError(
            f"{output} cannot be written: {error.strerror or error}; beside it is needed about as much room as the topics "
            f"{settings.topics.interactions} and {settings.topics.queries} take"
        ) from error
    return msgspec.structs.replace(made, letters=letters)


@dataclass
class _Counts:
    examples: int = 0
    users: int = 0
    named: int = 0
    joined: int = 0
    crowded: int = 0


class _Making:
    def __init__(self, settings: Settings, window: Window, directory: Path) -> None:
        self._settings, self._window, self._directory = settings, window, directory
        self._counts, self._left = _Counts(), Left()

    def run(self, output: Path, progress: Callable[[int], None]) -> MadeExamples:
        counts = self._counts
        parts = parts_for(records_in(self._settings, self._settings.topics.interactions))
        of_users = Spool(self._directory / "users", JoinedInteraction, parts)
        asking = Spool(self._directory / "asking", CheckedInteraction, parts)
        reader = InteractionReader(self._settings)
        named = bytearray(1 << (_NAMED_BITS - 3))
        usable = 0
        for said in reader.interactions():
            usable += 1
            if said.query and self._window.makes(said):
                counts.named += 1
                _mark(named, said.query)
                asking.add(said.query, said)
            elif said.at < self._window.until:
                of_users.add(said.user, JoinedInteraction(said))
            if usable % 10_000 == 0:
                progress(usable)
        if counts.named:
            self._join(asking, of_users, named)
        whole = output.with_name(f".{output.name}.partial")
        try:
            with _opened(whole, compressed=output.suffix == ".gz") as file:
                for example in self._examples(of_users):
                    file.write(_LINE(example) + b"\n")
                    counts.examples += 1
            if not counts.examples:
                raise ExamplesError(self._why_none(reader, usable))
            whole.replace(output)
        finally:
            whole.unlink(missing_ok=True)
        return MadeExamples(
            output=str(output),
            since=self._window.since,
            until=self._window.until,
            examples=counts.examples,
            users=counts.users,
            interactions=usable,
            refused=reader.refused,
            letters=0,
            named=counts.named,
            joined=counts.joined,
            repeated=self._left.repeated,
            twice=self._left.twice,
            nothing=self._left.nothing,
            crowded=self._counts.crowded,
        )

    def _join(self, asking: Spool[CheckedInteraction], of_users: Spool[JoinedInteraction], named: bytearray) -> None:
        queries = Spool(self._directory / "queries", AskedQuery, asking.parts)
        for query in _asked_queries(self._settings, named):
            queries.add(query.query_id, query)
        for asked, saying in read_together(queries, asking):
            of_ids: dict[str, list[AskedQuery]] = {}
            for query in asked:
                of_ids.setdefault(query.query_id, []).append(query)
            for said in saying:
                found = best_query(said, of_ids.get(said.query, ()))
                self._counts.joined += found is not None
                of_users.add(said.user, JoinedInteraction(said, found))

    def _examples(self, of_users: Spool[JoinedInteraction]) -> Iterator[MomentExample]:
        for (portion,) in read_together(of_users):
            users: dict[str, NewestInteractions] = {}
            for one in portion:
                users.setdefault(one.said.user, NewestInteractions()).add(one)
            for user in sorted(users, key=lambda user: (place_of(user), user)):
                made = self._counts.examples
                yield from examples_of_user(users[user].kept, self._window, self._left)
                self._counts.users += self._counts.examples > made
                self._counts.crowded += users[user].cut

    def _why_none(self, reader: InteractionReader, usable: int) -> str:
        window, left = self._window, self._left
        span = f"from {written_moment(window.since)} to {written_moment(window.until)}"
        if not usable:
            refused = f", and {reader.refused:,} that cannot be used (`sidstream dlq list`)" if reader.refused else ""
            return f"{self._settings.topics.interactions} has no interactions{refused}: send some (docs/learning.md)"
        return (
            f"no interaction {span} of {', '.join(window.kinds)} gives an example: {usable:,} were read; of those of that time "
            f"{left.nothing:,} had neither a text nor a history before them, {left.repeated:,} were of an item that the user had "
            "had before. Choose another --since, --until or --kinds"
        )


def _asked_queries(settings: Settings, named: bytearray) -> Iterator[AskedQuery]:
    """The queries whose ids may be named; what is no query is passed over: its sender has an answer that says so."""
    most = settings.retriever.maximum_history
    for record in records_of(settings, settings.topics.queries):
        key, value = record.key(), record.value()
        try:
            query_id = (key or b"").decode()
            if not query_id or not value or not _is_marked(named, query_id):
                continue
            query: Query = QUERY.decode(value)
        except UNDECODABLE:
            continue
        if len(query.history) <= most and len(query.text) <= settings.retriever.maximum_text_characters:
            yield AskedQuery(query_id, record.timestamp()[1], query.user or "", query.text, query.history)


def _mark(named: bytearray, query_id: str) -> None:
    place = place_of(query_id) >> (64 - _NAMED_BITS)
    named[place >> 3] |= 1 << (place & 7)


def _is_marked(named: bytearray, query_id: str) -> bool:
    place = place_of(query_id) >> (64 - _NAMED_BITS)
    return bool(named[place >> 3] >> (place & 7) & 1)


@contextmanager
def _opened(path: Path, *, compressed: bool) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with path.open("wb") as plain:
        if not compressed:
            yield plain
            return
        # Neither a time nor a name in the header: the same lines give the same bytes.
        with gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0) as file:
            yield file
