"""How an item becomes bytes: keys and values of every LMDB database; what is written here is read back exactly.

Big-endian where LMDB's byte order must be the numeric order (keys, path records), little-endian elsewhere.
An item's value begins with its codes, so that old codes are read without decoding the rest. Since format 2 it also holds
its *origin*: the partition and the Kafka timestamp of the record that it came from. The digest leaves the origin out, so it
is the same in both formats. An item's *vector* (``models.dense.vectors``) and the *attributes* that came with its update, if
any, stand at the end of its value, so that whatever holds for its codes (one transaction, split keys, backup) holds for them.
The digest has the vector, and instead of these attributes the effective ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION: Final = 3
# A writer upgrades them in place (``store.writing.upgrade``); nobody else reads them.
UPGRADED_FORMATS: Final = frozenset({1, 2})
# Added to the format of an index of some partitions alone: an older sidstream, which would read all others into it, refuses it.
OF_SOME_PARTITIONS: Final = 100
NO_PARTITION: Final = -1  # of an item that format 1 wrote
_MOST_KEYS: Final = 1 << 18  # of ``paths``: at a million items a key then has four records or more
_TAIL: Final = np.dtype([("layer2", ">u2"), ("number", ">u4"), ("weight", "<f4")])
_TAIL_BYTES: Final = _TAIL.itemsize
_AFTER_PATH_BYTES: Final = 8  # item number and weight
# In ``id_bytes``, as ids end at 511 bytes.
_HAS_ORIGIN: Final = 0x8000
_HAS_VECTOR: Final = 0x4000
_HAS_ATTRIBUTES: Final = 0x2000
_ID_BYTES: Final = 0x0FFF
_VECTOR_LENGTH_BYTES: Final = 2  # of the vector's length, behind it
_LENGTH_BYTES: Final = 4  # of the attributes' length, behind them
MAXIMUM_KEY_BYTES: Final = 511  # LMDB's limit for keys; ids are keys
MAXIMUM_ITEMS: Final = 2**32  # item numbers are u32
CENSUS_CHUNK: Final = 128  # counts per census record: 1 KiB, so that a small batch dirties few pages
# A title that came in with half a surrogate pair must not stop the indexer: it is stored and read back as it came.
_SURROGATES: Final = "surrogatepass"


@dataclass(frozen=True)
class StoredItem:
    """One live item. ``number`` is internal and may be reused after a deletion; ``updated_at`` in ms since the epoch."""

    number: int
    id: bytes
    codes: tuple[int, ...]
    weight: float
    title: str
    updated_at: int


class ItemEncoding:
    """Values of the ``items`` database: header (codes, weight, updated_at, length of the id), origin, id, title, and of an item
    that has one its vector and the vector's length, and if its update had some its attributes and their length.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._codes_bytes = 2 * layers
        content = [("codes", "<u2", (layers,)), ("weight", "<f4"), ("updated_at", "<i8"), ("id_bytes", "<u2")]
        self._content = np.dtype(content)
        self._header = np.dtype([*content, ("timestamp", "<i8"), ("partition", "<i4")])

    def encode(
        self,
        ids: Sequence[bytes],
        codes: NDArray[np.uint16],
        weights: NDArray[np.float32],
        titles: Sequence[str],
        updated_at: NDArray[np.int64],
        partitions: NDArray[np.int32],
        timestamps: NDArray[np.int64],
        vectors: Sequence[bytes] | None = None,
        attributes: Sequence[bytes] | None = None,
    ) -> list[bytes]:
        """Values of N items; codes (N, L), all other arrays (N,). ``vectors``, ``attributes``: N, empty for an item without."""
        headers = np.empty(len(ids), self._header)
        headers["codes"], headers["weight"], headers["updated_at"] = codes, weights, updated_at
        headers["id_bytes"] = np.fromiter(map(len, ids), np.uint16, len(ids)) | np.uint16(_HAS_ORIGIN)
        headers["partition"], headers["timestamp"] = partitions, timestamps
        tails: list[bytes] | None = None
        for flag, width, parts in (
            (_HAS_VECTOR, _VECTOR_LENGTH_BYTES, vectors),
            (_HAS_ATTRIBUTES, _LENGTH_BYTES, attributes),
        ):
            if parts is None or not any(parts):
                continue
            headers["id_bytes"][np.fromiter(map(bool, parts), np.bool_, len(ids))] |= np.uint16(flag)
            added = [part + len(part).to_bytes(width, "little") if part else b"" for part in parts]
            tails = added if tails is None else [tail + more for tail, more in zip(tails, added, strict=True)]
        if tails is None:
            return [
                header + item_id + title.encode("utf-8", _SURROGATES)
                for header, item_id, title in zip(slices(headers), ids, titles, strict=True)
            ]
        return [
            header + item_id + title.encode("utf-8", _SURROGATES) + tail
            for header, item_id, title, tail in zip(slices(headers), ids, titles, tails, strict=True)
        ]

    def decode(self, numbers: Sequence[int], values: Sequence[bytes]) -> list[StoredItem]:
        """The items of N values as LMDB returned them."""
        headers = self.headers_of(values)
        sizes = np.where(headers["partition"] == NO_PARTITION, self._content.itemsize, self._header.itemsize)
        rows = zip(
            numbers,
            values,
            headers["codes"].tolist(),
            headers["weight"].tolist(),
            headers["updated_at"].tolist(),
            sizes.tolist(),
            (headers["id_bytes"] + sizes).tolist(),
            [len(value) - self._tail_bytes(value) for value in values],
            strict=True,
        )
        return [
            StoredItem(
                number,
                value[start:end],
                tuple(codes),
                weight,
                value[end:title_end].decode("utf-8", _SURROGATES),
                updated_at,
            )
            for number, value, codes, weight, updated_at, start, end, title_end in rows
        ]

    def vector_of(self, value: bytes) -> bytes:
        """The vector inside one value, empty for an item without one."""
        end = len(value) - self._attributes_bytes(value)
        tail = self._vector_bytes(value, end)
        return value[end - tail : end - _VECTOR_LENGTH_BYTES] if tail else b""

    def other_vectors(self, before: Sequence[bytes], after: Sequence[bytes]) -> NDArray[np.bool_]:
        """Whose vector differs between N values and N others, in order: (N,)."""
        other: NDArray[np.bool_] = ((self._flags(before) | self._flags(after)) & (_HAS_VECTOR >> 8)) != 0
        for row in np.flatnonzero(other).tolist():
            other[row] = self.vector_of(before[row]) != self.vector_of(after[row])
        return other

    def with_attributes(self, values: Sequence[bytes]) -> NDArray[np.bool_]:
        """Of which of N values the update had attributes: (N,)."""
        found: NDArray[np.bool_] = (self._flags(values) & (_HAS_ATTRIBUTES >> 8)) != 0
        return found

    def _flags(self, values: Sequence[bytes]) -> NDArray[np.uint8]:
        """The flags of N values, which lie in the upper byte of the id's length; at once, as a call for each would cost more."""
        at = self._content.itemsize - 1
        return np.frombuffer(bytes([value[at] for value in values]), np.uint8)

    def has_attributes(self, value: bytes) -> bool:
        """Whether the update that the value came from had attributes."""
        return bool(value[self._content.itemsize - 1] & (_HAS_ATTRIBUTES >> 8))

    def attributes_of(self, value: bytes) -> bytes:
        """The attributes inside one value, empty for none."""
        tail = self._attributes_bytes(value)
        return value[-tail:-_LENGTH_BYTES] if tail else b""

    def _tail_bytes(self, value: bytes) -> int:
        """Bytes of what stands behind the title: vector, attributes and their lengths."""
        attributes = self._attributes_bytes(value)
        return attributes + self._vector_bytes(value, len(value) - attributes)

    def _attributes_bytes(self, value: bytes) -> int:
        """Bytes of a value's attributes and their length."""
        if not self.has_attributes(value):
            return 0
        return int.from_bytes(value[-_LENGTH_BYTES:], "little") + _LENGTH_BYTES

    def _vector_bytes(self, value: bytes, end: int) -> int:
        """Bytes of the vector and its length that end there."""
        if not value[self._content.itemsize - 1] & (_HAS_VECTOR >> 8):
            return 0
        return int.from_bytes(value[end - _VECTOR_LENGTH_BYTES : end], "little") + _VECTOR_LENGTH_BYTES

    def headers_of(self, values: Sequence[bytes]) -> NDArray[Any]:
        """Structured array (N,) of N values: ``codes`` (L), ``weight``, ``updated_at``, ``id_bytes``, ``timestamp`` and
        ``partition``, which is ``NO_PARTITION`` for an item that has no origin."""
        size = self._header.itemsize
        heads = [value[:size] for value in values]
        joined = b"".join(heads)
        if len(joined) != size * len(heads):  # a short item of format 1
            joined = b"".join([head.ljust(size, b"\0") for head in heads])
        headers = np.frombuffer(joined, self._header).copy()
        without = (headers["id_bytes"] & _HAS_ORIGIN) == 0
        headers["id_bytes"] &= np.uint16(_ID_BYTES)
        if without.any():
            headers["partition"][without], headers["timestamp"][without] = NO_PARTITION, NO_PARTITION
        return headers

    def weights_of(self, values: Sequence[bytes]) -> NDArray[np.float32]:
        """Weights (N,) of N values, the rest left undecoded."""
        begin, end = self._codes_bytes, self._codes_bytes + 4
        return np.frombuffer(b"".join([value[begin:end] for value in values]), "<f4").astype(np.float32)

    def codes_of(self, values: Sequence[bytes]) -> NDArray[np.uint16]:
        """Codes (N, L) of N values, the rest left undecoded."""
        joined = b"".join([value[: self._codes_bytes] for value in values])
        return np.frombuffer(joined, "<u2").astype(np.uint16).reshape(-1, self._layers)

    def id_of(self, value: bytes) -> bytes:
        """The item id inside one value."""
        size = self._content.itemsize
        length = int.from_bytes(value[size - 2 : size], "little")
        start = self._header.itemsize if length & _HAS_ORIGIN else size
        return value[start : start + (length & _ID_BYTES)]

    def content_of(self, value: bytes) -> bytes:
        """The value without its origin and attributes, as format 1 wrote it: what the digest is taken over."""
        size = self._content.itemsize
        length = int.from_bytes(value[size - 2 : size], "little")
        if not length & (_HAS_ORIGIN | _HAS_ATTRIBUTES):
            return value
        start = self._header.itemsize if length & _HAS_ORIGIN else size
        end = len(value) - self._attributes_bytes(value)
        return value[: size - 2] + (length & (_ID_BYTES | _HAS_VECTOR)).to_bytes(2, "little") + value[start:end]


