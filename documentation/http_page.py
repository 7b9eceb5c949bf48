"""The page of the gateway's HTTP interface, made from its OpenAPI document, and the document itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from documentation.markdown import code, table, unbroken
from gateway.application import ROUTES
from gateway.openapi import document_of

PAGE: Final = "reference/http.md"
DOCUMENT: Final = "reference/openapi.json"
# Records that are those of a topic have their fields on that page.
_OF_TOPICS: Final = {"Query": "queries", "Answer": "results", "ItemUpdate": "item-updates"}
# What HTTP's own registry says of a status, and needs no saying.
_COMMON: Final = {"Request fulfilled, document follows", "Bad request syntax or unsupported method"}
_BEGINNING: Final = """\
# HTTP

Made from the code: [openapi.json](openapi.json) (OpenAPI {version}) is what a running gateway serves as
`/openapi.json`. How to use it is in [The gateway](../gateway.md); what refuses a request is a problem
(`application/problem+json`), whose kinds are [here](errors.md).
"""


@cache
def openapi() -> dict[str, Any]:
    """The document, as it is served."""
    document: dict[str, Any] = json.loads(json.dumps(document_of(ROUTES)))
    return document


def openapi_file() -> str:
    return json.dumps(openapi(), ensure_ascii=False, indent=1) + "\n"


def operations() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(method, path, operation) of each."""
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def http_page() -> str:
    """The page, in Markdown."""
    lines = [_BEGINNING.format(version=openapi()["openapi"])]
    for method, path, operation in operations():
        lines += [f"## {method} {path}", "", f"{operation['summary']}.", ""]
        lines += [operation.get("description", ""), ""]
        given = [
            (unbroken(one["name"]), one["in"], one["schema"].get("description", ""))
            for one in operation.get("parameters", ())
        ]
        if given:
            lines += [*table(("parameter", "in", "meaning"), given), ""]
        if "requestBody" in operation:
            lines += [f"Body: {_content(operation['requestBody'])}.", ""]
        rows = [
            (status, _content(answer), "" if answer["description"] in _COMMON else answer["description"])
            for status, answer in sorted(operation["responses"].items())
        ]
        lines += [*table(("status", "body", "meaning"), rows), ""]
    return "\n".join(lines)


def _content(body: Mapping[str, Any]) -> str:
    """Record and media types of a body."""
    contents: Mapping[str, Any] = body.get("content", {})
    names = dict.fromkeys(name for one in contents.values() for name in _records(one.get("schema", {})))
    records = " or ".join(
        f"[{name}](../topics.md#{_OF_TOPICS[name]})" if name in _OF_TOPICS else name for name in names
    )
    return f"{records} {' or '.join(map(code, contents))}".strip()


def _records(schema: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2]
    for one in schema.get("oneOf", ()):
        yield from _records(one)
