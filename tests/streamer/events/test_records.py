"""Records on the wire: what the last release wrote is read, and what it promised holds; the committed schemas are the code's."""

from __future__ import annotations

import copy
import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from streamer.events.formats.definitions import avro_of, protobuf_of
from streamer.events.records import (
    ALERT,
    ANSWER,
    DRIFT,
    ITEM_CODES,
    ITEM_UPDATE,
    LAYOUT,
    QUERY,
    TOKEN_COUNT,
    Codec,
    ItemCodes,
    RecordVersionError,
)
from streamer.events.schemas import RECORDS, REGISTERED, schema_of
from support.schema_compatibility import incompatibilities

SCHEMAS: Final = Path(__file__).parents[3] / "docs" / "schemas"
LAST_RELEASE: Final = SCHEMAS / "released" / "0.1.0"
# Written by the code of that release: bytes, and their fields as JSON.
RECORDS_OF_LAST_RELEASE: Final = json.loads((Path(__file__).parent / "records_0_1_0.json").read_text())
CODECS: Final = {
    "item-updates": ITEM_UPDATE,
    "item-codes": ITEM_CODES,
    "token-counts": TOKEN_COUNT,
    "layouts": LAYOUT,
    "drift": DRIFT,
    "alerts": ALERT,
    "queries": QUERY,
    "results": ANSWER,
}


@pytest.mark.parametrize("topic", RECORDS)
def test_committed_schema_is_what_the_code_makes(topic: str) -> None:
    committed = json.loads((SCHEMAS / f"{topic}.json").read_text())
    assert committed == schema_of(topic), "run `python -m streamer.events.schemas docs/schemas`"


@pytest.mark.parametrize("topic", REGISTERED)
def test_committed_schemas_of_a_registry_are_the_codes(topic: str) -> None:
    remedy = "run `python -m streamer.events.schemas docs/schemas`; a field of Protobuf keeps its number"
    assert json.loads((SCHEMAS / f"{topic}.avsc").read_text()) == json.loads(avro_of(RECORDS[topic])), remedy
    assert (SCHEMAS / f"{topic}.proto").read_text() == protobuf_of(RECORDS[topic]), remedy


RELEASED: Final = sorted(RECORDS_OF_LAST_RELEASE)


def test_every_topic_of_the_last_release_is_still_there() -> None:
    assert set(RELEASED) <= RECORDS.keys()
    assert {path.stem for path in LAST_RELEASE.glob("*.json")} == set(RELEASED)


@pytest.mark.parametrize("topic", RELEASED)
def test_schema_takes_every_record_that_the_last_release_takes(topic: str) -> None:
    released = json.loads((LAST_RELEASE / f"{topic}.json").read_text())
    assert incompatibilities(released, schema_of(topic)) == []


@pytest.mark.parametrize("topic", RELEASED)
def test_record_that_the_last_release_wrote_is_read_with_every_field(topic: str) -> None:
    for written in RECORDS_OF_LAST_RELEASE[topic]:
        record = CODECS[topic].decode(b64decode(written["value"]))
        fields = json.loads(msgspec.json.encode(record))
        assert {name: fields[name] for name in written["fields"]} == written["fields"]
        assert fields.keys() == written["fields"].keys(), "what is new costs nothing on the wire until it is used"


def test_record_of_version_1_may_say_so_and_one_of_a_later_version_is_refused_by_name() -> None:
    fields = {"codebook": "c", "codes": [1, 2, 3], "title": "", "weight": 1.0, "updated_at": 0}
    assert ITEM_CODES.decode(msgspec.msgpack.encode({**fields, "record_version": 1})).codes == (1, 2, 3)
    for encode in (msgspec.msgpack.encode, msgspec.json.encode):
        with pytest.raises(RecordVersionError, match=r"another version.*update sidstream"):
            ITEM_CODES.decode(encode({**fields, "record_version": 2}))


def test_version_1_is_not_on_the_wire() -> None:
    written = ITEM_CODES.encode(ItemCodes(codebook="c", codes=(1,), title="", weight=1.0, updated_at=0))
    assert b"record_version" not in written


def test_strict_codec_refuses_a_field_that_the_record_does_not_have() -> None:
    assert Codec(ItemCodes, strict=True).fields == Codec(ItemCodes).fields
    fields = {"codebook": "c", "codes": [1], "title": "", "weight": 1.0, "updated_at": 0}
    assert Codec(ItemCodes, strict=True).decode(msgspec.msgpack.encode(fields)).codebook == "c"
    with pytest.raises(msgspec.ValidationError, match="unknown field `colour`"):
        Codec(ItemCodes, strict=True).decode(msgspec.msgpack.encode({**fields, "colour": 1}))


