"""The declared attributes of all live items, a column a field, by item number: filters are evaluated over whole columns.

What must hold: an item is let through exactly when ``streamer.filters.meaning.matches`` says so of its attributes. A value of
another type than the declared one counts as missing. For one thread; what is returned is a copy and outlives the next update.

Numbers lie as float64 with NaN for a missing one, strings and booleans as the numbers of their distinct values with -1, both 4 to
8 bytes an item; lists of strings as a bitmap of item numbers for each string.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from models.attributes import AttributeType, AttributeValue
from streamer.filters.grammar import All, AnyOf, Compare, Exists, Filter, HoldsAny, Not, OneOf

Mask = NDArray[np.bool_]
Numbers = NDArray[np.uint32]
ItemAttributes = Mapping[str, AttributeValue]
Block = tuple[Numbers, Sequence[ItemAttributes | None]]
"""Item numbers (N,), each once, and their N attributes; ``None`` for an item that is gone."""

_MISSING: Final = -1  # where there is no value
_FIRST_CAPACITY: Final = 1_024
_UNUSED_KEPT: Final = 1_024  # values that no item has any more, before they are forgotten
_COMPARED: Final[Mapping[str, Callable[[Any, float], Any]]] = {
    "lt": np.less,
    "lte": np.less_equal,
    "gt": np.greater,
    "gte": np.greater_equal,
}


class _Column(Protocol):
    """One field. ``at``: item numbers (N,) or None for all up to ``capacity``; masks are (N,) or (capacity,)."""

    mistyped: int

    def grow(self, capacity: int) -> None: ...
    def put(self, numbers: Numbers, values: list[AttributeValue | None]) -> None: ...
    def there(self, at: Numbers | None) -> Mask: ...
    def fulfils(self, clause: Filter, at: Numbers | None) -> Mask: ...


class _NumberColumn:
    def __init__(self) -> None:
        self.mistyped = 0
        self._values = np.empty(0, np.float64)

    def grow(self, capacity: int) -> None:
        self._values = _grown(self._values, capacity, np.nan)

    def put(self, numbers: Numbers, values: list[AttributeValue | None]) -> None:
        plain = [value if type(value) is float or type(value) is int else None for value in values]
        self.mistyped += plain.count(None) - values.count(None)
        self._values[numbers] = np.array(plain, np.float64)  # None becomes NaN

    def there(self, at: Numbers | None) -> Mask:
        values = self._values if at is None else self._values[at]
        return ~np.isnan(values)

    def fulfils(self, clause: Filter, at: Numbers | None) -> Mask:
        values = self._values if at is None else self._values[at]
        if isinstance(clause, Compare):
            compared: Mask = _COMPARED[clause.comparison](values, clause.bound)
            return compared
        assert isinstance(clause, OneOf)
        if len(clause.values) == 1:
            equal: Mask = values == clause.values[0]
            return equal
        return np.isin(values, np.array(clause.values, np.float64))


class _ValueColumn:
    """Strings or booleans: a table of the distinct values, and of each item the number of its value there."""

    def __init__(self, kind: type[str] | type[bool]) -> None:
        self.mistyped = 0
        self._kind = kind
        self._known: dict[str | float | bool, int] = {}
        self._codes = np.empty(0, np.int32)

    def grow(self, capacity: int) -> None:
        self._codes = _grown(self._codes, capacity, _MISSING)

    def put(self, numbers: Numbers, values: list[AttributeValue | None]) -> None:
        known, kind = self._known, self._kind
        codes = [known.setdefault(value, len(known)) if type(value) is kind else _MISSING for value in values]
        self.mistyped += codes.count(_MISSING) - values.count(None)
        self._codes[numbers] = codes
        if len(known) > 2 * len(self._codes) + _UNUSED_KEPT:
            self._forget_unused()

    def _forget_unused(self) -> None:
        used, codes = np.unique(self._codes, return_inverse=True)
        values = list(self._known)
        missing = int(used[0] == _MISSING)
        self._known = {values[old]: new for new, old in enumerate(used[missing:].tolist())}
        self._codes = (codes.reshape(-1) - missing).astype(np.int32)

    def there(self, at: Numbers | None) -> Mask:
        found: Mask = (self._codes if at is None else self._codes[at]) != _MISSING
        return found

    def fulfils(self, clause: Filter, at: Numbers | None) -> Mask:
        assert isinstance(clause, OneOf)
        codes = self._codes if at is None else self._codes[at]
        wanted = [self._known[value] for value in clause.values if value in self._known]
        if not wanted:
            return np.zeros(len(codes), np.bool_)
        if len(wanted) == 1:
            equal: Mask = codes == wanted[0]
            return equal
        table = np.zeros(len(self._known) + 1, np.bool_)  # the last one is that of _MISSING
        table[wanted] = True
        found: Mask = table[codes]
        return found


class _ListColumn:
    """Lists of strings: of each string the items whose lists hold it, and of each item its list."""

    def __init__(self) -> None:
        self.mistyped = 0
        self._holders: dict[str, BitMap] = {}
        self._lists = np.empty(0, object)
        # Equal lists are one tuple, and equal strings one string: tags repeat.
        self._tuples: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._texts: dict[str, str] = {}

    def grow(self, capacity: int) -> None:
        self._lists = _grown(self._lists, capacity, None)

    def put(self, numbers: Numbers, values: list[AttributeValue | None]) -> None:
        old = self._lists[numbers]
        new = np.empty(len(values), object)
        new[:] = [self._tuple_of(value) if type(value) is list else None for value in values]
        self.mistyped += sum(one is None for one in new) - values.count(None)
        changed = np.flatnonzero([before is not after for before, after in zip(old, new, strict=True)])
        if not len(changed):
            return
        self._lists[numbers[changed]] = new[changed]
        for text, some in _holders_of(numbers[changed], old[changed]):
            holders = self._holders[text]
            holders.difference_update(some)
            if not holders:
                del self._holders[text]
        for text, some in _holders_of(numbers[changed], new[changed]):
            self._holders.setdefault(text, BitMap()).update(some)
        if len(self._tuples) > 2 * len(self._lists) + _UNUSED_KEPT:
            self._tuples = {one: one for one in self._lists if one is not None}
            self._texts = {text: text for one in self._tuples for text in one}

    def _tuple_of(self, value: list[str]) -> tuple[str, ...]:
        given = tuple(value)
        known = self._tuples.get(given)
        if known is None:
            texts = self._texts
            known = tuple([texts.setdefault(text, text) for text in value])
            self._tuples[known] = known
        return known

    def there(self, at: Numbers | None) -> Mask:
        found: Mask = (self._lists if at is None else self._lists[at]) != np.array(None)
        return found

    def fulfils(self, clause: Filter, at: Numbers | None) -> Mask:
        assert isinstance(clause, HoldsAny)
        holders = [self._holders[text] for text in clause.values if text in self._holders]
        if at is not None:
            return np.array([any(number in some for some in holders) for number in at.tolist()], np.bool_)
        found = np.zeros(len(self._lists), np.bool_)
        for some in holders:
            found[np.asarray(some.to_array())] = True
        return found


class Columns:
    """The columns of some declared fields, and which item numbers are live."""

    def __init__(self, types: Mapping[str, AttributeType]) -> None:
        """``types``: field → declared type; other attributes are passed over."""
        self._capacity = 0
        self._live = np.empty(0, np.bool_)
        self._columns: dict[str, _Column] = {name: _column(declared) for name, declared in types.items()}

    @classmethod
    def build(cls, types: Mapping[str, AttributeType], blocks: Iterable[Block]) -> Columns:
        """The columns of all live items, those without attributes among them; blocks of some thousand items each."""
        columns = cls(types)
        with _without_collections():
            for numbers, attributes in blocks:
                columns.update(numbers, attributes)
        return columns

    def update(self, numbers: Numbers, attributes: Sequence[ItemAttributes | None]) -> None:
        """Put these attributes in the place of what the items had; ``None``: the item is gone."""
        if not len(numbers):
            return
        self._grow(int(numbers.max()) + 1)
        self._live[numbers] = [one is not None for one in attributes]
        for name, column in self._columns.items():
            column.put(numbers, [None if one is None else one.get(name) for one in attributes])

    @property
    def mistyped(self) -> dict[str, int]:
        """Field → values of another type that were put in since the start; such a value counts as missing."""
        return {name: column.mistyped for name, column in self._columns.items() if column.mistyped}

    def eligible(self, wanted: Filter | None, excluded: Sequence[int] | Numbers = ()) -> Numbers:
        """Numbers of the live items that fulfil ``wanted`` (all, for None) and are not among ``excluded``; rising, (K,)."""
        mask = self._live.copy() if wanted is None else self._mask(wanted, None) & self._live
        if len(excluded):
            without = np.asarray(excluded, np.int64)
            mask[without[without < self._capacity]] = False
        return np.flatnonzero(mask).astype(np.uint32)

    def lets_through(self, wanted: Filter, numbers: Numbers) -> Mask:
        """Of each item number (N,) whether the item is live and fulfils ``wanted``: what has changed for a cached filter."""
        known = np.asarray(numbers) < self._capacity
        at = numbers[known]
        found = np.zeros(len(numbers), np.bool_)
        found[known] = self._mask(wanted, at) & self._live[at]
        return found

    def count(self, wanted: Filter) -> int:
        """How many live items fulfil ``wanted``."""
        return int(np.count_nonzero(self._mask(wanted, None) & self._live))

    def _mask(self, wanted: Filter, at: Numbers | None) -> Mask:
        match wanted:
            case All(parts):
                found = self._mask(parts[0], at)
                for part in parts[1:]:
                    found &= self._mask(part, at)
                return found
            case AnyOf(parts):
                found = self._mask(parts[0], at)
                for part in parts[1:]:
                    found |= self._mask(part, at)
                return found
            case Not(part):
                return ~self._mask(part, at)
            case Exists(field):
                return self._columns[field].there(at)
            case _:
                return self._columns[wanted.field].fulfils(wanted, at)

    def _grow(self, needed: int) -> None:
        if needed <= self._capacity:
            return
        self._capacity = max(_FIRST_CAPACITY, needed, self._capacity + self._capacity // 2)
        self._live = _grown(self._live, self._capacity, False)
        for column in self._columns.values():
            column.grow(self._capacity)


@contextmanager
def _without_collections() -> Iterator[None]:
    """No garbage is collected meanwhile: of a million objects that live on and hold no circle, it took half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _column(declared: AttributeType) -> _Column:
    match declared:
        case "number":
            return _NumberColumn()
        case "string":
            return _ValueColumn(str)
        case "boolean":
            return _ValueColumn(bool)
        case "strings":
            return _ListColumn()


def _grown(array: NDArray[Any], capacity: int, missing: Any) -> NDArray[Any]:
    grown = np.full(capacity, missing, array.dtype)
    grown[: len(array)] = array
    return grown


def _holders_of(numbers: Numbers, lists: NDArray[Any]) -> Iterator[tuple[str, BitMap]]:
    """Each string of some items' lists, with the items; ``lists`` (N,): tuples of strings, or None."""
    lengths = np.fromiter((0 if one is None else len(one) for one in lists), np.int64, len(lists))
    known: dict[str, int] = {}
    codes = np.array([known.setdefault(text, len(known)) for one in lists if one for text in one], np.int64)
    order = np.argsort(codes, kind="stable")
    owners = np.repeat(numbers, lengths)[order]
    ends = np.cumsum(np.bincount(codes, minlength=len(known)))
    for text, code in known.items():
        yield text, BitMap(owners[ends[code - 1] if code else 0 : ends[code]])
