"""The formats: what each engine's own loader reads, written file by file into a directory.

What must hold: a file is what the loader named here accepts, or the catalogue is refused with what to do; each test in
``tests/streamer/feeds`` reads the files as that loader does, with its checks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.data_files import DataFileError
from streamer.feeds.items import FeedError, FeedItems

_ENCODE: Final = msgspec.json.Encoder().encode
_LONGEST_FIELD: Final = 1 << 20  # bytes of a string in xLLM's extended records
_LARGEST_TABLE: Final = 1 << 30  # cells of STATIC's dense tables
_ROWS_A_GROUP: Final = 65_536
_DENSE_LAYERS: Final = 2


@dataclass(frozen=True)
class FeedFormat:
    """``loader``: whose files they are and the version that was read; ``write``: writes them, and says their names."""

    name: str
    loader: str
    write: Callable[[FeedItems, Path], list[str]]


def _nvidia(items: FeedItems, directory: Path) -> list[str]:
    """One line an item; several items of a SID need ``allow_duplicate_token_paths``, the first of a path is the best."""
    with (directory / "catalogue.jsonl").open("wb") as file:
        for row, item in enumerate(items.ids):
            metadata = {"title": items.titles[row], "weight": float(items.weights[row])}
            record = {"item_id": item, "token_ids": items.token_ids(row), "metadata": metadata}
            file.write(_ENCODE(record) + b"\n")
    return ["catalogue.jsonl"]


def _flashrec(items: FeedItems, directory: Path) -> list[str]:
    """``{"c1,c2,c3": [{"pid": id}, …]}``: codes within each codebook, which the engine maps onto its own token ids."""
    items.require_one_length("FlashRec")
    starts = items.starts
    ends = np.append(starts[1:], len(items))
    with (directory / "sid2vid.json").open("wb") as file:
        file.write(b"{")
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            key = ",".join(map(str, items.codes[start].tolist()))
            value = [{"pid": items.ids[row]} for row in range(start, end)]
            file.write((b"," if number else b"") + _ENCODE(key) + b":" + _ENCODE(value))
        file.write(b"}")
    return ["sid2vid.json"]


def _xllm(items: FeedItems, directory: Path) -> list[str]:
    """Records of an item number (int64) and three token ids (int32), in the machine's order of bytes, as xLLM reads them; the
    extended ones have the id and a type as text. ``items.jsonl`` says which number is which item.
    """
    items.require_layers("xLLM", 3)
    items.require_one_length("xLLM")
    numbers = _item_numbers(items.ids)
    token_ids = items.tokens + np.int32(items.token_base)
    records = np.empty(len(items), np.dtype([("item", "=i8"), ("tokens", "=i4", (3,))]))
    records["item"], records["tokens"] = numbers, token_ids
    (directory / "rec_vocab.bin").write_bytes(records.tobytes())
    with (directory / "rec_vocab_extended.bin").open("wb") as file:
        for row, item in enumerate(items.ids):
            text = item.encode()
            assert len(text) <= _LONGEST_FIELD  # ids have at most 256 bytes
            file.write(
                struct.pack("=qI", numbers[row], len(text)) + text + struct.pack("=I", 0) + token_ids[row].tobytes()
            )
    with (directory / "items.jsonl").open("wb") as file:
        for row, item in enumerate(items.ids):
            file.write(_ENCODE({"number": int(numbers[row]), "item_id": item}) + b"\n")
    return ["rec_vocab.bin", "rec_vocab_extended.bin", "items.jsonl"]


def _item_numbers(ids: Sequence[str]) -> NDArray[np.int64]:
    """A number for each id, the same in every feed: its own where it is one, else 63 bits of its hash."""
    numbers = np.array([item_number(item) for item in ids], np.int64)
    distinct, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        twice = int(distinct[np.argmax(counts > 1)])
        both = [item for item, number in zip(ids, numbers.tolist(), strict=True) if number == twice]
        raise FeedError(
            f"xLLM knows items by 64-bit numbers, and {both[0]!r} and {both[1]!r} have the same: rename one"
        )
    return numbers


def item_number(item: str) -> int:
    """
    >>> item_number("17"), item_number("017") == 17, 0 <= item_number("sku-17") < 2**63
    (17, False, True)
    """
    if item.isascii() and item.isdigit() and str(int(item)) == item and int(item) < 2**63:
        return int(item)
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "big") >> 1


def _static(items: FeedItems, directory: Path) -> list[str]:
    """STATIC's index of the distinct SIDs, tokens being codes 0 … M-1 of each step; and which items each SID has."""
    items.require_one_length("STATIC")
    size = items.layout.size
    if size**_DENSE_LAYERS > _LARGEST_TABLE:
        raise FeedError(
            f"STATIC's dense tables of {size:,} × {size:,} cells are too large: fit a codebook of fewer codewords"
        )
    starts = items.starts
    sids = items.codes[starts].astype(np.int32)
    index: dict[str, Any] = static_index(sids, size)
    ids = [item.encode() for item in items.ids]
    np.savez(
        directory / "static.npz",
        **index,
        vocab_size=np.int64(size),
        sids=sids,
        item_indptr=np.append(starts, len(items)).astype(np.int64),
        item_ids=np.frombuffer(b"".join(ids), np.uint8),
        item_id_offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
    )
    return ["static.npz"]


