"""Which queries are worked on: well-formed ones within their limits, not past their deadline, not beyond their user's rate.

What fails a check never costs a model call. A query that is malformed or too large raises ``EventError`` (a dead letter
and an error answer); one that is merely late or one too many raises ``QueryRefused`` (an error answer: nothing is wrong with it).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message
from msgspec import UNSET

from models.attributes import AttributeType
from models.catalogue import MAXIMUM_ID_BYTES
from models.dense.vectors import SCALE_BYTES, bytes_an_item
from models.sids.layout import HEAD_LAYER_INDEX, MAXIMUM_LAYERS, MAXIMUM_SIZE
from streamer.events.formats.frames import RegistryAwayError
from streamer.events.formats.reading import NO_FORMATS, Formats
from streamer.events.intake import EventError, EventLimits, checked_id, checked_time, decode_event, within
from streamer.events.records import QUERY, Query
from streamer.events.values.embeddings import EmbeddingError, query_embedding
from streamer.filters.grammar import Filter
from streamer.filters.reading import FilterError, FilterLimits, FilterTooLargeError, read_filter
from streamer.filters.slate import SlateError, check_slate
from streamer.process.rates import TokenBuckets
from streamer.settings.retriever import RetrieverSettings
from streamer.shards.partitions import EVERY
from streamer.shards.parts import AskedPart, DenseSums

_LONGEST_TIMEOUT_MS: Final = 1 << 62  # a longer one overflows a float


class QueryRefused(Exception):
    """A well-formed query that is not worked on; ``kind`` goes into the answer's error."""

    def __init__(self, kind: str, message: str, waited_ms: float, who: str) -> None:
        """``who``: as of a ``CheckedQuery``."""
        super().__init__(message)
        self.kind = kind
        self.waited_ms = waited_ms
        self.who = who


class BundleLimits(NamedTuple):
    """What a bundle asks of its queries: ``dimension``, D of an embedding, None where that is unknown; ``layers``, L of SIDs;
    ``size``, M of its codebook."""

    dimension: int | None
    layers: int = MAXIMUM_LAYERS
    size: int = MAXIMUM_SIZE


class CheckedQuery(NamedTuple):
    """A query within its limits; ``filter``: its own, canonical, None if every item will do; ``who``: the user, or without one
    the query's id, by which a bundle is found.
    """

    query_id: str
    query: Query
    filter: Filter | None
    who: str


