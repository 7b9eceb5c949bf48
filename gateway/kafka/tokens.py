"""Tokens of writes: a small signed text that says which events a client has sent, so that a query can wait for them.

What must hold: what a token says was said by a gateway; its size has a bound, however much was written.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gateway.kafka.writes import Place
from gateway.problems import Problem
from streamer.client.delivery import Delivery, DeliveryLog

_SIGNATURE_BYTES: Final = 16
_VERSION: Final = 1
# More runs of a partition are told as one that reaches from the first to the last: letters of others between them may then be
# taken for ours.
_MOST_RUNS: Final = 16
LONGEST: Final = 4_096
_MOST_TOKENS: Final = 32

Runs = tuple[tuple[int, int], ...]


class _Written(msgspec.Struct, frozen=True, array_like=True):
    """Partition → runs of offsets, and where the dead letters ended before."""

    runs: dict[int, Runs] = {}
    letters: dict[int, int] = {}


class _Token(msgspec.Struct, frozen=True, array_like=True):
    version: int
    updates: _Written
    attributes: _Written
    models: tuple[str | None, ...] = ()


_DECODER: Final = msgspec.msgpack.Decoder(_Token)


class Tokens:
    """Signs and reads tokens. ``secret``: that of the settings; None makes one that ends with the process."""

    def __init__(self, secret: str | None) -> None:
        self._key = secret.encode() if secret is not None else secrets.token_bytes(32)

    def of(
        self,
        updates: Sequence[Place],
        attributes: Sequence[Place],
        letters: tuple[Mapping[int, int], Mapping[int, int]],
        models: Sequence[str | None] = (),
    ) -> str:
        """The token of these writes; ``letters``: where the dead letters of updates and of attributes ended before them;
        ``models``: what the updates say of ``embedding_model``."""
        said = _Token(
            _VERSION,
            _written(updates, letters[0]),
            _written(attributes, letters[1]),
            tuple(sorted(set(models), key=str)),
        )
        content = msgspec.msgpack.encode(said)
        return base64.urlsafe_b64encode(self._signature(content) + content).decode().rstrip("=")

    def read(self, texts: str) -> Delivery:
        """What several tokens, with commas between them, say together.

        Raises:
            Problem: 400: one is none of ours.
        """
        names = [text.strip() for text in texts.split(",")]
        if len(names) > _MOST_TOKENS:
            raise _unknown(f"{len(names)} tokens are more than {_MOST_TOKENS}")
        return _together([self._read(name) for name in names])

    def _read(self, text: str) -> _Token:
        if len(text) > LONGEST:
            raise _unknown(f"a token of {len(text):,} characters is longer than any of ours")
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            signature, content = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
            if not hmac.compare_digest(signature, self._signature(content)):
                raise _unknown(
                    f"the token {text[:16]!r}… is not of this gateway, or of before its start: set gateway.token_secret where "
                    "there are several, or where tokens are to outlive a start"
                )
            return _DECODER.decode(content)
        except (ValueError, msgspec.DecodeError):
            raise _unknown(f"{text[:40]!r} is no token: send what a write has answered as its token") from None

    def _signature(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")[:_SIGNATURE_BYTES]


def _written(places: Sequence[Place], letters: Mapping[int, int]) -> _Written:
    if not places:
        return _Written()
    log = DeliveryLog({})
    for place in sorted(places):
        log.add(place.partition, place.offset)
    runs = {
        partition: own if len(own) <= _MOST_RUNS else ((own[0][0], own[-1][1]),)
        for partition, own in log.delivery().ranges.items()
    }
    return _Written(runs, dict(letters))


def _together(tokens: Sequence[_Token]) -> Delivery:
    """One delivery of what all of them say."""
    alone = _delivery([token.attributes for token in tokens])
    updates = _delivery([token.updates for token in tokens])
    models = frozenset(model for token in tokens for model in token.models)
    return Delivery(updates.ranges, updates.letters_from, alone if alone.ranges else None, models)


def _delivery(written: Sequence[_Written]) -> Delivery:
    ranges: dict[int, Runs] = {}
    letters: dict[int, int] = {}
    for one in written:
        for partition, runs in one.runs.items():
            ranges[partition] = _merged((*ranges.get(partition, ()), *runs))
        if one.runs:
            for partition, end in one.letters.items():
                letters[partition] = min(end, letters.get(partition, end))
    return Delivery(ranges, letters)


def _merged(runs: Runs) -> Runs:
    """Rising, none of them within another."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(runs):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return tuple(found)


def _unknown(why: str) -> Problem:
    return Problem(400, "UnknownToken", why)
