"""The records of every topic: what is on the wire, and nothing about how it gets there.

Values are MessagePack or JSON maps, told apart by their first byte (a MessagePack map never begins with ``{``).
The Kafka key is the identity: item id, query id, token, layout or alert; so compaction keeps the newest state of each.
Times are integer milliseconds since the Unix epoch. A record without ``record_version`` is of version 1, so that a version
costs nothing on the wire until there is a second one. ``docs/schemas`` has all of this as JSON Schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from streamer.filters.slate import SlateRule
from streamer.shards.parts import AnsweredPart, AskedPart

JSON_FIRST_BYTES: Final = frozenset({b"{", b" ", b"\t", b"\r", b"\n"})
FIRST_MAP_BYTE: Final = 0x80  # of MessagePack; smaller ones begin JSON, or no map at all
# Lists that are nested without end are a fault of the record too.
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# A record whose meaning changes gets a field of a type with a higher maximum; its readers still take the version before.
Version1 = Annotated[int, Meta(ge=1, le=1, description="version of the record; without it, 1")] | UnsetType
Version2 = Annotated[int, Meta(ge=1, le=2, description="version of the record; without it, 1")] | UnsetType
_VERSION_FIELD: Final = "record_version"
# Undecoded, so that a name that is there twice can be refused (``models.attributes`` reads it).
RawAttributes = Annotated[
    msgspec.Raw,
    Meta(
        description="field → string, finite number, boolean or list of strings",
        extra_json_schema={
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "number"},
                    {"type": "boolean"},
                    {"type": "array", "items": {"type": "string"}},
                ]
            },
        },
    ),
]
RawFilter = Annotated[
    msgspec.Raw, Meta(description="all, any, not, or a field and its bounds", extra_json_schema={"type": "object"})
]


class RecordVersionError(msgspec.ValidationError):
    """A record of a version that this sidstream does not read: a newer one has written it."""


class ItemUpdate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Topic ``item-updates``, key = item id (UTF-8). The full state of an item; a null value (tombstone) deletes it.

    ``embedding``: D numbers, or the bytes of D little-endian float32 or float16 (MessagePack ``bin``; base64 in JSON).
    ``dtype`` says which of the two; bytes without it are float32, or float16 where half as many are there and their norm is
    plausible. ``updated_at``: without it the record's CloudEvents or Kafka time. ``attributes``: what queries filter on; absent
    says that the update has none. ``embedding_model``: the name of the model that made the embedding, for the codebooks that were
    fitted on embeddings of that name; absent: for those without one. ``id`` or ``item_id``, if given, repeats the key.
    """

    embedding: bytes | list[float]
    title: str = ""
    weight: float = 1.0
    updated_at: int | None = None
    dtype: Annotated[str, Meta(extra_json_schema={"enum": ["float32", "float16"]})] | UnsetType = UNSET
    id: Annotated[Any, Meta(description="the key again")] = UNSET
    item_id: Annotated[Any, Meta(description="the key again")] = UNSET
    attributes: RawAttributes | UnsetType = UNSET
    embedding_model: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET
    record_version: Version1 = UNSET


class ItemCodes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Topic ``item-codes``, key = item id. The codes of an item under one codebook; a tombstone deletes the item.

    ``vector``: its embedding for the dense leg, 4 + D bytes (``models.dense.vectors``): a float32, little-endian, and D int8 that
    it scales; absent: the item has none. ``attributes``: those of the update, checked, in the order of their names.
    """

    codebook: str
    codes: tuple[int, ...]
    title: str
    weight: float
    updated_at: int
    vector: Annotated[bytes, Meta(max_length=65_535)] | UnsetType = UNSET
    attributes: RawAttributes | UnsetType = UNSET
    record_version: Version1 = UNSET


class ItemAttributes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Topic ``item-attributes``, key = item id. All attributes that this topic has of an item: they change more often than the
    rest of it. A null value takes them away again; those of the item's update stay.
    """

    attributes: RawAttributes
    record_version: Version1 = UNSET


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``token-counts``, key = ``codebook:layer:token``. An absolute census count; the newest ``as_of`` wins.

    ``layer`` is 1-based like the paper's. ``as_of`` is the number of ``item-codes`` records that the count includes.
    ``partitions``: those of ``item-codes`` that it is of, as ``0-3,6``, which then also end the key: such counts add up, and the
    record is of version 2. Absent: all partitions.
    """

    codebook: str
    layer: int
    token: int
    n: int
    as_of: int
    partitions: str | UnsetType = UNSET
    record_version: Version2 = UNSET


class LayoutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``layouts``, key = ``codebook:generation``. A layout is issued once and never changes."""

    generation: int
    codebook: str
    layers: int
    size: int
    head_tokens: tuple[int, ...]
    issued_at: int
    cause: str
    record_version: Version1 = UNSET


class LayerMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Census metrics of one layer (paper figure 3): ``entropy`` normalised to 0..1, ``gini`` 0..1-1/M.

    ``crowded_share``: share of the items on the most crowded tenth of the tokens; ``head_share`` on the wire, as it always was.
    """

    layer: int
    entropy: float
    gini: float
    standard_deviation: float
    crowded_share: float = msgspec.field(name="head_share")


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``drift``, key = codebook. Metrics of every layer now, and of the baseline that they are compared with."""

    codebook: str
    at: int
    items: int
    generation: int
    layers: tuple[LayerMetrics, ...]
    baseline: tuple[LayerMetrics, ...]
    record_version: Version1 = UNSET


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
    record_version: Version1 = UNSET


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``queries``, key = query id. Text, history (item ids, oldest first), embedding, or several of them.

    ``embedding``: of what is asked, in the space of the items' embeddings: D numbers, or the bytes of D little-endian float32
    (MessagePack ``bin``; base64 in JSON).
    ``timeout_ms`` after ``asked_at`` (or else after it reached the broker) an answer is of no use: it gets an error instead.
    ``filter``: what an item's attributes must fulfil (docs/filters.md); ``exclude``: ids of items that no answer may name;
    ``exclude_history``: nor those of ``history``; without it, true. ``search``: exact drops no SID that a beam might drop;
    without it, what the retriever's settings say. ``explain``: the answer says of each item why it is where it is
    (docs/explain.md); ``why_not``: ids of items of which it says why they are not in it. ``slate``: rules for
    the whole of its items, all of them meant. ``part``: what is asked of a shard (docs/scale.md).
    """

    text: str = ""
    history: tuple[str, ...] = ()
    user: str | None = None
    limit: int = 10
    asked_at: int | None = None
    timeout_ms: int | None = None
    embedding: bytes | list[float] | UnsetType = UNSET
    filter: RawFilter | UnsetType = UNSET
    exclude: tuple[str, ...] | UnsetType = UNSET
    exclude_history: bool | UnsetType = UNSET
    search: Literal["beam", "exact"] | UnsetType = UNSET
    explain: bool | UnsetType = UNSET
    why_not: tuple[str, ...] | UnsetType = UNSET
    slate: tuple[SlateRule, ...] | UnsetType = UNSET
    part: AskedPart | UnsetType = UNSET
    record_version: Version1 = UNSET


def excludes_history(query: Query) -> bool:
    """Whether the answer may not name items of the query's history: yes, where nothing else is said."""
    return query.exclude_history is not False


class ItemExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why an answered item has its score; all logarithms are natural.

    ``by_layer``: token of the SID → the model's log-probability of it after those before; absent under the marginal layout, where
    a SID has the sum over the ways in which the model writes it and no layers of its own. ``log_sid``: their sum, absent where
    the model was not asked, or (marginal) where its search did not find the SID. ``sid_items``: eligible items of the SID;
    ``share``: the item's part of it, by weight. ``log_model``: log P of the item by the model, absent if its search did not find
    it; ``log_dense`` by the dense leg, ``cosine`` of the vectors.
    """

    by_layer: dict[str, float] | UnsetType = UNSET
    log_sid: float | UnsetType = UNSET
    sid_items: int
    share: float
    log_model: float | UnsetType = UNSET
    log_dense: float | UnsetType = UNSET
    cosine: float | UnsetType = UNSET


class AnswerExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """What the items were chosen from, and how.

    ``layout_reason``: under which layout SIDs are read, and why. ``sids``: SIDs that the model's search was to find;
    ``expansions``: prefixes that it ran, where it was exact. ``live_items`` of the index, those that the filter ``let_through``
    (all without one), and those of them that the query ``excluded``. Of the mixture: ``sharpness`` λ, ``share_of_dense`` α,
    ``share_of_dense_new`` α', ``boost_of_new`` β, ``share_of_together`` γ; absent where the model alone answered.
    """

    layout_reason: str
    sids: int | UnsetType = UNSET
    expansions: int | UnsetType = UNSET
    live_items: int
    let_through: int
    excluded: int
    sharpness: float | UnsetType = UNSET
    share_of_dense: float | UnsetType = UNSET
    share_of_dense_new: float | UnsetType = UNSET
    boost_of_new: float | UnsetType = UNSET
    share_of_together: float | UnsetType = UNSET


class NotAnswered(msgspec.Struct, frozen=True, kw_only=True):
    """Why an item is not in an answer, in a word and a sentence; the figures are there where they mean something.

    ``rank`` from 1, if it is there after all; ``clauses`` of the filter that it fails; ``partition`` and ``deleted_at``
    (milliseconds, Kafka's time) of its deletion. ``by_layer`` and ``log_sid`` as in an explanation; ``score``: what the item has
    by all that model and vectors say, whether the search came by or not; ``worst_score``: of the last answered item.
    ``lost_at_layer``: from 1, where the search dropped its SID; ``lost_by``: what it lacked there.
    """

    item_id: str
    reason: Literal[
        "answered",
        "not_indexed",
        "deleted",
        "excluded",
        "not_let_through",
        "held_back",
        "outscored",
        "beyond_search",
        "not_scored",
    ]
    message: str
    rank: int | UnsetType = UNSET
    clauses: tuple[str, ...] | UnsetType = UNSET
    partition: int | UnsetType = UNSET
    deleted_at: int | UnsetType = UNSET
    sid: str | UnsetType = UNSET
    by_layer: dict[str, float] | UnsetType = UNSET
    log_sid: float | UnsetType = UNSET
    score: float | UnsetType = UNSET
    worst_score: float | UnsetType = UNSET
    lost_at_layer: int | UnsetType = UNSET
    lost_by: float | UnsetType = UNSET


class AnswerItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of an answer; ``score`` is its log-probability, or that of its SID where items are ranked SID by SID.

    ``found_by``: the leg that found it, where the dense leg ran; ``new``: there and true of an item that came after training;
    ``explanation``: where the query asks for it.
    """

    item_id: str
    title: str
    sid: str
    score: float
    found_by: Literal["model", "dense", "both"] | UnsetType = UNSET
    new: bool | UnsetType = UNSET
    explanation: ItemExplanation | UnsetType = UNSET


class AnswerError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a query has no items: the error's class and a sentence that says what to do."""

    kind: str
    message: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``results``, key = query id. Best item first; ``position``: the index's next offset a partition. ``bundle``: id of
    the one that answered, errors too; ``codebook`` and ``model`` are its own.

    ``legs``: what answered, the language model, the dense leg (nearest vectors), or both as a mixture; ``note``: why not both,
    or why a slate is not full.
    ``search``: how the SIDs were found; ``search_complete``: false where its budget ended an exact search, so that a better
    item may be missing. ``explanation`` and ``why_not``: where the query asks for them.
    """

    query_id: str
    items: tuple[AnswerItem, ...] = ()
    layout: int | None = None
    layout_mode: Literal["pinned", "live", "marginal"] = "pinned"
    codebook: str = ""
    bundle: str | UnsetType = UNSET
    model: str = ""
    position: dict[str, int] = {}
    skipped_history: tuple[str, ...] = ()
    legs: tuple[Literal["model", "dense"], ...] | UnsetType = UNSET
    note: str | UnsetType = UNSET
    milliseconds: dict[str, float] = {}
    answered_at: int = 0
    error: AnswerError | None = None
    search: Literal["beam", "exact"] | UnsetType = UNSET
    search_complete: bool | UnsetType = UNSET
    explanation: AnswerExplanation | UnsetType = UNSET
    why_not: tuple[NotAnswered, ...] | UnsetType = UNSET
    part: AnsweredPart | UnsetType = UNSET
    missing_partitions: tuple[int, ...] | UnsetType = UNSET
    record_version: Version1 = UNSET


class Codec:
    """Encodes and decodes one record type; decoding accepts JSON and MessagePack.

    ``strict`` refuses fields that the record does not have; otherwise they are passed over.

    >>> Codec(Query).decode(b'{"text": "red shoes"}').text
    'red shoes'
    """

    def __init__(self, record: type[msgspec.Struct], *, json: bool = False, strict: bool = False) -> None:
        self.fields = tuple(field.encode_name for field in msgspec.structs.fields(record))
        decoded = refusing_unknown_fields(record) if strict else record
        self._from_json = msgspec.json.Decoder(decoded).decode
        self._from_messagepack = msgspec.msgpack.Decoder(decoded).decode
        self.encode = msgspec.json.encode if json else msgspec.msgpack.Encoder().encode
        self.content_type = "application/json" if json else "application/msgpack"

    def decode(self, value: bytes) -> Any:
        """Raises ``msgspec.DecodeError`` (undecodable) or its subclass ``ValidationError`` (wrong field)."""
        try:
            if value[:1] in JSON_FIRST_BYTES:
                return self._from_json(value)
            return self._from_messagepack(value)
        except msgspec.ValidationError as error:
            if str(error).endswith(f"`$.{_VERSION_FIELD}`"):
                raise RecordVersionError(
                    f"the record is of another version than this sidstream reads ({error}): update sidstream, the readers "
                    "before the writers"
                ) from None
            raise

    def decode_messagepack(self, values: Sequence[bytes]) -> list[Any]:
        """The records of many MessagePack values; None where the decoder refuses one: ``decode`` says why."""
        return decoded_each(self._from_messagepack, values)


def decoded_each(decode: Callable[[bytes], Any], values: Sequence[bytes]) -> list[Any]:
    """What ``decode`` makes of each value; None of one that it refuses."""
    found: list[Any] = []
    rest = iter(values)
    while len(found) < len(values):
        try:
            found.extend(map(decode, rest))  # what came before one that is refused is kept
        except UNDECODABLE:
            found.append(None)
    return found


def refusing_unknown_fields(
    record: type[msgspec.Struct], more: tuple[tuple[str, str], ...] = ()
) -> type[msgspec.Struct]:
    """``record`` as a type whose decoding refuses any other field; ``more``: attributes and names of fields that may be there."""
    return msgspec.defstruct(
        record.__name__,
        [(attribute, msgspec.Raw | UnsetType, UNSET) for attribute, _ in more],
        bases=(record,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        rename=dict(more),
        gc=False,
    )


# What people read with a console consumer is JSON; what machines read by the million is MessagePack.
ITEM_UPDATE: Final = Codec(ItemUpdate)
ITEM_CODES: Final = Codec(ItemCodes)
ITEM_ATTRIBUTES: Final = Codec(ItemAttributes, strict=True)  # as for queries, below
TOKEN_COUNT: Final = Codec(TokenCount)
LAYOUT: Final = Codec(LayoutRecord, json=True)
DRIFT: Final = Codec(Drift, json=True)
ALERT: Final = Codec(Alert, json=True)
QUERY: Final = Codec(Query, json=True, strict=True)  # a field that is not understood would change nothing, silently
ANSWER: Final = Codec(Answer, json=True)


def token_count_key(codebook: str, layer: int, token: int, partitions: str = "") -> bytes:
    """Key of a ``token-counts`` record; ``layer`` is 1-based; ``partitions``: of a shard."""
    return f"{codebook}:{layer}:{token}{':' if partitions else ''}{partitions}".encode()


def token_count(codebook: str, layer: int, token: int, n: int, as_of: int, *, partitions: str = "") -> TokenCount:
    """A count of all partitions, or of a shard's: of a version then that a monitor refuses which would not add it to others."""
    count = TokenCount(codebook=codebook, layer=layer, token=token, n=n, as_of=as_of)
    return msgspec.structs.replace(count, partitions=partitions, record_version=2) if partitions else count


def layout_key(codebook: str, generation: int) -> bytes:
    """Key of a ``layouts`` record."""
    return f"{codebook}:{generation}".encode()
