"""What people did with items: the record of topic ``interactions``, and what must hold of one.

What must hold: a record is judged by itself and the time at which the broker had it, never by the clock of who reads it: whoever
reads it, and however late, comes to the same.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec
from confluent_kafka import Message
from msgspec import UNSET, Meta, UnsetType

from models.catalogue import MAXIMUM_ID_BYTES
from streamer.events.formats.reading import NO_FORMATS, Formats
from streamer.events.intake import EventError, EventLimits, checked_id, checked_time, decode_event, within
from streamer.events.records import Codec, Version1
from streamer.events.values.foreign_formats import foreign_key
from streamer.settings.retriever import RetrieverSettings

Kind = Literal["view", "click", "cart", "purchase"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
CLOCKS_APART_MS: Final = 5 * 60 * 1000
"""How far the clock of a sender may be ahead of the broker's."""
_LONGEST_SAID: Final = 64


class Interaction(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``interactions``, key = user id (UTF-8). What a user did with an item, once and for all: no record takes it back.

    ``kind``: how far it went; ``query``: the id (the key) of the query whose answer the item stood in; ``text``: what was
    searched for, where there was no such query; ``at``: when it was, without it when the record's CloudEvent was, or when the
    broker had it. Two records that say the same of user, item, kind and ``at`` are one interaction that was sent twice.
    ``user``, if given, repeats the key.
    """

    item: str
    kind: Kind
    query: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    at: Annotated[int, Meta(description="milliseconds since the epoch")] | UnsetType = UNSET
    user: Annotated[str, Meta(description="the key again")] | UnsetType = UNSET
    record_version: Version1 = UNSET


INTERACTION: Final = Codec(Interaction, json=True, strict=True)  # as for queries


class CheckedInteraction(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An interaction within its limits. ``at``: milliseconds since the epoch; ``query``, ``text``: empty for none."""

    user: str
    item: str
    kind: Kind
    at: int
    query: str = ""
    text: str = ""


class InteractionIntake:
    """Reads the records of ``interactions``. User and text are those of a query, and so are their limits (``settings``)."""

    def __init__(self, settings: RetrieverSettings, formats: Formats = NO_FORMATS) -> None:
        self._formats = formats
        self._limits = EventLimits.of(settings.maximum_query_bytes, settings)
        self._user_bytes = settings.maximum_user_bytes
        self._text_characters = settings.maximum_text_characters

    def read(self, record: Message) -> CheckedInteraction:
        """The interaction in a record.

        Raises:
            EventError: why it cannot be used.
            RegistryAwayError: its schema cannot be asked for now.
        """
        value = record.value()
        if not value:
            checked_id(record.key(), "user")
            raise EventError("EmptyInteraction", "the record has no value: an interaction cannot be taken back")
        try:
            decoded = decode_event(INTERACTION, record, value, self._limits, self._formats)
        except EventError as error:
            raise EventError(error.kind, str(error).partition(": to delete an item")[0]) from None
        if decoded.value is None:
            raise EventError("EmptyInteraction", "the record deletes its row: an interaction cannot be taken back")
        return self.checked(record.key(), decoded.value, record.timestamp()[1], decoded.headers.time)

    def checked(
        self, key: bytes | None, said: Interaction, heard: int, event_time: int | None = None
    ) -> CheckedInteraction:
        """An interaction held against its limits. ``heard``: when the broker had it, ``event_time``: the time of its CloudEvent;
        milliseconds since the epoch.

        Raises:
            EventError: names the field, and its limit.
        """
        user = checked_id(key, "user").decode()
        within(self._user_bytes, len(user.encode()), "user", "bytes")
        if said.user is not UNSET and said.user != user:
            raise EventError(
                "ContradictingId",
                f"user is {said.user[:_LONGEST_SAID]!a} and the key is {user[:_LONGEST_SAID]!a}: the key is the user's id; "
                "send the same there, or leave user out",
            )
        _check_item(said.item)
        query = "" if said.query is UNSET else said.query
        if said.query is not UNSET:
            if not query:
                raise EventError("InvalidEvent", "query is empty: send the query's id, or leave it out")
            within(MAXIMUM_ID_BYTES, len(query.encode()), "query", "bytes")
        text = "" if said.text is UNSET else said.text
        within(self._text_characters, len(text), "text", "characters")
        return CheckedInteraction(user, said.item, said.kind, _moment(said, heard, event_time), query, text)


def _check_item(item: str) -> None:
    if not item:
        raise EventError("EmptyId", "item is empty: send the item's id")
    within(MAXIMUM_ID_BYTES, len(item.encode()), "item", "bytes")
    foreign = foreign_key(item.encode())
    if foreign is not None:
        raise EventError("InvalidId", f"item is an item's id, but it {foreign}")


def _moment(said: Interaction, heard: int, event_time: int | None) -> int:
    if said.at is not UNSET:
        at, field = said.at, "at"
    elif event_time is not None:
        at, field = event_time, "the CloudEvent's time"
    else:
        return heard
    at = checked_time(at, field, heard)
    if at > heard + CLOCKS_APART_MS:
        raise EventError(
            "InvalidEvent",
            f"{field} {at} is {(at - heard) / 60_000:.0f} minutes after the broker had the record ({heard}): nobody has done "
            "yet what is to come; look at the sender's clock",
        )
    return at
