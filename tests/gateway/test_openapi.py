"""The description of the interface: of the structs that are on the wire, whole in itself, and true to the routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from gateway.application import ROUTES
from gateway.openapi import document_of
from streamer.events.schemas import schema_of


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(document_of(ROUTES)))  # as it is served
    return loaded


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize(
    ("name", "topic"), [("Query", "queries"), ("Answer", "results"), ("ItemUpdate", "item-updates")]
)
def test_schema_of_a_record_is_that_of_its_topic(document: dict[str, Any], name: str, topic: str) -> None:
    committed = json.loads(json.dumps(schema_of(topic)).replace("#/$defs/", "#/components/schemas/"))
    assert document["components"]["schemas"][name] == committed["$defs"][name]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place


def test_every_operation_says_what_it_takes_what_it_gives_and_how_it_refuses(document: dict[str, Any]) -> None:
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert ("post", "/query") in operations
    assert len(operations) == sum(len(route.http_methods) for route in ROUTES)
    for (method, path), operation in operations.items():
        assert operation["summary"], path
        if method in ("post", "put", "patch"):
            assert operation["requestBody"]["content"], path
        if path != "/healthz":
            refusals = [reply for status, reply in operation["responses"].items() if status == "401"]
            assert refusals, (method, path)
            assert "application/problem+json" in refusals[0]["content"]


def test_query_that_is_fine_passes_its_schema_and_a_wrong_one_does_not(document: dict[str, Any]) -> None:
    schema = {"$ref": "#/components/schemas/Query", "components": document["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"text": "kettle", "history": ["sku-1"], "limit": 3, "filter": {"field": "price", "lte": 30}})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"text": 3})
