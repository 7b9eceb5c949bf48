"""The records of every topic: what is on the wire, and nothing about how it gets there.

Values are MessagePack or JSON maps, told apart by their first byte (a MessagePack map never begins with ``{``).
The Kafka key is the identity: item id, query id, token, layout or alert; so compaction keeps the newest state of each.
Times are integer milliseconds since the Unix epoch.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

_JSON_FIRST_BYTES: Final = b"{ \t\r\n"


class ItemUpdate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Topic ``item-updates``, key = item id (UTF-8). The full state of an item; a null value (tombstone) deletes it.

    ``embedding``: D numbers, or the bytes of D little-endian float32 or float16 (MessagePack ``bin``; base64 in JSON).
    """

    embedding: bytes | list[float]
    title: str = ""
    weight: float = 1.0
    updated_at: int | None = None


class ItemCodes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Topic ``item-codes``, key = item id. The codes of an item under one codebook; a tombstone deletes the item."""

    codebook: str
    codes: tuple[int, ...]
    title: str
    weight: float
    updated_at: int


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``token-counts``, key = ``codebook:layer:token``. An absolute census count; the newest ``as_of`` wins.

    ``layer`` is 1-based like the paper's. ``as_of`` is the number of ``item-codes`` records that the count includes.
    """

    codebook: str
    layer: int
    token: int
    n: int
    as_of: int


class LayoutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``layouts``, key = ``codebook:generation``. A layout is issued once and never changes."""

    generation: int
    codebook: str
    layers: int
    size: int
    head_tokens: tuple[int, ...]
    issued_at: int
    cause: str


class LayerMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Census metrics of one layer (paper figure 3): ``entropy`` normalised to 0..1, ``gini`` 0..1-1/M."""

    layer: int
    entropy: float
    gini: float
    standard_deviation: float
    head_share: float


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``drift``, key = codebook. Metrics of every layer now, and of the baseline that they are compared with."""

    codebook: str
    at: int
    items: int
    generation: int
    layers: tuple[LayerMetrics, ...]
    baseline: tuple[LayerMetrics, ...]


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``alerts``, key = ``key``: stable for one condition, so that a consumer can de-duplicate."""

    key: str
    state: Literal["firing", "resolved"]
    severity: Literal["info", "warning", "critical"]
    cause: str
    summary: str
    figures: dict[str, float]
    codebook: str
    generation: int
    first_at: int
    at: int


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic ``queries``, key = query id. Text, history (item ids, oldest first) or both; a field that is not here is refused.

    ``timeout_ms`` after ``asked_at`` (or else after it reached the broker) an answer is of no use: it gets an error instead.
    """

    text: str = ""
    history: tuple[str, ...] = ()
    user: str | None = None
    limit: int = 10
    asked_at: int | None = None
    timeout_ms: int | None = None


class AnswerItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of an answer; ``score`` is its log-probability, or that of its SID where items are ranked SID by SID."""

    item_id: str
    title: str
    sid: str
    score: float


class AnswerError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a query has no items: the error's class and a sentence that says what to do."""

    kind: str
    message: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``results``, key = query id. Best item first; ``position``: the index's next offset a partition."""

    query_id: str
    items: tuple[AnswerItem, ...] = ()
    layout: int | None = None
    layout_mode: Literal["pinned", "live", "marginal"] = "pinned"
    codebook: str = ""
    model: str = ""
    position: dict[str, int] = {}
    skipped_history: tuple[str, ...] = ()
    milliseconds: dict[str, float] = {}
    answered_at: int = 0
    error: AnswerError | None = None


class Codec:
    """Encodes and decodes one record type; decoding accepts JSON and MessagePack.

    >>> Codec(Query).decode(b'{"text": "red shoes"}').text
    'red shoes'
    """

    def __init__(self, record: type[Any], *, json: bool = False) -> None:
        self._from_json = msgspec.json.Decoder(record).decode
        self._from_messagepack = msgspec.msgpack.Decoder(record).decode
        self.encode = msgspec.json.encode if json else msgspec.msgpack.Encoder().encode
        self.content_type = "application/json" if json else "application/msgpack"

    def decode(self, value: bytes) -> Any:
        """Raises ``msgspec.DecodeError`` (undecodable) or its subclass ``ValidationError`` (wrong field)."""
        if value[:1] in _JSON_FIRST_BYTES_SET:
            return self._from_json(value)
        return self._from_messagepack(value)


_JSON_FIRST_BYTES_SET: Final = frozenset(bytes([byte]) for byte in _JSON_FIRST_BYTES)

# What people read with a console consumer is JSON; what machines read by the million is MessagePack.
ITEM_UPDATE: Final = Codec(ItemUpdate)
ITEM_CODES: Final = Codec(ItemCodes)
TOKEN_COUNT: Final = Codec(TokenCount)
LAYOUT: Final = Codec(LayoutRecord, json=True)
DRIFT: Final = Codec(Drift, json=True)
ALERT: Final = Codec(Alert, json=True)
QUERY: Final = Codec(Query, json=True)
ANSWER: Final = Codec(Answer, json=True)


def token_count_key(codebook: str, layer: int, token: int) -> bytes:
    """Key of a ``token-counts`` record; ``layer`` is 1-based."""
    return f"{codebook}:{layer}:{token}".encode()


def layout_key(codebook: str, generation: int) -> bytes:
    """Key of a ``layouts`` record."""
    return f"{codebook}:{generation}".encode()
