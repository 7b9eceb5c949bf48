"""Tables of data larger than memory: each part's is the one in memory, all rows come once a pass, and it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import SidstreamError
from models.examples.records import read_training_file
from models.examples.streamed import StreamedData, divided
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.tables import NOTHING_FOLLOWS, Batches, JoinedTable, TrainingBatch

pytest.importorskip("torch")

from models.training.stored_tables import stored_tables
from models.training.train_model import known, streamed_table, training_table

ITEMS = 30
CODES = np.random.default_rng(0).integers(8, size=(ITEMS, 3)).astype(np.uint16)
ROWS = {f"item-{row}": row for row in range(ITEMS)}
LAYOUT = Layout(1, "codebook", 3, 8, (1,))
TITLES = {item: f"thing {item}" for item in ROWS}
TOKENIZER = train_tokenizer(["red shoes for ada"], size=300)


def prompts(history_text: int = 0) -> PromptBuilder:
    vocabulary = SidVocabulary(text_size=TOKENIZER.size, user_buckets=4, layers=3, size=8)
    return PromptBuilder(vocabulary, TOKENIZER, PromptSettings(max_history=3, history_text=history_text))


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def files(directory: Path) -> list[Path]:
    return [
        write(
            directory / "sequences.jsonl",
            *(
                {"user": f"u{user}", "items": [f"item-{(user + 7 * at) % ITEMS}" for at in range(2 + user % 6)]}
                for user in range(40)
            ),
        ),
        write(
            directory / "queries.jsonl",
            *({"query": "red shoes"[: at % 9], "item": f"item-{at % ITEMS}"} for at in range(90)),
            {"query": "x", "user": "u3", "history": ["item-1", "gone"], "item": "item-2"},
            {"query": "x", "item": "gone"},
        ),
    ]


def stored(data: StreamedData, history_text: int = 0) -> Any:
    table, skipped, mentions = streamed_table(data, prompts(history_text), LAYOUT, ROWS, CODES, TITLES)
    assert (skipped, mentions) == (1, 1)
    return table


def equal(one: TrainingBatch, other: TrainingBatch) -> None:
    for name in ("token_ids", "following", "positions", "visible"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("history_text", [0, 4])
def test_table_of_one_part_is_that_of_the_whole_in_memory(tmp_path: Path, history_text: int) -> None:
    paths = files(tmp_path)
    [found] = [stored(divided(paths, tmp_path / "parts"), history_text).load(0)]
    whole = read_training_file(paths[0]).data + read_training_file(paths[1]).data
    expected = training_table(known(whole, ROWS).data, prompts(history_text), LAYOUT, ROWS, CODES, titles=TITLES)
    assert isinstance(found, JoinedTable)
    assert isinstance(expected, JoinedTable)
    assert (len(found), found.targets) == (len(expected), expected.targets)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.row_targets, expected.row_targets)
    for rows in found.rows():
        equal(found.batch(rows, 0.3, np.random.default_rng(1)), expected.batch(rows, 0.3, np.random.default_rng(1)))


def epoch(loader: Batches) -> list[list[list[int]]]:
    return [batch["following"].tolist() for batch in loader]


def targets(batches: list[list[list[int]]]) -> list[list[int]]:
    """What each row is to predict, whatever stands beside it."""
    return sorted([token for token in row if token != NOTHING_FOLLOWS] for batch in batches for row in batch)


def test_pass_has_every_row_of_every_block_once_and_goes_on_after_any_step(tmp_path: Path) -> None:
    table = stored(divided(files(tmp_path), tmp_path / "parts", bytes_a_part=1_500))
    assert len(table.blocks) > 3
    loader = Batches(table, 8, seed=3)
    first, second = epoch(loader), epoch(loader)
    assert len(first) == len(second) == len(loader)
    assert first != second

    rows = sum(len(batch) for batch in first)
    assert rows == len(table) == sum(len(table.load(number)) for number in range(len(table.blocks)))
    assert table.targets == sum(table.load(number).targets for number in range(len(table.blocks)))
    assert targets(first) == targets(second)
    both = first + second
    for step in (1, len(first) - 1, len(first), len(first) + 5):
        later = Batches(table, 8, seed=3)
        later.begin_after(step)
        found = epoch(later)
        assert found == both[step : step + len(found)]
        assert len(found) == len(first) - step % len(first)


def test_tables_are_found_again_for_the_same_prompts_and_made_anew_for_others(tmp_path: Path) -> None:
    data = divided(files(tmp_path), tmp_path / "parts")
    first = stored(data)

    def never(number: int) -> Any:
        raise AssertionError("made again")

    again, *_ = stored_tables(data, prompts(), LAYOUT, ROWS, CODES, None, never, shared=True)
    assert again.blocks == first.blocks
    with pytest.raises(AssertionError, match="made again"):
        stored_tables(data, prompts(), LAYOUT, ROWS, CODES[:, ::-1].copy(), None, never, shared=True)


def test_data_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    data = divided([write(tmp_path / "q.jsonl", {"query": "x", "item": "gone"})], tmp_path / "parts")
    with pytest.raises(SidstreamError, match="the training data have nothing to learn"):
        streamed_table(data, prompts(), LAYOUT, ROWS, CODES)
