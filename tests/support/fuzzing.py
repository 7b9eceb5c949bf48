"""Records that nobody should send, from a seed: changed JSON and MessagePack, keys, headers and times, and noise."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
from confluent_kafka import Message

_DEEP: Final = 3_000
_ODD_TEXT: Final = ("", " ", "\x00", "\u202e", "\ufdfa" * 9, "é" * 200, "a\u0301", "\ud800", "[/]", "{{", "x" * 3_000)
_ODD_NUMBERS: Final = (
    0, -1, 1, 2**15, 2**16, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**30, -(2**63), -(10**30), 10**4_000,
    0.0, -0.0, 0.5, 1e-320, 3.4e38, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
_HEADER_NAMES: Final = (
    "ce_specversion",
    "CE_TIME",
    "ce_time",
    "content-type",
    "Content-Type",
    "",
    "é",
    "trace",
    "dlq.errors.class",
    "content-encoding",
    "ce_type",
)
_HEADER_VALUES: Final = (
    None, b"", b"1.0", b"1.", b"0.3", b"\xff\xfe", b"application/json", b"application/json; charset=utf-8", b"text/html",
    b"2026-01-02T03:04:05Z", b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59.999999-23:59", b"2026-02-30T00:00:00Z",
    b"2026-01-02", b"20260102T030405", b"x" * 3_000, b"1" * 5_000, "1.0", "text", b"2026-01-01t00:00:00z",
    b"2016-12-31T23:59:60Z", b"application/cloudevents+json", b"application/cloudevents-batch+json", b"gzip", b"identity",
    b"application/vnd.shop.item+json", b"application/msgpack; dtype=float16", b"application/json; dtype=bfloat16",
    b"application/json; charset=utf-16", b"sidstream.item-update.v1", b"sidstream.item-update.v2",
)  # fmt: skip


# What other serializers, converters and compressors make of an event's bytes.
_FOREIGN_VALUES: Final[tuple[Callable[[bytes], bytes], ...]] = (
    lambda value: b"\x00\x00\x00\x00\x07" + value,
    lambda value: b"\x00\x00\x01\x86\xa0\x00\x0a\x04" + value,
    lambda value: b"\x03\x00" + bytes(16) + value,
    lambda value: b"\xef\xbb\xbf" + value,
    lambda value: value.decode("latin-1").encode("utf-16"),
    lambda value: value.decode("latin-1").encode("utf-16-be"),
    lambda value: value.decode("latin-1").encode("utf-32"),
    gzip.compress,
    zlib.compress,
    lambda value: json.dumps(value.decode("latin-1")).encode(),
    msgspec.msgpack.encode,
    lambda value: b"[" + value + b"]",
    lambda value: value + b"\n" + value,
    lambda value: b'{"schema": null, "payload": ' + value + b"}",
    lambda value: b'{"specversion": "1.0", "data": ' + value + b"}",
    lambda value: value.replace(b'"', b"'"),
    lambda value: value.replace(b"0.", b"NaN"),
    lambda _: b"null",
    lambda _: b"",
    lambda _: b"\xc0",
    lambda _: b"<item/>",
    lambda _: b"Obj\x01\x04\x14avro.codec",
    lambda _: b"\xac\xed\x00\x05sr",
)
_FOREIGN_KEYS: Final[tuple[Callable[[bytes], bytes], ...]] = (
    lambda key: b"\x00\x00\x00\x00\x07" + key,
    lambda key: b'"' + key + b'"',
    lambda key: b'{"id": "' + key + b'"}',
    lambda key: b'{"schema": {}, "payload": "' + key + b'"}',
    lambda key: key + b"\n",
    lambda key: b" " + key,
    lambda key: key.decode("latin-1").encode("utf-16"),
    lambda key: key + b"\xed\xa0\x80",
    lambda _: (5).to_bytes(8),
    lambda _: (5).to_bytes(4),
)


class Fuzzer:
    """Records made from valid ones; the same seed makes the same records.

    ``valid``: makes the fields of a valid record; ``identity``: makes a valid key, a new one each time.
    """

    def __init__(
        self, seed: int, topic: str, valid: Callable[[random.Random], dict[str, Any]], identity: Callable[[int], bytes]
    ) -> None:
        self._random = random.Random(seed)
        self._topic = topic
        self._valid = valid
        self._identity = identity

    def records(self, count: int) -> list[Message]:
        """Records at the offsets 0 … count - 1 of one partition."""
        return [self._record(offset) for offset in range(count)]

    def _record(self, offset: int) -> Message:
        choose = self._random
        arguments: dict[str, Any] = {"key": self._key(offset), "value": self.value(), "headers": self._headers()}
        arguments["timestamp"] = choose.choice([(1, choose.randrange(2**62)), (2, 1_700_000_000_000), (1, -1), (0, 0)])
        return Message(topic=self._topic, partition=3, offset=offset, **arguments)

    def value(self) -> bytes | None:
        """A value: valid, changed in its fields or its bytes, or noise."""
        choose = self._random
        kind = choose.random()
        if kind < 0.03:
            return None
        if kind < 0.08:
            return choose.randbytes(choose.randrange(60))
        if kind < 0.10:
            return choose.choice(
                [b"[" * _DEEP, b'{"text":' * _DEEP, b"\x91" * _DEEP, b'{"x":' + b"[" * _DEEP, b"\x81\xa1x" * _DEEP]
            )
        fields: Any = self._valid(choose)
        for _ in range(choose.choice([0, 1, 1, 2, 5])):
            fields = self._changed(fields)
        value = self._encoded(fields)
        if kind > 0.92:
            value = choose.choice(_FOREIGN_VALUES)(value)
        for _ in range(choose.choice([0, 0, 0, 1, 3])):
            value = self._damaged(value)
        return value

    def _key(self, offset: int) -> bytes | None:
        choose = self._random
        kind = choose.random()
        if kind < 0.85:
            return self._identity(offset)
        if kind < 0.92:
            return choose.choice(_FOREIGN_KEYS)(self._identity(offset))
        return choose.choice([None, b"", b"\xff\xfe", b"x" * 257, b"\x00", choose.randbytes(choose.randrange(400))])

    def _headers(self) -> list[tuple[str, Any]] | None:
        choose = self._random
        if choose.random() < 0.6:
            return None
        count = choose.choice([0, 1, 2, 5, 100])
        return [(choose.choice(_HEADER_NAMES), choose.choice(_HEADER_VALUES)) for _ in range(count)]

    def _odd(self) -> Any:
        choose = self._random
        return choose.choice(
            [
                None,
                True,
                choose.choice(_ODD_TEXT),
                choose.choice(_ODD_NUMBERS),
                choose.randbytes(choose.randrange(40)),
                [choose.choice(_ODD_NUMBERS) for _ in range(choose.randrange(9))],
                [choose.choice(_ODD_TEXT) for _ in range(choose.randrange(9))],
                ["id"] * 400,
                {choose.choice(_ODD_TEXT): choose.choice(_ODD_NUMBERS)},
            ]
        )

    def _changed(self, fields: Any) -> Any:
        choose = self._random
        if not isinstance(fields, dict) or not fields or choose.random() < 0.03:
            return self._odd()
        fields = dict(fields)
        name = choose.choice(sorted(fields, key=str))
        match choose.randrange(5):
            case 0:
                del fields[name]
            case 1:
                fields[choose.choice(_ODD_TEXT)] = self._odd()
            case 2 if isinstance(fields[name], list) and fields[name]:
                items = list(fields[name])
                items[choose.randrange(len(items))] = self._odd()
                fields[name] = items if choose.random() < 0.7 else items * 2
            case 3 if isinstance(fields[name], dict):
                fields[name] = self._changed(fields[name])
            case _:
                fields[name] = self._odd()
        return fields

    def _encoded(self, fields: Any) -> bytes:
        if self._random.random() < 0.5:
            try:
                return msgspec.msgpack.encode(fields)
            except (OverflowError, UnicodeEncodeError):
                pass  # JSON has no bounds for numbers, and escapes for what is no text
        return json.dumps(fields, default=lambda value: value.hex()).encode()

    def _damaged(self, value: bytes) -> bytes:
        choose = self._random
        at = choose.randrange(len(value) + 1)
        noise = choose.randbytes(choose.randrange(1, 4))
        return choose.choice(
            [value[:at], value[at:], value[:at] + noise + value[at:], value[:at] + noise + value[at + 1 :]]
        )
