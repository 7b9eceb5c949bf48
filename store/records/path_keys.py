"""Rows of tokens as sortable keys: in the order of the tokens, with a range of keys for every prefix."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

_BITS: Final = 16  # of a token: codes are uint16
_GREATEST: Final = (1 << _BITS) - 1


class PathKeys(Protocol):
    """Keys of rows of ``fields`` tokens, each uint16."""

    fields: int

    def encode(self, tokens: NDArray[np.uint16]) -> NDArray[Any]:
        """Keys (n,) of rows (n, fields)."""

    def decode(self, keys: NDArray[Any]) -> NDArray[np.uint16]:
        """The reverse of ``encode``."""

    def field(self, keys: NDArray[Any], index: int) -> NDArray[np.int32]:
        """One token of each key: (n,)."""

    def bounds(self, prefixes: NDArray[np.uint16]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The least and the greatest key that begins with each prefix (n, d)."""


class IntegerKeys:
    """Keys as unsigned integers: up to four tokens."""

    def __init__(self, fields: int) -> None:
        self.fields = fields
        self._type: Any = np.uint32 if fields <= 2 else np.uint64

    def encode(self, tokens: NDArray[np.uint16]) -> NDArray[Any]:
        """See ``PathKeys``."""
        return self._packed(tokens, 0)

    def decode(self, keys: NDArray[Any]) -> NDArray[np.uint16]:
        """See ``PathKeys``."""
        return np.stack([self.field(keys, index) for index in range(self.fields)], axis=1).astype(np.uint16)

    def field(self, keys: NDArray[Any], index: int) -> NDArray[np.int32]:
        """See ``PathKeys``."""
        shift = self._type(_BITS * (self.fields - 1 - index))
        field: NDArray[np.int32] = ((keys >> shift) & self._type(_GREATEST)).astype(np.int32)
        return field

    def bounds(self, prefixes: NDArray[np.uint16]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See ``PathKeys``."""
        return self._packed(prefixes, 0), self._packed(prefixes, _GREATEST)

    def _packed(self, tokens: NDArray[np.uint16], filling: int) -> NDArray[Any]:
        keys = np.zeros(len(tokens), self._type)
        for index in range(self.fields):
            field = tokens[:, index].astype(self._type) if index < tokens.shape[1] else self._type(filling)
            keys = (keys << self._type(_BITS)) | field
        return keys


class ByteKeys:
    """Keys as byte strings, for codebooks of more than five layers: slower, and as right."""

    def __init__(self, fields: int) -> None:
        self.fields = fields
        self._type = np.dtype(f"S{2 * fields}")

    def encode(self, tokens: NDArray[np.uint16]) -> NDArray[Any]:
        """See ``PathKeys``."""
        return np.ascontiguousarray(tokens.astype(">u2")).view(self._type).reshape(-1)

    def decode(self, keys: NDArray[Any]) -> NDArray[np.uint16]:
        """See ``PathKeys``."""
        return np.ascontiguousarray(keys).view(">u2").reshape(-1, self.fields).astype(np.uint16)

    def field(self, keys: NDArray[Any], index: int) -> NDArray[np.int32]:
        """See ``PathKeys``."""
        return self.decode(keys)[:, index].astype(np.int32)

    def bounds(self, prefixes: NDArray[np.uint16]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See ``PathKeys``."""
        whole = np.zeros((len(prefixes), self.fields), np.uint16)
        whole[:, : prefixes.shape[1]] = prefixes
        low = self.encode(whole)
        whole[:, prefixes.shape[1] :] = _GREATEST
        return low, self.encode(whole)


def path_keys(fields: int) -> PathKeys:
    """The cheaper form for this many tokens."""
    return IntegerKeys(fields) if fields <= 64 // _BITS else ByteKeys(fields)


def keys_of(paths: NDArray[np.uint16]) -> NDArray[Any]:
    """One comparable value per path (N, fields), in the order of the paths."""
    return path_keys(paths.shape[1]).encode(paths)


def distinct(ordered: NDArray[Any]) -> NDArray[Any]:
    """Values (n,) that rise, each once: faster than ``np.unique``, which sorts again."""
    return ordered[_is_first(ordered)]


def distinct_sorted(values: NDArray[Any]) -> NDArray[Any]:
    """The distinct values (N,), rising: faster than ``np.unique`` for millions of integers."""
    return distinct(np.sort(values))


def distinct_paths(paths: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The distinct rows of (N, L), in order."""
    keys = keys_of(paths)
    order = np.argsort(keys, kind="stable")
    return paths[order[_is_first(keys[order])]]


def _is_first(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Of values that rise (n,), which are the first of their kind."""
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return first
