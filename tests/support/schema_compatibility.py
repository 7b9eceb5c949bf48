"""Whether a JSON Schema takes every record that an older one takes: no field removed or newly required, no type narrower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

_LOWER_BOUNDS: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EQUAL_OR_GONE: Final = ("pattern", "format", "contentEncoding", "multipleOf", "uniqueItems")
_COMPARED: Final = {
    "type",
    "enum",
    "const",
    "anyOf",
    "items",
    "prefixItems",
    "properties",
    "required",
    "default",
    "$ref",
}
_WITHOUT_MEANING: Final = {"title", "description", "examples", "$defs", "$schema", "$id", "$comment"}
_KNOWN: Final = {
    *_COMPARED, *_WITHOUT_MEANING, *_LOWER_BOUNDS, *_UPPER_BOUNDS, *_EQUAL_OR_GONE, "additionalProperties"
}  # fmt: skip


def incompatibilities(old: Schema, new: Schema) -> list[str]:
    """What a record of ``old`` may have that ``new`` does not take, as sentences with the field's path; none: compatible."""
    return list(_Comparison(old.get("$defs", {}), new.get("$defs", {})).problems(old, new, "$"))


class _Comparison:
    def __init__(self, old_definitions: Schema, new_definitions: Schema) -> None:
        self._old, self._new = old_definitions, new_definitions

    def problems(self, old: Schema | bool, new: Schema | bool, path: str) -> Iterator[str]:
        if new is True or new == {}:
            return
        if old is False:
            return
        if new is False:
            yield f"{path}: is not taken any longer"
            return
        old = {} if old is True else old
        assert not isinstance(old, bool)
        assert not isinstance(new, bool)
        if ("default" in old or "default" in new) and old.get("default", _ABSENT) != new.get("default", _ABSENT):
            yield f"{path}: the default was {old.get('default')!r} and is {new.get('default')!r}"
        takers = list(_alternatives(new, self._new))
        for one in _alternatives(old, self._old):
            found = [list(self._of_one(one, taker, path)) for taker in takers]
            if not any(problems == [] for problems in found):
                # The only taker, or the one of the same type, says best what is wrong.
                alike = [
                    problems
                    for problems, taker in zip(found, takers, strict=True)
                    if len(takers) == 1 or taker.get("type") == one.get("type")
                ]
                yield from alike[0] if alike else [f"{path}: {one.get('type', 'any value')} is not taken any longer"]

    def _of_one(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        unknown = (set(old) | set(new)) - _KNOWN
        assert not unknown, f"the comparison does not know {sorted(unknown)}: teach it"
        if "type" in new and new["type"] != old.get("type") and (old.get("type"), new["type"]) != ("integer", "number"):
            yield f"{path}: was {old.get('type', 'any value')} and is {new['type']}"
            return
        old_values, new_values = _values(old), _values(new)
        if new_values is not None:
            gone = ["any other value"] if old_values is None else [one for one in old_values if one not in new_values]
            if gone:
                yield f"{path}: does not take {', '.join(map(str, gone))} any longer"
        for name in _LOWER_BOUNDS:
            if name in new and (name not in old or new[name] > old[name]):
                yield f"{path}: {name} was {old.get(name, 'none')} and is {new[name]}"
        for name in _UPPER_BOUNDS:
            if name in new and (name not in old or new[name] < old[name]):
                yield f"{path}: {name} was {old.get(name, 'none')} and is {new[name]}"
        for name in _EQUAL_OR_GONE:
            if new.get(name) is not None and new[name] != old.get(name):
                yield f"{path}: {name} was {old.get(name, 'none')} and is {new[name]}"
        if "array" in (old.get("type"), new.get("type")):
            yield from self._of_arrays(old, new, path)
        if "object" in (old.get("type"), new.get("type")):
            yield from self._of_objects(old, new, path)

    def _of_arrays(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        old_first, new_first = old.get("prefixItems", []), new.get("prefixItems", [])
        for place in range(max(len(old_first), len(new_first))):
            one = old_first[place] if place < len(old_first) else old.get("items", True)
            other = new_first[place] if place < len(new_first) else new.get("items", True)
            yield from self.problems(one, other, f"{path}[{place}]")
        yield from self.problems(old.get("items", True), new.get("items", True), f"{path}[]")

    def _of_objects(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, field in before.items():
            if name not in after:
                yield f"{path}.{name}: was removed"
            else:
                yield from self.problems(field, after[name], f"{path}.{name}")
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield f"{path}.{name}: is required now"
        yield from self.problems(
            old.get("additionalProperties", True), new.get("additionalProperties", True), f"{path}.*"
        )


_ABSENT: Final = object()


def _alternatives(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """The schemas of which a value has to fit one; each has at most one type, and no reference. No record holds itself."""
    while "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _alternatives(one, definitions)
    elif isinstance(schema.get("type"), list):
        for name in schema["type"]:
            yield {**schema, "type": name}
    else:
        yield schema


def _values(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")