def static_index(sids: NDArray[np.int32], size: int) -> dict[str, NDArray[Any]]:
    """The arrays of STATIC's index over SIDs (n, L), sorted and distinct, with tokens below ``size`` (V).

    A state is a prefix: that of token t alone is t + 1, longer ones follow from V + 1 on, level by level in the order of the
    SIDs; a whole SID ends in state 0. packed_csr: int32 (edges + V, 2) of token and next state, the rows of one state side by
    side, V rows of padding; indptr: int32 (states + 2,); layer_max_branches: int64 (L,), most children on each level;
    start_mask: bool (V,); dense_mask, dense_states: bool and int32 (V, V), of the first two tokens.
    """
    count, layers = sids.shape
    new = np.ones((count, layers), np.bool_)  # whether a row begins a prefix of this length
    for level in range(layers):
        before = new[1:, level - 1] if level else np.zeros(max(0, count - 1), np.bool_)
        new[1:, level] = before | (sids[1:, level] != sids[:-1, level])
    states = [sids[:, 0] + 1]
    following = size + 1
    for level in range(1, layers - 1):
        numbers = np.cumsum(new[:, level]) - 1 + following
        states.append(numbers.astype(np.int32))
        following = int(numbers[-1]) + 1 if count else following
    parents = np.concatenate([states[level - 1][new[:, level]] for level in range(1, layers)])
    tokens = np.concatenate([sids[new[:, level], level] for level in range(1, layers)])
    ends = np.zeros(count, np.int32)
    children = np.concatenate(
        [(states[level] if level < layers - 1 else ends)[new[:, level]] for level in range(1, layers)]
    )
    degrees = np.bincount(parents, minlength=following)
    indptr = np.concatenate([[0], np.cumsum(degrees), [len(tokens) + size]]).astype(np.int32)
    padding = np.stack([np.full(size, size), np.zeros(size)], axis=1)
    packed = np.concatenate([np.stack([tokens, children], axis=1), padding]).astype(np.int32)
    starts = np.zeros(size, np.bool_)
    starts[sids[:, 0]] = True
    most = [int(starts.sum())] + [
        int(degrees[np.unique(states[level - 1])].max()) if count else 0 for level in range(1, layers)
    ]
    dense_mask = np.zeros((size, size), np.bool_)
    dense_states = np.zeros((size, size), np.int32)
    dense_mask[sids[:, 0], sids[:, 1]] = True
    dense_states[sids[:, 0], sids[:, 1]] = states[1] if layers > _DENSE_LAYERS else 0
    return {
        "packed_csr": packed,
        "indptr": indptr,
        "layer_max_branches": np.array(most, np.int64),
        "start_mask": starts,
        "dense_mask": dense_mask,
        "dense_states": dense_states,
    }


def _parquet(items: FeedItems, directory: Path) -> list[str]:
    """One row an item: item_id, sid as text, token_ids, codes, title, weight, updated_at."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataFileError(
            "Parquet is written by pyarrow, which is not installed: pip install 'sidstream[arrow]'"
        ) from None
    schema = pyarrow.schema(
        [
            ("item_id", pyarrow.string()),
            ("sid", pyarrow.string()),
            ("token_ids", pyarrow.list_(pyarrow.int32())),
            ("codes", pyarrow.list_(pyarrow.uint16())),
            ("title", pyarrow.string()),
            ("weight", pyarrow.float32()),
            ("updated_at", pyarrow.timestamp("ms", "UTC")),
        ]
    )
    with parquet.ParquetWriter(directory / "catalogue.parquet", schema) as writer:
        for start in range(0, len(items), _ROWS_A_GROUP):
            rows = range(start, min(start + _ROWS_A_GROUP, len(items)))
            part = slice(rows.start, rows.stop)
            columns = [
                items.ids[part],
                [items.layout.sid_tokens_text(items.tokens[row].tolist()) for row in rows],
                [items.token_ids(row) for row in rows],
                items.codes[part].tolist(),
                items.titles[part],
                items.weights[part],
                items.updated_at[part],
            ]
            arrays = [pyarrow.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
    return ["catalogue.parquet"]


FORMATS: Final = {
    one.name: one
    for one in (
        FeedFormat(
            "nvidia-jsonl",
            "NVIDIA recsys-examples v26.06.01, examples/sid-gr-inference, SemanticItemCatalog.from_jsonl (43465ae)",
            _nvidia,
        ),
        FeedFormat("flashrec", "FlashRec, flashrec.search.trie.build_trie_from_sid2vid_file (41f12b0)", _flashrec),
        FeedFormat("xllm", "xLLM 0.9.0 and 658 commits, RecVocabDict::initialize (3906f5a)", _xllm),
        FeedFormat("static-csr", "STATIC, static_decoding.csr_utils.build_static_index (c24f9dc)", _static),
        FeedFormat("parquet", "any reader of Parquet", _parquet),
    )
}


def format_named(name: str) -> FeedFormat:
    """Raises ``FeedError`` for an unknown one."""
    if name not in FORMATS:
        raise FeedError(f"--format {name!r} is unknown: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