class PathEncoding:
    """Records of the ``paths`` database, sorted by *short* path (c1, c3, …, cL), layer-2 token and item number.

    A record is those numbers in that order, big-endian, u16 but for the item number (u32), and the item's weight (f32,
    little-endian). So the items of a short path lie side by side, whatever a layout leaves out, with all that their ranking
    needs: of the thousands behind fifty short SIDs only the answered ones are read. The key is as much of the short path as
    keeps keys few (``_MOST_KEYS``): all of it at L = 3 and M = 256 or 512, where one ``getmulti`` reads the items of many
    SIDs; c1 alone at M = 4,096, where a short path holds an item or two, and a key each would cost twice the bytes and pages.
    """

    def __init__(self, layers: int, size: int) -> None:
        tokens = 1
        while tokens < layers - 1 and size ** (tokens + 1) <= _MOST_KEYS:
            tokens += 1
        self.key_bytes = 2 * tokens
        self.value_bytes = 2 * (layers - 1 - tokens) + _TAIL_BYTES
        self.whole_keys = tokens == layers - 1  # a key is a short path
        self._short = np.array([layer for layer in range(layers) if layer != 1])
        self.record: Final = np.dtype(
            [("short", ">u2", (layers - 1,)), *((name, _TAIL[name]) for name in _TAIL.names or ())]
        )

    def encode(
        self, codes: NDArray[np.uint16], numbers: NDArray[np.uint32], weights: NDArray[np.float32]
    ) -> list[tuple[bytes, bytes]]:
        """(key, value) pairs of N items in LMDB's order; codes (N, L), numbers and weights (N,)."""
        order = np.lexsort((numbers, codes[:, 1], *codes[:, self._short].T[::-1]))
        return self.encode_in_order(codes[order], numbers[order], weights[order])

    def encode_in_order(
        self, codes: NDArray[np.uint16], numbers: NDArray[np.uint32], weights: NDArray[np.float32]
    ) -> list[tuple[bytes, bytes]]:
        """(key, value) pairs of N items in their own order; codes (N, L), numbers and weights (N,)."""
        records = np.empty(len(numbers), self.record)
        records["short"], records["layer2"] = codes[:, self._short], codes[:, 1]
        records["number"], records["weight"] = numbers, weights
        split = self.key_bytes
        return [(record[:split], record[split:]) for record in slices(records)]

    def keys(self, short_paths: NDArray[np.uint16]) -> list[bytes]:
        """Keys of short paths (N, L-1), each of which is a key."""
        return slices(np.ascontiguousarray(short_paths.astype(">u2")).view(f"V{self.key_bytes}"))

    def first_records(self, short_paths: NDArray[np.uint16]) -> list[tuple[bytes, bytes]]:
        """Key of each short path (N, L-1), and the lowest value that an item below it can have."""
        codes = np.zeros((len(short_paths), len(self._short) + 1), np.uint16)
        codes[:, self._short] = short_paths
        return self.first_of_paths(codes)

    def first_of_paths(self, paths: NDArray[np.uint16]) -> list[tuple[bytes, bytes]]:
        """Key of each path (N, L), and the lowest value that an item with it can have."""
        return self.encode_in_order(paths, np.zeros(len(paths), np.uint32), np.zeros(len(paths), np.float32))

    @staticmethod
    def same_short_path(value: bytes, other: bytes) -> bool:
        """Whether two values of one key belong to one short path."""
        return value[:-_TAIL_BYTES] == other[:-_TAIL_BYTES]

    @staticmethod
    def same_path(value: bytes, other: bytes) -> bool:
        """Whether two values of one key belong to one path."""
        return value[:-_AFTER_PATH_BYTES] == other[:-_AFTER_PATH_BYTES]

    @staticmethod
    def decode_tails(values: Sequence[bytes]) -> NDArray[Any]:
        """Structured array (R,) of values: ``layer2``, ``number`` and ``weight`` of the item."""
        return np.frombuffer(b"".join([value[-_TAIL_BYTES:] for value in values]), _TAIL)

    def decode(self, records: Any) -> tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.float32]]:
        """Codes (R, L), item numbers and weights (R,) of joined keys and values; all are copies."""
        array = np.frombuffer(records, self.record)
        codes = np.empty((len(array), len(self._short) + 1), np.uint16)
        codes[:, self._short], codes[:, 1] = array["short"], array["layer2"]
        return codes, array["number"].astype(np.uint32), array["weight"].astype(np.float32)


