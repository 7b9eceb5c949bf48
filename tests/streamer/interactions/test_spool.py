"""Records in parts on the disk: all of a key together, in an order that the number of parts does not change."""

from __future__ import annotations

from pathlib import Path

from streamer.interactions.spool import BYTES_A_PORTION, RECORDS_A_PART, Spool, parts_for, place_of, read_together


def test_all_records_of_a_key_lie_in_one_part_and_parts_follow_one_order(tmp_path: Path) -> None:
    records = [(f"key-{number % 500}", number) for number in range(5_000)]
    orders = []
    for parts in (1, 7, 64):
        spool = Spool(tmp_path / str(parts), tuple[str, int], parts)
        for key, number in records:
            spool.add(key, (key, number))
        of_parts = [list(spool.read(part)) for part in range(parts)]
        assert sum(map(len, of_parts)) == 5_000
        homes: dict[str, set[int]] = {}
        for part, some in enumerate(of_parts):
            for key, _ in some:
                homes.setdefault(key, set()).add(part)
        assert all(len(home) == 1 for home in homes.values())
        orders.append([one for some in of_parts for one in sorted(some, key=lambda one: (place_of(one[0]), one))])
    assert orders[0] == orders[1] == orders[2]


def test_part_of_large_records_is_read_in_portions_and_what_has_one_key_comes_together(tmp_path: Path) -> None:
    large, small = Spool(tmp_path / "large", tuple[str, bytes], 2), Spool(tmp_path / "small", str, 2)
    keys = [f"key-{number}" for number in range(80)]
    for key in keys:
        large.add(key, (key, bytes(BYTES_A_PORTION // 20)))
        small.add(key, key)
    seen = []
    for of_large, of_small in read_together(large, small):
        names = [key for key, _ in of_large]
        assert len(names) <= 40, "two portions' worth"
        assert names == list(of_small)
        seen += sorted(names, key=place_of)
    assert seen == sorted(keys, key=place_of)


def test_number_of_parts_keeps_each_small() -> None:
    assert (parts_for(0), parts_for(1), parts_for(RECORDS_A_PART), parts_for(RECORDS_A_PART + 1)) == (1, 1, 1, 2)
    assert parts_for(10**12) == 4_096