def _properties(schema: dict[str, Any], record: str) -> dict[str, Any]:
    properties: dict[str, Any] = schema["$defs"][record]["properties"]
    return properties


BREAKS: Final[dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]]] = {
    "field removed": ("alerts", lambda s: _properties(s, "Alert").pop("cause"), "$.cause: was removed"),
    "field newly required": (
        "item-updates",
        lambda s: s["$defs"]["ItemUpdate"]["required"].append("title"),
        "$.title: is required now",
    ),
    "number becomes integer": (
        "item-codes",
        lambda s: _properties(s, "ItemCodes")["weight"].update(type="integer"),
        "$.weight: was number and is integer",
    ),
    "null is not taken any longer": (
        "item-updates",
        lambda s: _properties(s, "ItemUpdate")["updated_at"].update(anyOf=[{"type": "integer"}]),
        "$.updated_at: was null and is integer",
    ),
    "one form of several is gone": (
        "item-updates",
        lambda s: _properties(s, "ItemUpdate")["embedding"]["anyOf"].pop(0),
        "$.embedding: was string and is array",
    ),
    "value of an enumeration is gone": (
        "alerts",
        lambda s: _properties(s, "Alert")["severity"].update(enum=["info", "critical"]),
        "$.severity: does not take warning any longer",
    ),
    "enumeration where any text was": (
        "queries",
        lambda s: _properties(s, "Query")["text"].update(enum=["a"]),
        "$.text: does not take any other value any longer",
    ),
    "lower maximum": (
        "queries",
        lambda s: _properties(s, "Query")["limit"].update(maximum=50),
        "$.limit: maximum was none and is 50",
    ),
    "higher minimum": (
        "token-counts",
        lambda s: _properties(s, "TokenCount")["n"].update(minimum=1),
        "$.n: minimum was none and is 1",
    ),
    "items of an array": (
        "item-codes",
        lambda s: _properties(s, "ItemCodes")["codes"]["items"].update(type="string"),
        "$.codes[]: was integer and is string",
    ),
    "field of a record within": (
        "drift",
        lambda s: _properties(s, "LayerMetrics").pop("gini"),
        "$.layers[].gini: was removed",
    ),
    "field of a record that may be null": (
        "results",
        lambda s: _properties(s, "AnswerError").pop("kind"),
        "$.error.kind: was removed",
    ),
    "values of a map": (
        "alerts",
        lambda s: _properties(s, "Alert")["figures"]["additionalProperties"].update(type="string"),
        "$.figures.*: was number and is string",
    ),
    "unknown fields refused": (
        "item-updates",
        lambda s: s["$defs"]["ItemUpdate"].update(additionalProperties=False),
        "$.*: is not taken any longer",
    ),
    "other default": (
        "queries",
        lambda s: _properties(s, "Query")["limit"].update(default=20),
        "$.limit: the default was 10 and is 20",
    ),
    "pattern": (
        "queries",
        lambda s: _properties(s, "Query")["text"].update(pattern="^a"),
        "$.text: pattern was none and is ^a",
    ),
}


@pytest.mark.parametrize(("topic", "break_it", "said"), BREAKS.values(), ids=BREAKS.keys())
def test_comparison_of_schemas_finds_what_breaks_a_reader(
    topic: str, break_it: Callable[[dict[str, Any]], Any], said: str
) -> None:
    released = json.loads((LAST_RELEASE / f"{topic}.json").read_text())
    broken = copy.deepcopy(released)
    break_it(broken)
    assert said in incompatibilities(released, broken)


def test_comparison_of_schemas_lets_pass_what_breaks_nobody() -> None:
    released = json.loads((LAST_RELEASE / "item-updates.json").read_text())
    wider = copy.deepcopy(released)
    fields = _properties(wider, "ItemUpdate")
    fields["brand"] = {"type": "string", "default": ""}
    fields["embedding"]["anyOf"].append({"type": "object"})
    fields["title"] = {"anyOf": [{"type": "null"}, {"type": "string"}], "default": ""}
    wider["$defs"]["ItemUpdate"]["required"] = []
    wider["$defs"]["Renamed"] = wider["$defs"].pop("ItemUpdate")
    wider["$ref"] = "#/$defs/Renamed"
    assert incompatibilities(released, wider) == []


def test_comparison_of_schemas_refuses_a_word_that_it_does_not_know() -> None:
    with pytest.raises(AssertionError, match="teach it"):
        incompatibilities({"type": "string"}, {"type": "string", "contains": {}})
