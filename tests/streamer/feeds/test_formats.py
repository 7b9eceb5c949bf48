"""Each feed is read back as its engine's own loader reads it, with the checks of that loader written anew here."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.sids.layout import Layout
from store.records.encoding import StoredItem
from streamer.feeds.formats import FORMATS, format_named, item_number
from streamer.feeds.items import FeedError, FeedItems, in_order

SIZE, BASE = 16, 1_000
RNG = np.random.default_rng(3)
CODES = RNG.integers(0, SIZE, (500, 3)) % np.array([5, 7, SIZE])  # several items share a SID
STORED = [
    StoredItem(number, f"sku-{number}".encode(), tuple(map(int, codes)), float(number % 9), f"thing {number}", number)
    for number, codes in enumerate(CODES.tolist())
]


def feed(*heads: int, layers: int = 3, size: int = SIZE) -> FeedItems:
    stored = STORED
    if layers != 3:
        stored = [StoredItem(0, b"a", (1,) * layers, 1.0, "", 0)]
    return in_order(stored, Layout(2, "codebook", layers, size, heads), BASE)


def write(name: str, items: FeedItems, directory: Path) -> list[Path]:
    return [directory / file for file in format_named(name).write(items, directory)]


def expected(items: FeedItems) -> dict[tuple[int, ...], list[str]]:
    """Token ids → items, the one with the greatest weight first."""
    found: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for item in sorted(STORED, key=lambda item: (-item.weight, item.id)):
        sid = items.layout.sid_of(item.codes)
        found[tuple(BASE + token for token in sid)].append(item.id.decode())
    return found


def test_nvidia_catalogue_is_accepted_line_by_line_with_short_sids_too(tmp_path: Path) -> None:
    """``SemanticItemCatalog.from_jsonl`` with ``allow_duplicate_token_paths``."""
    items = feed(1, 3)
    [path] = write("nvidia-jsonl", items, tmp_path)
    vocab_size, seen, trie = BASE + 3 * SIZE, set(), defaultdict(list)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            assert isinstance(record, dict)
            tokens = record["token_ids"]
            assert tokens
            assert all(type(token) is int and 0 <= token < vocab_size for token in tokens)
            assert isinstance(record.get("metadata", {}), dict)
            assert record["item_id"] not in seen
            seen.add(record["item_id"])
            trie[tuple(tokens)].append(record["item_id"])
    assert trie == expected(items)
    assert {len(path) for path in trie} == {2, 3}
    prefixes = {path[:length] for path in trie for length in range(1, len(path))}
    assert not prefixes & trie.keys(), "a whole SID begins no other one, so that decoding knows its end"


def test_flashrec_maps_the_codes_onto_the_same_token_ids(tmp_path: Path) -> None:
    """``build_trie_from_sid2vid_file`` with the token range and codebook sizes of the bundle's model."""
    items = feed()
    [path] = write("flashrec", items, tmp_path)
    assert path.suffix == ".json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    sizes, trie = [SIZE] * 3, {}
    for key, value in data.items():
        codes = [int(part) for part in key.split(",")]
        assert len(codes) == 3  # of other widths it takes the last codebook for boundary tokens
        assert all(0 <= code < size for code, size in zip(codes, sizes, strict=True))
        trie[tuple(BASE + sum(sizes[:step]) + code for step, code in enumerate(codes))] = [one["pid"] for one in value]
    assert trie == expected(items)


def test_xllm_reads_both_kinds_of_records_to_their_end(tmp_path: Path) -> None:
    """``RecVocabDict::initialize`` without and with ``enable_extended_item_info``, and ``build_constraint_tables``."""
    items = feed()
    plain, extended, named = write("xllm", items, tmp_path)
    names = {record["number"]: record["item_id"] for record in map(json.loads, named.read_text().splitlines())}
    content = plain.read_bytes()
    assert len(content) % (8 + 3 * 4) == 0
    by_tokens = defaultdict(list)
    for number, *tokens in struct.iter_unpack("=q3i", content):
        assert all(0 <= token < BASE + 3 * SIZE for token in tokens)
        by_tokens[tuple(tokens)].append(names[number])
    assert by_tokens == expected(items)
    content, at, found = extended.read_bytes(), 0, defaultdict(list)
    while at < len(content):
        number, length = struct.unpack_from("=qI", content, at)
        at += 12
        assert length <= min(1 << 20, len(content) - at)
        did = content[at : at + length].decode()
        at += length
        assert struct.unpack_from("=I", content, at) == (0,), "no type"
        tokens = struct.unpack_from("=3i", content, at + 4)
        at += 16
        assert names[number] == did
        found[tokens].append(did)
    assert found == by_tokens


