"""The description of the interface: Litestar's, of the routes as they are, with the schemas of the very structs that are on the
wire, as ``docs/schemas`` has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec
from litestar import Litestar
from litestar.openapi.config import OpenAPIConfig

from gateway.kafka.figures import Figures
from gateway.problems import ProblemDetails
from gateway.routes.items import Accepted
from gateway.routes.lines import LineOutcome, LinesOutcome
from gateway.routes.pages import Verdict
from gateway.routes.queries import Pending
from streamer.events.records import Answer, ItemUpdate, Query

PATH: Final = "/openapi.json"
_REFERENCE: Final = "#/components/schemas/{name}"
_RECORDS: Final = (
    Query,
    Answer,
    Pending,
    ItemUpdate,
    Accepted,
    LineOutcome,
    LinesOutcome,
    Figures,
    Verdict,
    ProblemDetails,
)
_ATTRIBUTES: Final = {
    "type": "object",
    "description": "field → string, finite number, boolean or list of strings",
    "additionalProperties": {
        "anyOf": [
            {"type": "string"},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "array", "items": {"type": "string"}},
        ]
    },
}
_LINES: Final = {
    "type": "string",
    "description": 'one ItemUpdate a line, with its `id`; or `{"id": …, "delete": true}`',
}


def _one(name: str) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(name=name)}


_BODIES: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("/query", "post"): {"application/json": _one("Query"), "application/msgpack": _one("Query")},
    ("/items/{item_id}", "put"): {"application/json": _one("ItemUpdate"), "application/msgpack": _one("ItemUpdate")},
    ("/items/{item_id}/attributes", "patch"): {"application/json": _ATTRIBUTES},
    ("/items", "post"): {"application/x-ndjson": _LINES},
}


def described(document: dict[str, Any]) -> dict[str, Any]:
    """Litestar's document, completed; changed in place."""
    _, schemas = msgspec.json.schema_components(_RECORDS, ref_template=_REFERENCE)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **schemas}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]
    for (path, method), contents in _BODIES.items():
        document["paths"][path][method]["requestBody"] = {
            "required": True,
            "content": {media_type: {"schema": schema} for media_type, schema in contents.items()},
        }
    lines = {"oneOf": [_one("LineOutcome"), _one("LinesOutcome")]}
    document["paths"]["/items"]["post"]["responses"]["200"] = {
        "description": "a line for each line, in their order, and one that counts them",
        "content": {"application/x-ndjson": {"schema": lines}},
    }
    return document


def document_of(routes: Sequence[Any]) -> dict[str, Any]:
    """The description of these routes. Litestar makes it of an application that is never served, as its own pages fetch scripts
    from elsewhere and take the root.
    """
    try:
        number = version("sidstream")
    except PackageNotFoundError:
        number = "unknown"
    configuration = OpenAPIConfig(
        title="sidstream gateway",
        version=number,
        description="Queries, answers and items over HTTP. Errors are problem details (RFC 9457).",
        path="/never-served",
    )
    app = Litestar(routes, openapi_config=configuration, logging_config=None)
    return described(app.openapi_schema.to_schema())


@cache
def encoded(routes: tuple[Any, ...]) -> bytes:
    """``document_of`` as JSON, made when it is first asked for."""
    return msgspec.json.encode(document_of(routes))
