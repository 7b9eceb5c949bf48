"""The settings of what records carry: schemas that they name, columns that are fields, attributes, and how much of everything."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from models.attributes import NAME_RULE, AttributeRules, AttributeType, is_name
from streamer.settings.section import Section


class RegistrySettings(Section):
    """A schema registry that speaks Confluent's API, for values that name their schema (docs/formats.md)."""

    url: str = Field(
        "", description="such as http://registry:8081; several, with commas between; absent: there is none"
    )
    security: dict[str, SecretStr] = Field(
        {},
        description="properties of confluent-kafka's SchemaRegistryClient: basic.auth.user.info, ssl.ca.location, bearer.auth.…",
    )
    timeout_seconds: float = Field(
        5.0, gt=0, description="of one request; a batch waits for as long as none is answered"
    )
    format: Literal["avro", "protobuf", "json"] = Field(
        "avro",
        description="what `sidstream topics create` registers our schemas in, and `sidstream publish --format registry` sends",
    )
    publish: bool = Field(False, description="our own publisher sends item updates so, and not in MessagePack")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if "@" in url:  # the address stands in messages
            raise ValueError(
                "a user and a password go into registry.security, as basic.auth.user.info, not into the address"
            )
        for one in filter(None, url.split(",")):
            if not one.strip().startswith(("http://", "https://", "mock://")):
                raise ValueError(f"{one.strip()!r} is no address of a registry: it begins with http:// or https://")
        return url


class ColumnSettings(Section):
    """Which columns of a row (of a change event, of Kafka Connect, of a registry's schema, or of plain JSON) are which fields of
    an item update; one that is not named has the field's own name. With any of them named, other columns are left out.
    """

    key: str = Field(
        "",
        description="the field of a key that is a map, such as Debezium's, which is the item's id; absent: the key is the id",
    )
    embedding: str = Field("", description="a list of numbers, bytes, base64, or a text like [0.1,0.2]")
    title: str = Field("", description="a text")
    weight: str = Field("", description="a number, or a text that is one")
    updated_at: str = Field(
        "", description="milliseconds since the epoch, a time like 2026-01-31T09:30:00Z, or Connect's"
    )
    dtype: str = Field("", description="float32 or float16, of an embedding in bytes")
    embedding_model: str = Field("", description="the name of what made the embedding")
    attributes: dict[str, str] = Field({}, description="attribute → the column that has it")


class IntakeSettings(Section):
    """What any record from outside may carry beside its value; more makes it a dead letter."""

    maximum_headers: int = Field(64, ge=0, description="headers of a record")
    maximum_header_bytes: int = Field(16_384, ge=0, description="names and contents of a record's headers together")


class AttributeSettings(IntakeSettings):
    """Attributes of items, with an update or alone on ``item-attributes``; beyond a ``maximum_…`` a record is a dead letter."""

    filterable: dict[str, AttributeType] = Field(
        {},
        description="field → string, number, boolean or strings (a list of them): what queries may filter on. Another type in an "
        "update is a dead letter; fields that are not named here are stored, of any type",
    )
    maximum_bytes: int = Field(16_384, ge=2, description="of an item's attributes, encoded")
    maximum_fields: int = Field(64, ge=1, description="of an item")
    maximum_string_characters: int = Field(1_024, ge=1, description="of a string, also in a list")
    maximum_list_entries: int = Field(256, ge=0, description="strings in a list")

    @field_validator("filterable")
    @classmethod
    def _check_names(cls, filterable: dict[str, AttributeType]) -> dict[str, AttributeType]:
        for name in filterable:
            if not is_name(name):
                raise ValueError(f"{name!r} is no name of an attribute: {NAME_RULE}")
        return filterable

    def rules(self) -> AttributeRules:
        """The same for whoever reads attributes."""
        return AttributeRules(
            self.filterable,
            self.maximum_bytes,
            self.maximum_fields,
            self.maximum_string_characters,
            self.maximum_list_entries,
        )
