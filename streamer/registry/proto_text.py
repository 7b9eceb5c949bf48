"""The text of a ``.proto`` file → its descriptor, for registries that give the text alone (Apicurio's does).

What is read: messages, enums, oneofs, maps, nested types, labels, imports and packages, of proto2 and proto3. What is passed
over, as no field's bytes depend on it: options but ``packed``, services, extensions, reserved ranges. Groups are refused.
"""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

_TOKEN: Final = re.compile(
    r"""\s+|//[^\n]*|/\*.*?\*/|(?P<token>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[A-Za-z_.][\w.]*|[-+]?[\d.][\w.+-]*|[{}\[\]()<>;=,:+-])""",
    re.DOTALL,
)
_NAMES: Final = (
    """double float int64 uint64 int32 fixed64 fixed32 bool string bytes uint32 sfixed32 sfixed64 sint32 sint64"""
)
_SCALARS: Final = {name: FieldDescriptorProto.Type.Value(f"TYPE_{name.upper()}") for name in _NAMES.split()}
_LABELS: Final = {
    "optional": FieldDescriptorProto.LABEL_OPTIONAL,
    "required": FieldDescriptorProto.LABEL_REQUIRED,
    "repeated": FieldDescriptorProto.LABEL_REPEATED,
}
_PASSED_OVER: Final = frozenset({"option", "reserved", "extensions"})
_DEEPEST: Final = 64


class ProtoTextError(ValueError):
    """The text is no ``.proto`` file, or one with a part that is not read."""


def parsed_proto(text: str, name: str) -> FileDescriptorProto:
    """The descriptor of a file. ``name``: by which others import it.

    >>> parsed_proto('syntax = "proto3"; message Item { repeated float embedding = 1; }', "item.proto").message_type[0].name
    'Item'

    Raises:
        ProtoTextError: names the part.
    """
    return _Parser(text, name).file()


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._file = FileDescriptorProto(name=name)

    def file(self) -> FileDescriptorProto:
        while self._at < len(self._tokens):
            match self._next():
                case "syntax" | "edition" as word:
                    self._expect("=")
                    syntax = _unquoted(self._next())
                    if word == "edition":
                        raise ProtoTextError(f"edition {syntax} is not read: use proto2 or proto3")
                    self._file.syntax = syntax if syntax == "proto3" else ""
                    self._expect(";")
                case "package":
                    self._file.package = self._next()
                    self._expect(";")
                case "import":
                    word = self._next()
                    self._file.dependency.append(_unquoted(self._next() if word in {"public", "weak"} else word))
                    self._expect(";")
                case "message":
                    self._message(self._file.message_type.add(), 0)
                case "enum":
                    self._enum(self._file.enum_type.add())
                case "option":
                    self._pass_over()
                case "service" | "extend":
                    self._pass_block()
                case ";":
                    pass
                case word:
                    raise ProtoTextError(f"{word[:40]!r} is where a message, an enum or an import would be")
        return self._file

    def _message(self, message: DescriptorProto, depth: int) -> None:
        if depth > _DEEPEST:
            raise ProtoTextError("messages are nested too deeply")
        message.name = self._next()
        self._expect("{")
        while (word := self._next()) != "}":
            if word == "message" and self._follows("{", 1):
                self._message(message.nested_type.add(), depth + 1)
            elif word == "enum" and self._follows("{", 1):
                self._enum(message.enum_type.add())
            elif word == "oneof" and self._follows("{", 1):
                message.oneof_decl.add(name=self._next())
                number = len(message.oneof_decl) - 1
                self._expect("{")
                while (inner := self._next()) != "}":
                    if inner == "option":
                        self._pass_over()
                    else:
                        self._field(message, inner).oneof_index = number
            elif word == "extend":
                self._pass_block()
            elif word in _PASSED_OVER and not self._follows("=", 1):
                self._pass_over()
            elif word != ";":
                self._field(message, word)
        # After the declared ones, as the compiler has them.
        for field in message.field:
            if field.proto3_optional:
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field.name}")

    def _field(self, message: DescriptorProto, word: str) -> FieldDescriptorProto:
        field = message.field.add(label=FieldDescriptorProto.LABEL_OPTIONAL)
        if word in _LABELS:
            field.label = _LABELS[word]
            field.proto3_optional = word == "optional" and self._file.syntax == "proto3"
            word = self._next()
        if word == "group":
            raise ProtoTextError("groups are not read: use a message")
        entry = self._map_entry() if word == "map" and self._follows("<", 0) else None
        field.name = self._next()
        self._expect("=")
        field.number = self._number()
        if self._follows("[", 0):
            self._options(field)
        self._expect(";")
        if entry is not None:
            entry.name = "".join(part[:1].upper() + part[1:] for part in field.name.split("_")) + "Entry"
            message.nested_type.append(entry)
            field.label = FieldDescriptorProto.LABEL_REPEATED
            _set_type(field, entry.name)
            field.type = FieldDescriptorProto.TYPE_MESSAGE
        else:
            _set_type(field, word)
        return field

    def _map_entry(self) -> DescriptorProto:
        entry = DescriptorProto()
        entry.options.map_entry = True
        self._expect("<")
        for number, name in ((1, "key"), (2, "value")):
            _set_type(
                entry.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL), self._next()
            )
            self._expect("," if number == 1 else ">")
        return entry

    def _options(self, field: FieldDescriptorProto) -> None:
        depth = 0
        while True:
            word = self._next()
            depth += (word in {"[", "{"}) - (word in {"]", "}"})
            if word == "packed" and depth == 1 and self._follows("=", 0):
                self._expect("=")
                field.options.packed = self._next() == "true"
            if depth == 0:
                return

    def _enum(self, enum: EnumDescriptorProto) -> None:
        enum.name = self._next()
        self._expect("{")
        while (word := self._next()) != "}":
            if word == "option":
                while self._next() != ";":
                    pass
            elif word == "reserved" and not self._follows("=", 0):
                self._pass_over()
            elif word != ";":
                self._expect("=")
                enum.value.add(name=word, number=self._number())
                self._pass_over()
        numbers = [value.number for value in enum.value]
        if len(set(numbers)) < len(numbers):
            enum.options.allow_alias = True

    def _pass_over(self) -> None:
        """To the end of a statement, which may have a block in it."""
        depth = 0
        while (word := self._next()) != ";" or depth:
            depth += (word == "{") - (word == "}")

    def _pass_block(self) -> None:
        while self._next() != "{":
            pass
        depth = 1
        while depth:
            word = self._next()
            depth += (word == "{") - (word == "}")

    def _number(self) -> int:
        word = self._next()
        try:
            return int(word, 0)
        except ValueError:
            raise ProtoTextError(f"{word[:40]!r} is where a number would be") from None

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise ProtoTextError("it is cut off")
        self._at += 1
        return self._tokens[self._at - 1]

    def _follows(self, word: str, after: int) -> bool:
        place = self._at + after
        return place < len(self._tokens) and self._tokens[place] == word

    def _expect(self, word: str) -> None:
        found = self._next()
        if found != word:
            raise ProtoTextError(f"{found[:40]!r} is where {word!r} would be")


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ProtoTextError(f"{text[at : at + 20]!r} is no part of such a file")
        if found["token"]:
            tokens.append(found["token"])
        at = found.end()
    return tokens


def _unquoted(word: str) -> str:
    return word.strip("\"'")


def _set_type(field: FieldDescriptorProto, word: str) -> None:
    """A scalar, or the name of a message or an enum, which the pool looks up from the inside out."""
    if word in _SCALARS:
        field.type = _SCALARS[word]
    else:
        field.type_name = word
