"""The schemas of what is sent to us, in Avro and Protobuf, made from the same structs as the JSON Schema.

What must hold: a field of a definition is a field of the record, by name; a number of Protobuf, once given, stays that of its
field. They are numbered in their order, ``record_version`` aside: a new one comes after the others.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.inspect import (
    AnyType,
    BoolType,
    BytesType,
    Field,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    NoneType,
    RawType,
    StrType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

NAMESPACE: Final = "sidstream"
_LEFT_OUT: Final = frozenset({"part"})  # what only our own clients ask of a shard
_NUMBERS: Final = {"record_version": 100}


def avro_of(record: type[msgspec.Struct]) -> str:
    """The Avro schema of a record. Attributes are a map; a filter is its JSON as a text."""
    return json.dumps(_avro_record(_struct(record), set()))


def protobuf_of(record: type[msgspec.Struct]) -> str:
    """The ``.proto`` file of a record, proto3. Attributes are a map of values that each have one of four fields."""
    messages: dict[str, str] = {}
    _message(_struct(record), messages)
    return f'syntax = "proto3";\n\npackage {NAMESPACE};\n\n' + "\n".join(messages.values())


def _struct(record: type[msgspec.Struct]) -> StructType:
    info = type_info(record)
    assert isinstance(info, StructType)
    return info


def _fields(info: StructType) -> list[tuple[Field, list[Type], Mapping[str, Any] | None, bool]]:
    """Each field, its types without null and absence, the JSON Schema that it is given by hand, and whether it may be absent."""
    found = []
    for field in info.fields:
        if field.encode_name in _LEFT_OUT:
            continue
        types, by_hand = _types(field.type)
        found.append((field, types, by_hand, not field.required))
    return found


def _types(given: Type) -> tuple[list[Type], Mapping[str, Any] | None]:
    """The types of a union without null, and the JSON Schema that one of them has by hand."""
    if isinstance(given, Metadata):
        types, _ = _types(given.type)
        return types, given.extra_json_schema
    if isinstance(given, UnionType):
        types, by_hand = [], None
        for one in given.types:
            inner, schema = _types(one)
            types += inner
            by_hand = schema or by_hand
        return types, by_hand
    return ([], None) if isinstance(given, NoneType) else ([given], None)


def _is_attributes(types: list[Type], by_hand: Mapping[str, Any] | None) -> bool:
    return any(isinstance(one, RawType) for one in types) and by_hand is not None and "additionalProperties" in by_hand


def _avro_record(info: StructType, known: set[str]) -> dict[str, Any]:
    name = info.cls.__name__
    known.add(name)
    fields = []
    for field, types, by_hand, optional in _fields(info):
        avro = [_avro(one, by_hand, known) for one in types]
        described: dict[str, Any] = {"name": field.encode_name}
        if optional:
            described |= {"type": ["null", *avro], "default": None}
        else:
            described["type"] = avro if len(avro) > 1 else avro[0]
        fields.append(described)
    doc = inspect.cleandoc(info.cls.__doc__ or "")
    return {"type": "record", "name": name, "namespace": NAMESPACE, "doc": doc, "fields": fields}


def _avro(one: Type, by_hand: Mapping[str, Any] | None, known: set[str]) -> Any:
    match one:
        case RawType() if _is_attributes([one], by_hand):
            values: list[Any] = ["string", "double", "boolean", {"type": "array", "items": "string"}]
            return {"type": "map", "values": values}
        case RawType() | AnyType() | StrType() | LiteralType():
            return "string"
        case IntType():
            return "long"
        case FloatType():
            return "double"
        case BoolType():
            return "boolean"
        case BytesType():
            return "bytes"
        case ListType(item_type=FloatType()):
            return {"type": "array", "items": "float"}
        case ListType() | VarTupleType():
            [inner], schema = _types(one.item_type)
            return {"type": "array", "items": _avro(inner, schema, known)}
        case StructType():
            return f"{NAMESPACE}.{one.cls.__name__}" if one.cls.__name__ in known else _avro_record(one, known)
    raise TypeError(f"{one} has no type in Avro")


_PROTOBUF_SCALARS: Final = {IntType: "int64", FloatType: "double", BoolType: "bool", BytesType: "bytes"}
_ATTRIBUTE: Final = """message AttributeValue {
  message Strings {
    repeated string values = 1;
  }
  oneof value {
    string text = 1;
    double number = 2;
    bool truth = 3;
    Strings strings = 4;
  }
}
"""


def _message(info: StructType, messages: dict[str, str]) -> None:
    name = info.cls.__name__
    if name in messages:
        return
    messages[name] = ""  # its place; filled below, after those that it has inside
    lines = []
    for number, (field, types, by_hand, _) in enumerate(_fields(info), start=1):
        if any(isinstance(one, ListType | VarTupleType) for one in types):
            types = [one for one in types if isinstance(one, ListType | VarTupleType)]  # numbers, of bytes or numbers
        lines.append(
            f"  {_protobuf(types[0], by_hand, messages)} {field.encode_name} = {_NUMBERS.get(field.encode_name, number)};"
        )
    messages[name] = f"message {name} {{\n" + "\n".join(lines) + "\n}\n"


def _protobuf(one: Type, by_hand: Mapping[str, Any] | None, messages: dict[str, str]) -> str:
    match one:
        case RawType() if _is_attributes([one], by_hand):
            messages["AttributeValue"] = _ATTRIBUTE
            return "map<string, AttributeValue>"
        case RawType() | AnyType() | StrType() | LiteralType():
            return "optional string"
        case ListType(item_type=FloatType()):
            return "repeated float"
        case ListType() | VarTupleType():
            [inner], schema = _types(one.item_type)
            return "repeated " + _protobuf(inner, schema, messages).removeprefix("optional ")
        case StructType():
            _message(one, messages)
            return f"optional {one.cls.__name__}"
    return f"optional {_PROTOBUF_SCALARS[type(one)]}"
