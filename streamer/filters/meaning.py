"""What a filter means, item by item: the plain statement that every faster way is held to, and that explanations use.

A value of another type than the declared one counts as missing. A clause over a missing value is not fulfilled; ``not`` turns
that round, so ``not`` a clause is fulfilled where the value is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from models.attributes import AttributeType, AttributeValue, type_of
from streamer.filters.grammar import All, AnyOf, Compare, Exists, Filter, HoldsAny, Not, OneOf


def matches(of: Filter, attributes: Mapping[str, AttributeValue], types: Mapping[str, AttributeType]) -> bool:
    """Whether an item with these attributes fulfils the filter; ``types``: the declared ones.

    >>> matches(Not(OneOf("brand", ("Acme",))), {}, {"brand": "string"})
    True
    """
    match of:
        case All(parts):
            return all(matches(part, attributes, types) for part in parts)
        case AnyOf(parts):
            return any(matches(part, attributes, types) for part in parts)
        case Not(part):
            return not matches(part, attributes, types)
    value = attributes.get(of.field)
    if value is None or type_of(value) != types.get(of.field):
        return False
    match of:
        case Exists():
            return True
        case OneOf(_, values):
            return value in values
        case HoldsAny(_, values):
            return isinstance(value, list) and not set(value).isdisjoint(values)
        case Compare(_, comparison, bound):
            assert isinstance(value, int | float)
            match comparison:
                case "lt":
                    return value < bound
                case "lte":
                    return value <= bound
                case "gt":
                    return value > bound
                case "gte":
                    return value >= bound
