"""Many items as lines: each is answered, in its place, and what is said to be accepted is on the topic."""

from __future__ import annotations

import json
import socket

import numpy as np
from numpy.typing import NDArray

from support.gateway_requests import HOST
from support.gateways import LINES, MAXIMUM_LINES, Served, update
from support.processes import committed_records


def keys_on(served: Served, prefix: str) -> list[str]:
    """Of ``item-updates``, those that begin so."""
    records = committed_records(served.settings, served.settings.topics.item_updates)
    return sorted(key for record in records if (key := record.key().decode()).startswith(prefix))


def test_bad_lines_are_refused_one_by_one_and_every_other_line_is_written(
    served: Served, tiny_embeddings: NDArray[np.float32]
) -> None:
    good = update(tiny_embeddings, 0)
    reply = served.lines(
        good | {"id": "mixed-1"},
        b"no JSON",
        good | {"id": None},
        b"",
        good | {"id": "mixed-2", "embedding": [1.0]},
        good | {"id": "mixed-3", "title": "x" * 10_000},
        {"id": "mixed-4", "delete": True},
        {"id": "mixed-5", "delete": False},
        good | {"id": 17},
        b'{"id": "mixed-6", "embedding": "' + b"A" * 300_000 + b'"}',
        good | {"id": "mixed-7", "attributes": {"price": "cheap"}},
        good | {"id": "mixed-8"},
    )
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-ndjson")
    *outcomes, last = reply.lines
    found = [(one["line"], one["status"], one.get("error", {}).get("type", "").rpartition(":")[2]) for one in outcomes]
    assert found == [
        (1, "accepted", ""),
        (2, "refused", "UndecodableEvent"),
        (3, "refused", "EmptyId"),
        (5, "refused", "WrongDimension"),
        (6, "refused", "FieldTooLarge"),
        (7, "accepted", ""),
        (8, "refused", "InvalidEvent"),
        (9, "accepted", ""),
        (10, "refused", "EventTooLarge"),
        (11, "refused", "InvalidAttributes"),
        (12, "accepted", ""),
    ]
    assert all(one["error"]["detail"] for one in outcomes if one["status"] == "refused")
    assert (last["lines"], last["accepted"], last["refused"]) == (12, 4, 7)
    assert keys_on(served, "mixed-") == ["mixed-1", "mixed-4", "mixed-8"]
    assert "17" in keys_on(served, "17")


def test_whoever_sends_everything_before_reading_is_answered_and_lines_beyond_the_most_are_told_together(
    served: Served,
) -> None:
    count = MAXIMUM_LINES + 250
    reply = served.lines(*({"id": f"many-{number}", "delete": True} for number in range(count)))
    *outcomes, last = reply.lines
    assert [one["line"] for one in outcomes] == list(range(1, MAXIMUM_LINES + 2))
    assert {one["status"] for one in outcomes[:-1]} == {"accepted"}
    beyond = outcomes[-1]
    assert (beyond["line"], beyond["until"], beyond["status"]) == (MAXIMUM_LINES + 1, count, "refused")
    assert beyond["error"]["type"].endswith(":TooManyLines")
    assert (last["lines"], last["accepted"], last["refused"]) == (count, MAXIMUM_LINES, 250)
    assert len(keys_on(served, "many-")) == MAXIMUM_LINES


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def begun(served: Served) -> socket.socket:
    """A connection on which lines may follow as chunks."""
    connection = socket.create_connection((HOST, served.settings.gateway.port), timeout=60)
    head = f"POST /items HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n"
    connection.sendall(head.encode() + f"Content-Type: {LINES['Content-Type']}\r\n\r\n".encode())
    return connection


def test_line_is_answered_while_the_body_still_comes(served: Served) -> None:
    with begun(served) as connection, connection.makefile("rb") as answer:
        for number in (1, 2):
            connection.sendall(chunk(json.dumps({"id": f"streamed-{number}", "delete": True}).encode() + b"\n"))
            line = b""
            while not line.startswith(b"{"):
                line = answer.readline()
            assert json.loads(line) == {"line": number, "id": f"streamed-{number}", "status": "accepted"}
        connection.sendall(b"0\r\n\r\n")
        line = b""
        while not line.startswith(b"{"):
            line = answer.readline()
        assert json.loads(line)["accepted"] == 2


def test_body_that_breaks_off_loses_no_line_and_its_last_piece_is_none(served: Served) -> None:
    with begun(served) as connection, connection.makefile("rb") as answer:
        connection.sendall(chunk(b'{"id": "broken-1", "delete": true}\n{"id": "broken-2", "delete": true}'))
        line = b""
        while not line.startswith(b"{"):
            line = answer.readline()
    assert served.lines({"id": "broken-3", "delete": True}).lines[-1]["accepted"] == 1
    assert keys_on(served, "broken-") == ["broken-1", "broken-3"]