def slices(records: NDArray[Any]) -> list[bytes]:
    """The bytes of each row of a structured array (N,)."""
    size, data = records.dtype.itemsize, records.tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


def number_keys(numbers: NDArray[np.uint32]) -> list[bytes]:
    """Keys of the ``items`` and ``free`` databases."""
    return slices(numbers.astype(">u4"))


def numbers_of(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """The reverse of :func:`number_keys`."""
    return np.frombuffer(b"".join(keys), ">u4").astype(np.uint32)


def offset_key(topic: str, partition: int) -> bytes:
    """Key of the ``offsets`` database."""
    return topic.encode() + b"\x00" + partition.to_bytes(4, "big")


def topic_partition(key: bytes) -> tuple[str, int]:
    """The reverse of :func:`offset_key`."""
    return key[:-5].decode(), int.from_bytes(key[-4:], "big")


def layout_key(codebook_id: str, generation: int) -> bytes:
    """Key of the ``layouts`` database: generations of one codebook in numeric order."""
    return codebook_id.encode() + b"\x00" + generation.to_bytes(8, "big")


def census_chunks(census: NDArray[np.int64], changed: NDArray[np.bool_] | None = None) -> list[tuple[bytes, bytes]]:
    """Records of the ``census`` database (L, M) for the chunks that hold a changed count (all chunks if not given)."""
    layers, size = census.shape
    chunks: list[tuple[bytes, bytes]] = []
    for layer in range(layers):
        for start in range(0, size, CENSUS_CHUNK):
            if changed is None or changed[layer, start : start + CENSUS_CHUNK].any():
                key = layer.to_bytes(2, "big") + start.to_bytes(4, "big")
                chunks.append((key, census[layer, start : start + CENSUS_CHUNK].astype("<i8").tobytes()))
    return chunks


def census_of(records: Sequence[tuple[bytes, bytes]], layers: int, size: int) -> NDArray[np.int64]:
    """The census (L, M) from all records of the ``census`` database; a missing chunk counts zero."""
    census = np.zeros((layers, size), np.int64)
    for key, value in records:
        layer, start = int.from_bytes(key[:2], "big"), int.from_bytes(key[2:], "big")
        counts = np.frombuffer(value, "<i8")
        census[layer, start : start + len(counts)] = counts
    return census
