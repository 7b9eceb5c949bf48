"""Requests to a server of ours on loopback, by the standard library: what any client sends."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from support.patience import PATIENCE_SECONDS

HOST: Final = "127.0.0.1"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def kind(self) -> str:
        """Of a problem."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        assert self.json["status"] == self.status
        return str(self.json["type"]).removeprefix("urn:sidstream:problem:")


def send(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """One request. ``body``: bytes or an iterable of them go as they are, anything else as JSON."""
    of_json = (
        body is not None and not isinstance(body, bytes) and not (isinstance(body, Iterable) and iter(body) is body)
    )
    given = {"Content-Type": "application/json"} if of_json else {}
    connection: http.client.HTTPConnection
    if tls is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_SECONDS)
    else:
        connection = http.client.HTTPSConnection(HOST, port, timeout=PATIENCE_SECONDS, context=tls)
    try:
        connection.request(method, path, json.dumps(body).encode() if of_json else body, {**given, **(headers or {})})
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()