class Admission:
    """Checks the records of ``queries``.

    ``limits_of``: what the bundle asks that answers a user (or, without one, a query by its id); ``filterable``: the declared
    attributes and their types; ``partitions``: those that the index holds, of a shard; ``formats``: what values are read by;
    ``clock`` gives seconds since the epoch,
    ``monotonic`` seconds for the rates.
    """

    def __init__(
        self,
        settings: RetrieverSettings,
        *,
        limits_of: Callable[[str], BundleLimits],
        filterable: Mapping[str, AttributeType] | None = None,
        partitions: str = EVERY,
        formats: Formats = NO_FORMATS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._formats = formats
        self._limits_of = limits_of
        self._limits = EventLimits.of(settings.maximum_query_bytes, settings)
        self._filterable = filterable or {}
        self._filter_limits = FilterLimits(
            settings.maximum_filter_clauses, settings.maximum_filter_depth, settings.maximum_filter_entries
        )
        self._partitions = partitions
        self._clock = clock
        self._rates = (
            TokenBuckets(per_second=settings.user_queries_per_second, burst=settings.user_query_burst, clock=monotonic)
            if settings.user_queries_per_second > 0
            else None
        )

    def decode(self, record: Message) -> CheckedQuery:
        """The query in a record.

        Raises:
            EventError: no or a wrong id, undecodable, empty, an unknown field, a field beyond its limit, or a filter that asks
                for what is not declared.
            RegistryAwayError: its schema cannot be asked for now.
        """
        query_id = checked_id(record.key(), "query").decode()
        value = record.value()
        if not value:
            raise EventError("EmptyQuery", "the query has no value: send text, history or both")
        settings = self._settings
        decoded = decode_event(QUERY, record, value, self._limits, self._formats)
        if decoded.value is None:
            raise EventError("EmptyQuery", "the change event deletes its row: a query asks something")
        query: Query = decoded.value
        who = query.user or query_id
        if not query.text.strip() and not query.history and query.user is None and query.embedding is msgspec.UNSET:
            raise EventError("EmptyQuery", "the query is empty: send text, history, embedding, user or several of them")
        if not 1 <= query.limit <= settings.maximum_limit:
            raise EventError("InvalidEvent", f"limit {query.limit} is not within 1..{settings.maximum_limit}")
        if query.timeout_ms is not None and not 1 <= query.timeout_ms < _LONGEST_TIMEOUT_MS:
            raise EventError("InvalidEvent", f"timeout_ms {query.timeout_ms} is not a number of milliseconds from 1 up")
        if query.asked_at is not None:
            checked_time(query.asked_at, "asked_at", int(self._clock() * 1000))
        within(settings.maximum_text_characters, len(query.text), "text", "characters")
        _check_ids(query.history, settings.maximum_history, "history")
        if query.exclude is not msgspec.UNSET:
            _check_ids(query.exclude, settings.maximum_exclusions, "exclude")
        if query.why_not is not msgspec.UNSET:
            _check_ids(query.why_not, settings.maximum_why_not, "why_not")
        if query.slate is not msgspec.UNSET:
            within(settings.maximum_slate_rules, len(query.slate), "slate", "rules")
            try:
                check_slate(query.slate, self._filterable, layers=self._limits_of(who).layers)
            except SlateError as error:
                raise EventError("InvalidSlate", str(error)) from None
        if query.embedding is not msgspec.UNSET and (dimension := self._limits_of(who).dimension) is not None:
            try:
                query_embedding(query.embedding, dimension)
            except EmbeddingError as error:
                raise EventError(error.kind, str(error)) from None
        if query.part is not msgspec.UNSET:
            _check_part(query, self._limits_of(who), self._settings)
        if query.user is not None:
            within(settings.maximum_user_bytes, len(query.user.encode()), "user", "bytes")
        wanted = None
        if query.filter is not msgspec.UNSET:
            wanted = self._read_filter(query.filter, decoded.of_json)
        return CheckedQuery(query_id, query, wanted, who)

    def who(self, record: Message) -> str:
        """Who asks in a record that is refused: the user, where one can be read, or else the query's id; empty without either."""
        try:
            user = decode_event(QUERY, record, record.value() or b"", self._limits, self._formats).value.user
        except (EventError, AttributeError):  # undecodable, or a deletion
            user = None
        return user or (record.key() or b"").decode("utf-8", "replace")

    def _read_filter(self, raw: msgspec.Raw, of_json: bool) -> Filter:
        try:
            return read_filter(raw, self._filterable, self._filter_limits, of_json=of_json)
        except FilterTooLargeError as error:
            raise EventError("FieldTooLarge", str(error)) from None
        except FilterError as error:
            raise EventError("InvalidFilter", str(error)) from None

    def waited_ms(self, record: Message, query: Query) -> float:
        """Since ``asked_at``, or else since the broker had it; never negative, whatever a client's clock says."""
        asked_at = query.asked_at
        if asked_at is None:
            kind, asked_at = record.timestamp()
            if kind == TIMESTAMP_NOT_AVAILABLE:
                return 0.0
        return max(0.0, self._clock() * 1000 - asked_at)

    def admit(self, record: Message) -> tuple[CheckedQuery, float]:
        """The query, and the milliseconds that it has waited.

        Raises:
            EventError: as ``decode``.
            QueryRefused: ``DeadlinePassed``, ``RateLimited``, ``SearchUnavailable``, ``NoShard`` or ``NotOverShards``.
        """
        checked = self.decode(record)
        query = checked.query
        waited = self.waited_ms(record, query)
        deadline = self._deadline_ms(query)
        if waited > deadline:
            raise QueryRefused(
                "DeadlinePassed",
                f"the query had waited {waited:.0f} ms when its turn came, and its deadline is {deadline:.0f} ms: the "
                "retrievers are behind; ask again, allow more time, or run more retrievers",
                waited,
                checked.who,
            )
        self._require_shards(query, waited, checked.who)
        counts = query.part is msgspec.UNSET or query.part.step == "search"  # a query over shards has several rounds
        if self._rates is not None and counts and query.user is not None and self._rates.take(query.user) > 0:
            settings = self._settings
            raise QueryRefused(
                "RateLimited",
                f"this user asks more than {settings.user_queries_per_second:g} queries a second (bursts of "
                f"{settings.user_query_burst}): ask again later",
                waited,
                checked.who,
            )
        if query.search == "exact" and self._settings.layout == "marginal":
            raise QueryRefused(
                "SearchUnavailable",
                "this retriever sums over the model's own layout (retriever.layout is 'marginal'), and an exact search does "
                "not: ask without search, or of a retriever whose layout is pinned or live",
                waited,
                checked.who,
            )
        return checked, waited

    def _require_shards(self, query: Query, waited: float, who: str) -> None:
        """What one shard cannot answer, and what only shards are asked."""
        if query.part is not msgspec.UNSET and not self._partitions:
            raise QueryRefused(
                "NoShard",
                "the query is asked as one of several shards, and this retriever's index holds all partitions: set "
                "retriever.shards of the client to 1",
                waited,
                who,
            )
        asked = {"slate": query.slate, "explain": query.explain is True, "why_not": query.why_not}
        if self._partitions and (wanted := [name for name, value in asked.items() if value]):
            raise QueryRefused(
                "NotOverShards",
                f"{' and '.join(wanted)} is not answered over shards (this one holds the partitions {self._partitions}): what "
                "it asks for depends on items of all of them. Ask without it",
                waited,
                who,
            )

    def next_batch(self, records: Sequence[Message]) -> int:
        """How many of the records, from the first, are one transaction's: those with ``batch_size`` queries to work on.

        The late and the unusable between them cost no model call, so they go along.
        """
        work = 0
        for number, record in enumerate(records, start=1):
            try:
                query = self.decode(record).query
            except EventError:
                continue
            except RegistryAwayError:
                if number == 1:
                    raise
                return number - 1  # those before it need not wait
            work += self.waited_ms(record, query) <= self._deadline_ms(query)
            if work == self._settings.batch_size:
                return number
        return len(records)

    def _deadline_ms(self, query: Query) -> float:
        longest = self._settings.maximum_wait_seconds * 1000
        return longest if query.timeout_ms is None else min(longest, query.timeout_ms)


def _check_ids(item_ids: Sequence[str], limit: int, field: str) -> None:
    within(limit, len(item_ids), field, "items")
    for place, item_id in enumerate(item_ids):
        # No character has more than four bytes: most ids need no encoding to be known as short.
        if 4 * len(item_id) > MAXIMUM_ID_BYTES:
            within(MAXIMUM_ID_BYTES, len(item_id.encode()), f"{field}[{place}]", "bytes")


def _check_part(query: Query, bundle: BundleLimits, settings: RetrieverSettings) -> None:
    """Raises ``EventError`` for what no shard of this bundle can have said."""
    part, layers, size = query.part, bundle.layers, bundle.size
    if not isinstance(part, AskedPart):
        return
    _require(len(part.history) <= settings.maximum_history, f"history has more than {settings.maximum_history} items")
    for item in part.history:
        fits = len(item.codes) == layers and all(0 <= code < size for code in item.codes)
        _require(fits, f"{item.codes} are no codes of {layers} layers × {size} codewords")
        _require(item.vector is UNSET or _is_vector(item.vector, bundle.dimension), "a vector of the history is none")
    sids = part.sids or ()
    most = max(settings.beams, settings.maximum_limit)
    _require(len(sids) <= most, f"there are more than {most} SIDs")
    for sid in sids:
        _require(_is_sid(sid.tokens, layers, size), f"{sid.tokens} is no SID of {layers} layers × {size} codewords")
        _require(math.isfinite(sid.score) and 0 <= sid.weight < math.inf, "a SID's score or weight is no number")
    if isinstance(part.sums, DenseSums):
        numbers = (part.sums.log_near or 0.0, part.sums.together)
        _require(all(map(math.isfinite, numbers)) and numbers[1] >= 0, "the sums are no numbers")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise EventError("InvalidPart", f"part: {otherwise}")


def _is_vector(value: bytes, dimension: int | None) -> bool:
    if dimension is None:  # held against the bundle where that is
        return True
    scale = np.frombuffer(value[:SCALE_BYTES], "<f4") if len(value) == bytes_an_item(dimension) else np.zeros(1)
    return bool(np.isfinite(scale[0]) and scale[0] > 0)


def _is_sid(tokens: Sequence[int], layers: int, size: int) -> bool:
    of_layers = [token // size for token in tokens]
    whole = list(range(layers))
    return of_layers in (whole, [layer for layer in whole if layer != HEAD_LAYER_INDEX])
