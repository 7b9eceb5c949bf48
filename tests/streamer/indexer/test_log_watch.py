"""A log that is not the one the index was read from: refused with what to do, and nothing written after it was noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from models.sids.layout import Layout
from store.checks.backup import back_up
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from streamer.deployments.pipelines import settings_of
from streamer.events.serving import Pipeline
from streamer.events.topics import topic_specs
from streamer.indexer.log_watch import LogMismatchError, LogWatch, require_own_logs, require_reachable
from streamer.indexer.rebuild import rebuild
from streamer.kafka.admin import create
from streamer.kafka.clients import client_configuration
from streamer.kafka.partition_watch import topic_states
from streamer.settings import Settings, load_settings
from streamer.settings.kafka import TOPIC_NAMES
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, wait_until
from support.running_indexer import running_indexer, send_codes


def make_anew(settings: Settings, topic: str) -> None:
    admin = AdminClient(client_configuration(settings.kafka))
    admin.delete_topics([topic], operation_timeout=20)[topic].result()
    wait_until(lambda: topic not in topic_states(settings.kafka, [topic]), what="a deleted topic")
    create(settings.kafka, [spec for spec in topic_specs(settings) if spec.name == topic])


def read_five(settings: Settings, layout: Layout, index: Path | None = None) -> dict[tuple[str, int], int]:
    """Five items in partition 0; where the index then stands."""
    send_codes(settings, layout, *({"key": b"%d" % number, "partition": 0, "codes": (1, 2, 3)} for number in range(5)))
    with running_indexer(settings, layout, index) as running:
        wait_until(lambda: running.health.ready, what="an indexer that has caught up")
    assert running.fault is None
    with IndexReader(index or settings.index) as reader, reader.snapshot() as snapshot:
        return snapshot.position


def test_index_remembers_the_ids_of_its_logs(settings: Settings, layout: Layout) -> None:
    read_five(settings, layout)
    topics = settings.topics
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert snapshot.log_ids == {
            topic: state.topic_id
            for topic, state in topic_states(
                settings.kafka, [topics.item_codes, topics.item_attributes, topics.layouts, topics.item_updates]
            ).items()
        }
        assert rebuild(settings, settings.index.with_name("fresh")).digest == snapshot.digest()
        with IndexReader(settings.index.with_name("fresh")) as fresh, fresh.snapshot() as rebuilt:
            assert rebuilt.log_ids == snapshot.log_ids


@pytest.mark.parametrize("topic", ["item_codes", "item_attributes", "layouts", "item_updates"])
def test_topic_that_was_made_anew_is_refused_at_the_start_and_nothing_is_written(
    settings: Settings, layout: Layout, topic: str
) -> None:
    """As many records as before: offsets alone would not show it."""
    read_five(settings, layout)
    name = getattr(settings.topics, topic)
    make_anew(settings, name)
    if topic == "item_codes":
        send_codes(settings, layout, *({"key": b"x", "partition": 0, "codes": (1, 2, 3)} for _ in range(9)))
    with running_indexer(settings, layout) as running:
        running.thread.join(PATIENCE_SECONDS)
    assert isinstance(running.fault, LogMismatchError)
    assert f"{name} was made anew" in str(running.fault)
    assert str(settings.index) in str(running.fault)
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert snapshot.find([b"x"]) == [None]


def test_index_is_refused_once_the_settings_name_other_topics_and_nothing_is_written(
    settings: Settings, layout: Layout
) -> None:
    """It once read the new topics on top of the old ones: nobody could delete what it had of those."""
    position = read_five(settings, layout)
    names = {name: f"b-{getattr(settings.topics, name)}" for name in TOPIC_NAMES}
    renamed = settings.model_copy(update={"topics": settings.topics.model_copy(update=names)})
    create(renamed.kafka, topic_specs(renamed))
    with running_indexer(renamed, layout) as running:
        running.thread.join(PATIENCE_SECONDS)
    assert isinstance(running.fault, LogMismatchError)
    told = str(running.fault)
    assert f"the index {settings.index} is of {settings.topics.item_attributes}, {settings.topics.item_codes}," in told
    assert f"the settings name b-{settings.topics.item_codes}, b-{settings.topics.item_attributes}," in told
    assert f"name another `index` for these topics, or delete {settings.index} (it is a cache)" in told
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert snapshot.position == position
        assert renamed.topics.item_codes not in snapshot.log_ids
    with running_indexer(renamed, layout, settings.index.with_name("another")) as running:
        wait_until(lambda: running.health.ready, what="an index of the other topics")
    with running_indexer(settings, layout) as running:
        wait_until(lambda: running.health.ready, what="the index under the names of before")


@pytest.mark.parametrize(
    ("remembered", "words"),
    [
        ([], None),
        (["item-codes", "item-attributes", "layouts", "item-updates"], None),
        (["item-codes", "layouts"], None),  # an older sidstream read no more
        (
            ["a-item-codes", "layouts"],
            "is of a-item-codes, and the settings name item-codes, item-attributes, item-updates",
        ),
        (["item-codes", "a-attributes", "layouts", "item-updates"], "is of a-attributes, and .* name item-attributes:"),
        (
            ["item-codes", "item-attributes", "layouts", "a-updates"],
            "name item-updates: .*make it anew while the assigner",
        ),
        (["item-codes-2f", "item-attributes", "layouts", "item-updates"], "is of item-codes-2f, .* name item-codes:"),
        # Read before it was noticed: what lies in it of the other pipeline stays until it is deleted.
        (
            ["item-codes", "item-attributes", "layouts", "item-updates", "a-item-codes"],
            "is of a-item-codes, and the settings name item-codes, item-attributes, layouts, item-updates: .* delete",
        ),
    ],
)
def test_index_must_be_of_topics_that_the_settings_name(remembered: list[str], words: str | None) -> None:
    if words is None:
        require_own_logs(load_settings(), remembered)
    else:
        with pytest.raises(LogMismatchError, match=words):
            require_own_logs(load_settings(), remembered)


def test_index_of_a_second_codebook_is_of_its_own_topic_of_codes() -> None:
    pipeline = Pipeline(codebook="2f" * 8, bundle="b", suffix="-2f", since=1)
    settings = settings_of(load_settings(), pipeline, bundle=Path("bundle"))
    own = ["item-codes-2f", "item-attributes", "layouts", "item-updates"]
    require_own_logs(settings, own)
    with pytest.raises(LogMismatchError, match="is of item-codes, and the settings name item-codes-2f:"):
        require_own_logs(settings, ["item-codes", *own[1:]])


def test_topic_that_is_made_anew_while_running_ends_the_indexer_with_what_to_do(
    settings: Settings, layout: Layout, tmp_path: Path
) -> None:
    read_five(settings, layout)
    with SidstreamProcess(settings, "indexer", tmp_path) as indexer:
        wait_until(lambda: "caught_up" in indexer.log(), what="an indexer at work")
        make_anew(settings, settings.topics.item_codes)
        send_codes(settings, layout, *({"key": b"x", "partition": 0, "codes": (1, 2, 3)} for _ in range(3)))
        assert indexer.wait() == 1
        assert "Delete" in indexer.log()
        assert str(settings.index) in indexer.log()
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert snapshot.find([b"x"]) == [None]


def test_log_whose_beginning_moved_past_the_index_is_refused(settings: Settings, layout: Layout) -> None:
    """Records between are gone, deletions among them; another policy or delete-records does that, never compaction."""
    position = read_five(settings, layout)
    topic = settings.topics.item_codes
    assert position[topic, 1] == 0, "a partition without records is noted, too"
    send_codes(settings, layout, *({"key": b"y", "partition": 1, "codes": (1, 2, 3)} for _ in range(4)))
    admin = AdminClient(client_configuration(settings.kafka))
    policy = ConfigEntry("cleanup.policy", "compact,delete", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[policy])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result()

    def deleted() -> bool:
        try:
            for answer in admin.delete_records([TopicPartition(topic, 1, 3)]).values():
                answer.result()
        except KafkaException as error:
            # A broker acknowledges another policy a moment before it goes by it.
            if error.args[0].code() != KafkaError.POLICY_VIOLATION:
                raise
            return False
        return True

    wait_until(deleted, what="records are deleted under the new policy")
    with running_indexer(settings, layout) as running:
        running.thread.join(PATIENCE_SECONDS)
    assert isinstance(running.fault, LogMismatchError)
    assert f"stands at offset 0 of {topic}/1, which begins at 3" in str(running.fault)
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert snapshot.find([b"y"]) == [None]


def test_index_of_another_log_is_refused_by_restore_before_anything_moves_and_by_the_indexer(
    settings: Settings, layout: Layout, tmp_path: Path
) -> None:
    read_five(settings, layout)
    with IndexWriter.open(
        settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        writer.remember_log_ids({settings.topics.item_codes: "of-another-cluster"})
    copied = back_up(settings.index, tmp_path / "copy")
    assert copied.log_ids[settings.topics.item_codes] == "of-another-cluster"
    process = SidstreamProcess(settings, "indexer", tmp_path)  # for its environment
    answer = subprocess.run(
        [sys.executable, "-m", "sidstream", "restore", str(tmp_path / "copy"), "--replace"],
        env=process._environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 1
    assert "is not the log that the backup" in answer.stderr
    assert "sidstream rebuild" in answer.stderr
    assert not list(tmp_path.glob("index.replaced*"))
    with running_indexer(settings, layout) as running:
        running.thread.join(PATIENCE_SECONDS)
    assert isinstance(running.fault, LogMismatchError)


def test_cut_index_ends_the_indexer_with_a_sentence(settings: Settings, layout: Layout, tmp_path: Path) -> None:
    read_five(settings, layout)
    os.truncate(settings.index / "data.mdb", 16_384)
    with SidstreamProcess(settings, "indexer", tmp_path) as indexer:
        assert indexer.wait() == 1
        assert "is damaged" in indexer.log()
        assert "Traceback" not in indexer.log()


@pytest.mark.parametrize(
    ("position", "low", "high", "words"),
    [
        (7, 0, 5, "ends at 5.*made anew.*Delete"),
        (3, 4, 9, "begins at 4.*gone.*delete"),
        (5, 5, 5, None),
        (0, 0, 0, None),
    ],
)
def test_position_must_lie_within_the_log(position: int, low: int, high: int, words: str | None) -> None:
    if words is None:
        require_reachable(load_settings(), ("item-codes", 2), position, low, high)
    else:
        with pytest.raises(LogMismatchError, match=words):
            require_reachable(load_settings(), ("item-codes", 2), position, low, high)


def test_answer_without_an_offset_is_no_end_of_the_log(
    settings: Settings, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is killed leaves such answers (-1001, and no error); the index was once called one of another log."""
    read_five(settings, layout)
    asked = []

    class Admin:
        def list_offsets(self, places: dict[TopicPartition, Any], **_: Any) -> dict[TopicPartition, Future[Any]]:
            asked.append(places)
            answers: dict[TopicPartition, Future[Any]] = {place: Future() for place in places}
            for answer in answers.values():
                answer.set_result(SimpleNamespace(offset=-1001))
            return answers

    with IndexWriter.open(
        settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        watch = LogWatch(settings, writer, clock=count(step=100).__next__)
        monkeypatch.setattr(watch, "_admin", Admin())
        for _ in range(4):
            watch.look(writer.offsets())
    assert len(asked) >= 4  # the first and the last offsets, and once more after that answer
