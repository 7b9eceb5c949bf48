"""`sidstream publish` of a table on the real broker: every row is on the topic, or told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sidstream import app
from streamer.events.records import ITEM_UPDATE
from streamer.settings import Settings
from support.processes import committed_records

pyarrow = pytest.importorskip("pyarrow")


def publish(settings: Settings, *arguments: str | Path) -> tuple[int, str]:
    environment = {
        "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "SIDSTREAM_TOPICS__PREFIX": settings.topics.prefix,
        "COLUMNS": "80",
    }
    answer = CliRunner().invoke(app, ["publish", *map(str, arguments)], env=environment)
    return answer.exit_code, answer.stderr + str(answer.exception or "")


def test_rows_of_a_table_are_published_and_those_that_cannot_be_are_told(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    from pyarrow import parquet

    embeddings = np.random.default_rng(0).normal(size=(2_500, 8)).astype(np.float32)
    vectors = embeddings.tolist()
    vectors[3], vectors[2_400] = [1.0], None
    table = pyarrow.table(
        {
            "sku": [row if row != 5 else None for row in range(2_499)] + [7],
            "name": [f"thing {row}" for row in range(2_500)],
            "price": [row / 4 for row in range(2_500)],
            "stock": [row % 2 == 0 for row in range(2_500)],
            "vec": pyarrow.array(vectors, pyarrow.list_(pyarrow.float32())),
        }
    )
    parquet.write_table(table, tmp_path / "shop.parquet")
    columns = ["--id", "sku", "--title", "name", "--embedding", "vec", "--attribute", "price"]
    code, text = publish(pipeline_settings, tmp_path / "shop.parquet", *columns)
    assert code == 1, text
    for said in (
        "2,497 item updates are on",
        "not read: stock",
        "1 rows have an id that came before",
        "3 rows were not taken",
        "shop.parquet row 4, column vec: has 1 numbers, and the rows before it 8",
        "shop.parquet row 6, column sku: is null",
        "shop.parquet row 2401, column vec: is null",
    ):
        assert said in text, text
    found = {}
    for record in committed_records(pipeline_settings, pipeline_settings.topics.item_updates):
        found[record.key().decode()] = ITEM_UPDATE.decode(record.value())
    assert found.keys() == {str(row) for row in range(2_499)} - {"3", "5", "2400"}
    assert found["7"].title == "thing 2499", "the last row of an id counts"
    assert np.array_equal(np.frombuffer(found["8"].embedding, "<f4"), embeddings[8])
    code, text = publish(pipeline_settings, tmp_path / "shop.parquet", "--id", "name", "--delete", "--limit", "2")
    assert (code, "2 tombstones" in text) == (0, True), text
