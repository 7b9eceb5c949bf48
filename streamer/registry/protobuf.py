"""Protobuf values by the schemas that a registry has of them: descriptor or text → the class of the message that was sent.

What must hold: a field is named as in its ``.proto``; one that was not sent is left out, as in JSON, but for a number, text or
truth value of proto3 without presence, whose default is the same as its absence.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from streamer.events.formats.definitions import NAMESPACE
from streamer.events.formats.frames import FormatError
from streamer.registry.proto_text import ProtoTextError, parsed_proto

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

_WELL_KNOWN: Final = (any_pb2, descriptor_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
_WRAPPED: Final = frozenset(message.full_name for message in wrappers_pb2.DESCRIPTOR.message_types_by_name.values())
_MOST_INDEXES: Final = 64
_ATTRIBUTE: Final = f"{NAMESPACE}.AttributeValue"  # a oneof of our own definitions
_OWN_FILE: Final = "schema.proto"


def message_class(schema: Schema, indexes: Sequence[int], referenced: Callable[[str, int], Schema]) -> type[Message]:
    """The class of the message at ``indexes`` of a schema's file. ``referenced``: the schema of a subject's version.

    Raises:
        FormatError: the schema cannot be read, or has no such message.
    """
    pool = descriptor_pool.DescriptorPool()
    for module in _WELL_KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    try:
        _add(pool, schema, _OWN_FILE, referenced, set())
        file = pool.FindFileByName(_OWN_FILE)
        described: Descriptor = list(file.message_types_by_name.values())[indexes[0]]
        for index in indexes[1:]:
            described = described.nested_types[index]
    except (ProtoTextError, TypeError, KeyError, DecodeError) as error:
        raise FormatError("UndecodableEvent", f"its Protobuf schema cannot be read: {str(error)[:300]}") from None
    except IndexError:
        raise FormatError("UndecodableEvent", f"its Protobuf schema has no message {list(indexes)}") from None
    return GetMessageClass(described)


def _add(
    pool: descriptor_pool.DescriptorPool,
    schema: Schema,
    name: str,
    referenced: Callable[[str, int], Schema],
    added: set[str],
) -> None:
    for reference in schema.references or ():
        if reference.name not in added:
            added.add(reference.name)
            _add(pool, referenced(reference.subject, reference.version), reference.name, referenced, added)
    pool.Add(_described(schema.schema_str or "", name))


def _described(text: str, name: str) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor, which Confluent's registry gives in base64, or else what the text says."""
    try:
        described = descriptor_pb2.FileDescriptorProto.FromString(b64decode(text, validate=True))
    except (binascii.Error, ValueError, DecodeError):
        return parsed_proto(text, name)
    described.name = name
    return described


def indexes_of(body: bytes) -> tuple[tuple[int, ...], bytes]:
    """The place of the message in its file, and what comes after it.

    >>> indexes_of(bytes([0, 8, 1]))
    ((0,), b'\\x08\\x01')

    Raises:
        FormatError: cut off, or more than any file has.
    """
    numbers: list[int] = []
    at, count = 0, -1
    while count < 0 or len(numbers) < count:
        value = shift = 0
        while True:
            if at >= len(body) or shift > 28:
                raise FormatError("UndecodableEvent", "the place of its message in its Protobuf schema is cut off")
            value |= (body[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not body[at - 1] & 0x80:
                break
        number = (value >> 1) ^ -(value & 1)
        if count < 0:
            count = number
            if not 0 <= count <= _MOST_INDEXES:
                raise FormatError("UndecodableEvent", f"a message {count} levels deep in its Protobuf schema")
        else:
            numbers.append(number)
    if any(number < 0 for number in numbers):
        raise FormatError("UndecodableEvent", f"its Protobuf schema has no message {numbers}")
    return tuple(numbers) or (0,), body[at:]


def fields_of(message: Message) -> dict[str, Any]:
    """The fields that a message has, by name; ``google.protobuf`` types as JSON has them."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _single(inner, value[key]) for key in value}
    if field.is_repeated:
        return (
            list(value)
            if field.message_type is None and field.enum_type is None
            else [_single(field, one) for one in value]
        )
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    if field.message_type is None:
        return value
    name = field.message_type.full_name
    if name in _WRAPPED:
        return value.value
    if name == timestamp_pb2.Timestamp.DESCRIPTOR.full_name:
        return value.seconds * 1000 + value.nanos // 1_000_000
    if name == _ATTRIBUTE:
        return next((list(one.values) if field.name == "strings" else one for field, one in value.ListFields()), None)
    if name.startswith("google.protobuf."):
        return MessageToDict(value, preserving_proto_field_name=True)
    return fields_of(value)
