"""The AsyncAPI document: valid by the Initiative's own schema, complete, and the committed one is the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from streamer.events.documents.asyncapi import asyncapi_document, defaults
from streamer.events.documents.page import page_of
from streamer.events.topics import topic_specs
from streamer.settings import load_settings

ROOT: Final = Path(__file__).parents[4]
# Of the npm package @asyncapi/specs 6.11.1, ``schemas/3.0.0-without-$id.json``, Apache License 2.0; white space taken out.
SCHEMA: Final = ROOT / "tests" / "support" / "asyncapi-3.0.0.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi_document(defaults())


def test_document_is_valid_asyncapi(document: dict[str, Any]) -> None:
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    assert [(list(error.absolute_path), error.message) for error in validator.iter_errors(document)] == []
    broken = json.loads(json.dumps(document))
    broken["channels"]["itemUpdates"]["adress"] = broken["channels"]["itemUpdates"].pop("address")
    broken["operations"]["assignerSendsItemCodes"]["action"] = "write"
    assert len(list(validator.iter_errors(broken))) == 2, "which the schema would tell"


def test_every_topic_is_in_it_and_everything_that_it_refers_to(document: dict[str, Any]) -> None:
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {spec.name for spec in topic_specs(defaults())}
    for reference in re.findall(r'"\\$ref": "#/([^"]*)"', json.dumps(document)):
        found = document
        for name in reference.split("/"):
            found = found[name]
    sent = {one["channel"]["$ref"] for one in document["operations"].values() if one["action"] == "send"}
    assert len(sent) == len(addresses), "somebody writes each topic"


def test_committed_document_and_page_are_the_codes(document: dict[str, Any]) -> None:
    remedy = "run `python -m streamer.events.documents.asyncapi docs`"
    assert json.loads((ROOT / "docs" / "asyncapi.json").read_text()) == document, remedy
    assert (ROOT / "docs" / "topics.md").read_text() == page_of(document), remedy


def test_document_has_the_names_and_shapes_of_the_settings() -> None:
    found = asyncapi_document(load_settings(topics={"prefix": "shop-", "partitions": 12}))
    channel = found["channels"]["itemUpdates"]
    assert (channel["address"], channel["bindings"]["kafka"]["partitions"]) == ("shop-item-updates", 12)
    group = found["operations"]["assignerReceivesItemUpdates"]["bindings"]["kafka"]["groupId"]
    assert "shop-sidstream-assigner" in group["description"]