def test_static_index_walks_every_sid_to_its_end_and_no_other(tmp_path: Path) -> None:
    """The checks of STATIC's ``tests/test_csr_builder.py``, and a walk of its decoder over every path."""
    items = feed()
    [path] = write("static-csr", items, tmp_path)
    found = np.load(path, allow_pickle=False)
    packed, indptr, most = found["packed_csr"], found["indptr"], tuple(found["layer_max_branches"].tolist())
    sids = found["sids"]
    assert found["dense_mask"].shape == found["dense_states"].shape == (SIZE, SIZE)
    assert (packed.dtype, indptr.dtype) == (np.int32, np.int32)
    assert len(most) == 3
    assert most[0] == found["start_mask"].sum() == len(np.unique(sids[:, 0]))
    assert len(packed) == indptr[-1]
    assert (packed[-SIZE:] == (SIZE, 0)).all(), "rows of padding, for reads beyond the last state"

    def children(state: int, level: int) -> list[tuple[int, int]]:
        assert indptr[state + 1] - indptr[state] <= most[level]
        return [tuple(row) for row in packed[indptr[state] : indptr[state + 1]].tolist()]  # type: ignore[misc]

    walked = []
    for first in np.flatnonzero(found["start_mask"]).tolist():
        by_table = {
            (second, int(found["dense_states"][first, second])) for second in np.flatnonzero(found["dense_mask"][first])
        }
        assert by_table == set(children(first + 1, 1)), "the dense table and the edges agree"
        for second, state in by_table:
            for third, end in children(state, 2):
                assert end == 0
                walked.append((first, second, third))
    assert sorted(walked) == [tuple(sid) for sid in sids.tolist()]
    ids, offsets = found["item_ids"].tobytes(), found["item_id_offsets"].tolist()
    names = [ids[start:end].decode() for start, end in pairwise(offsets)]
    ranges = pairwise(found["item_indptr"].tolist())
    of_sids = {
        tuple(BASE + SIZE * level + code for level, code in enumerate(sid)): names[start:end]
        for sid, (start, end) in zip(sids.tolist(), ranges, strict=True)
    }
    assert of_sids == expected(items)


def test_parquet_has_a_row_for_each_item(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    items = feed(1, 3)
    [path] = write("parquet", items, tmp_path)
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    by_id = {row["item_id"]: row for row in rows}
    assert len(rows) == len(by_id) == len(STORED)
    for item in STORED:
        row = by_id[item.id.decode()]
        assert row["token_ids"] == [BASE + token for token in items.layout.sid_of(item.codes)]
        assert (row["sid"], tuple(row["codes"])) == (items.layout.sid_text(item.codes), item.codes)
        assert (row["title"], row["weight"], row["updated_at"].timestamp() * 1000) == (
            item.title,
            item.weight,
            item.updated_at,
        )


@pytest.mark.parametrize(
    ("name", "items", "why"),
    [
        ("flashrec", feed(1), "FlashRec decodes SIDs of one length, and .* write full SIDs with --layout full"),
        ("xllm", feed(1), "xLLM decodes SIDs of one length"),
        ("static-csr", feed(1), "STATIC decodes SIDs of one length"),
        ("xllm", feed(layers=4), "xLLM reads SIDs of 3 tokens, and this codebook has 4 layers"),
        ("static-csr", feed(size=40_000), "dense tables of 40,000 × 40,000 cells are too large"),
    ],
)
def test_catalogue_that_an_engine_cannot_hold_is_refused(name: str, items: FeedItems, why: str, tmp_path: Path) -> None:
    with pytest.raises(FeedError, match=why):
        write(name, items, tmp_path)


def test_items_have_the_same_number_in_every_feed_and_never_one_for_two(tmp_path: Path) -> None:
    numbers = [item_number(item) for item in ("17", "017", "9223372036854775807", "9223372036854775808", "sku")]
    assert numbers[0] == 17
    assert numbers[2] == 2**63 - 1
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**63 for number in numbers)
    both = [
        StoredItem(n, item.encode(), (1, 1, 1), 1.0, "", 0) for n, item in enumerate(("sku", str(item_number("sku"))))
    ]
    with pytest.raises(FeedError, match="have the same: rename one"):
        write("xllm", in_order(both, Layout(0, "codebook", 3, SIZE), 0), tmp_path)
    with pytest.raises(FeedError, match=f"choose one of {', '.join(FORMATS)}"):
        format_named("onnx")
