"""`sidstream publish --embed`: a producer that has text and nothing else, on the real broker."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.bundle import Bundle
from models.catalogue import Catalogue, CatalogueItem, read_items
from models.codebooks.onnx_encoder import OnnxEncoder
from models.errors import SidstreamError
from models.towers.text_encoder import TextEncoderError, Towers
from sidstream import app
from streamer.client.publisher import ItemPublisher, PublishError, publish_texts
from streamer.events.records import ITEM_CODES, ITEM_UPDATE
from streamer.settings import Settings
from support.processes import SidstreamProcess, committed_records, wait_until

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

ITEMS = [
    CatalogueItem(id=f"sku-{number}", title=f"{look} {thing}", brand="Alta", weight=float(number))
    for number, (look, thing) in enumerate(
        (look, thing) for look in ("red", "green", "blue", "steel") for thing in ("kettle", "lamp", "desk", "rug")
    )
]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    from models.examples.made_queries import examples_from_catalogue
    from models.towers.dual_tower import TowerSettings, train_towers
    from models.towers.tower_export import write_towers

    settings = TowerSettings(dimension=16, rows=512, hidden=16, epochs=2, batch_size=32)
    tower, _ = train_towers(ITEMS, examples_from_catalogue(ITEMS, per_item=3, seed=0), settings)
    return write_towers(tower.weights(), tmp_path_factory.mktemp("towers"), training={})


@pytest.fixture
def items_file(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in ITEMS))
    return path


def publish(settings: Settings, *arguments: str | Path) -> tuple[int, str]:
    environment = {
        "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "SIDSTREAM_TOPICS__PREFIX": settings.topics.prefix,
        "SIDSTREAM_BUNDLE": str(settings.bundle),
        "SIDSTREAM_INDEX": str(settings.index),
        "SIDSTREAM_ASSIGNER__GROUP": settings.assigner.group,
        "COLUMNS": "80",
    }
    answer = CliRunner().invoke(app, ["publish", *map(str, arguments)], env=environment)
    return answer.exit_code, answer.stderr + str(answer.exception or "")


def fit(directory: Path, embeddings: np.ndarray, towers_id: str | None) -> None:
    fit_bundle(embeddings, directory, FitSettings(size=8, iterations=3), towers=towers_id)


def test_text_alone_is_published_and_gets_the_codes_of_its_embedding(
    pipeline_settings: Settings, towers: Towers, items_file: Path, tmp_path: Path
) -> None:
    expected = towers.item_encoder().encode_items(ITEMS)
    fit(pipeline_settings.bundle, expected, towers.id)
    code, text = publish(pipeline_settings, items_file, "--embed", towers.directory)
    assert code == 0, text
    assert "16 item updates" in text
    found = {}
    for record in committed_records(pipeline_settings, pipeline_settings.topics.item_updates):
        update = ITEM_UPDATE.decode(record.value())
        found[record.key().decode()] = (np.frombuffer(update.embedding, "<f4"), update.title, update.weight)
    assert len(found) == 16
    for row, item in enumerate(ITEMS):
        embedding, title, weight = found[item.id]
        assert np.array_equal(embedding, expected[row])
        assert (title, weight) == (item.title, item.weight)

    with SidstreamProcess(pipeline_settings, "assigner", tmp_path):
        topic = pipeline_settings.topics.item_codes
        wait_until(lambda: len(committed_records(pipeline_settings, topic)) == 16, what="16 items' codes")
    codes = {
        record.key().decode(): ITEM_CODES.decode(record.value()).codes
        for record in committed_records(pipeline_settings, topic)
    }
    rows = OnnxEncoder(Bundle.open(pipeline_settings.bundle).encoder_path).encode(expected)
    assert codes == {item.id: tuple(row.tolist()) for item, row in zip(ITEMS, rows, strict=True)}


def test_producer_without_a_bundle_publishes_and_deletes_by_text_files_alone(
    pipeline_settings: Settings, towers: Towers, items_file: Path
) -> None:
    code, text = publish(pipeline_settings, items_file, "--embed", towers.directory, "--limit", "3")
    assert (code, "3 item updates" in text) == (0, True), text
    code, text = publish(pipeline_settings, items_file, "--delete", "--limit", "2")
    assert (code, "2 tombstones" in text) == (0, True), text
    records = committed_records(pipeline_settings, pipeline_settings.topics.item_updates)
    assert sum(record.value() is None for record in records) == 2
    assert len(records) == 5


def test_nothing_is_published_when_an_item_has_no_text(pipeline_settings: Settings, towers: Towers) -> None:
    with pytest.raises(TextEncoderError, match="item 'empty' has no text"):
        publish_texts(pipeline_settings, [*ITEMS, CatalogueItem(id="empty", title="")], towers.item_encoder())
    with pytest.raises(PublishError, match="no item tower"), ItemPublisher(pipeline_settings) as publisher:
        publisher.update_from_text(ITEMS)
    assert committed_records(pipeline_settings, pipeline_settings.topics.item_updates) == []


@pytest.mark.parametrize(
    ("dimension", "message"), [(8, "make 16 numbers, but the bundle"), (16, "fitted on embeddings that no towers made")]
)
def test_bundle_of_other_embeddings_is_refused_before_the_broker_is_asked(
    dimension: int, message: str, towers: Towers, items_file: Path, tmp_path: Path
) -> None:
    fit(tmp_path / "bundle", np.random.default_rng(0).normal(size=(40, dimension)).astype(np.float32), None)
    arguments = ["publish", str(items_file), "--embed", str(towers.directory)]
    answer = CliRunner().invoke(app, arguments, env={"SIDSTREAM_BUNDLE": str(tmp_path / "bundle")})
    assert isinstance(answer.exception, SidstreamError)
    assert message in str(answer.exception)


def test_embeddings_and_towers_together_or_neither_with_a_file_are_refused(items_file: Path) -> None:
    assert len(read_items(items_file)) == 16
    for arguments in (["--embeddings", "a.npy", "--embed", "towers"], []):
        answer = CliRunner().invoke(app, ["publish", str(items_file), *arguments])
        assert answer.exit_code == 2
        assert "--embed" in answer.stderr


@pytest.mark.parametrize("name", ["ids.txt", "ids.jsonl", "items.tsv", "folder"])
def test_ids_are_enough_to_delete(name: str, pipeline_settings: Settings, tmp_path: Path) -> None:
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
        (source / "items.jsonl").write_text('{"id": "sku-1"}\n{"item_id": 17, "title": "kettle"}\n')
    elif name == "items.tsv":
        source.write_text("item_id\tcolour\nsku-1\tred\n17\tblue\n")
    else:
        source.write_text('sku-1\n\n"17"\nsku-1\n' if name == "ids.txt" else '{"id": "sku-1", "size": 3}\n{"id": 17}\n')
    code, text = publish(pipeline_settings, source, "--delete")
    assert (code, "2 tombstones" in text) == (0, True), text
    records = committed_records(pipeline_settings, pipeline_settings.topics.item_updates)
    assert {(record.key(), record.value()) for record in records} == {(b"sku-1", None), (b"17", None)}


def test_wait_ends_with_one_and_the_classes_when_something_was_refused(
    pipeline_settings: Settings, tiny_bundle: Path, tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    wide = np.zeros((16, 16), np.float32)
    wide[:, 0] = 1
    Catalogue(items=tuple(ITEMS), embeddings=wide).write(tmp_path / "catalogue")
    with SidstreamProcess(settings, "assigner", tmp_path), SidstreamProcess(settings, "indexer", tmp_path):
        code, text = publish(settings, tmp_path / "catalogue", "--wait")
    assert code == 1, text
    assert "16 of 16 were refused" in text
    assert "16 × WrongDimension: 64 bytes of embedding; this codebook takes 32" in text
    assert f"sidstream dlq show {settings.topics.item_updates_dead_letters}/0:" in text


def test_table_of_texts_is_embedded_and_followed_by_its_texts(
    pipeline_settings: Settings, towers: Towers, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    table, embed = tmp_path / "shop.csv", ("--embed", towers.directory)
    table.write_text("sku,title,brand\n1,red kettle,Alta\n2,,\n3,blue rug,Alta\n")
    code, text = publish(pipeline_settings, table, "--id", "sku", *embed)
    assert (code, "2 item updates are on" in text) == (1, True), text
    assert "shop.csv row 2: item '2' has no text" in text
    state = ("--state", tmp_path / "state")
    code, text = publish(pipeline_settings, table, "--id", "sku", *embed, *state)
    assert (code, "2 new items, 0 changed" in text, "row 2: item '2' has no text" in text) == (1, True, True), text
    table.write_text("sku,title,brand\n1,red kettle,Alta\n3,green rug,Alta\n")
    code, text = publish(pipeline_settings, table, "--id", "sku", *embed, *state)
    assert (code, "0 new items, 1 changed, 1 as before" in text) == (0, True), text
    records = committed_records(pipeline_settings, pipeline_settings.topics.item_updates)
    assert sorted(record.key() for record in records) == [b"1", b"1", b"3", b"3", b"3"]
    newest = ITEM_UPDATE.decode([record for record in records if record.key() == b"3"][-1].value())
    expected = towers.item_encoder().encode_items([CatalogueItem(id="3", title="green rug", brand="Alta")])
    assert np.array_equal(np.frombuffer(newest.embedding, "<f4"), expected[0])
