"""The way from interactions on a real broker to a file that `sidstream train` and `sidstream evaluate` read."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from confluent_kafka import Producer
from numpy.typing import NDArray
from typer.testing import CliRunner

from models.catalogue import Catalogue, CatalogueItem
from models.data_files import DataFileError
from sidstream import app
from streamer.client.interactions import publish_interactions
from streamer.events.interactions import KINDS
from streamer.events.records import QUERY, Query
from streamer.events.topics import topic_specs
from streamer.interactions.examples import ExamplesError, make_examples
from streamer.interactions.moments import written_moment
from streamer.interactions.point_in_time import Window
from streamer.kafka.admin import create
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings
from support.processes import committed_records

USERS, STEPS, ITEMS = 30, 8, 60
START = (time.time_ns() // 1_000_000) - 3_600_000
MINUTE = 60_000


def interactions(seed: int) -> list[tuple[str, dict[str, Any]]]:
    """User u does a step each minute, in the order of its walk; its last step is the click on the answer of a query."""
    walks = np.random.default_rng(seed)
    found = []
    for user in range(USERS):
        for step, item in enumerate(walks.permutation(ITEMS)[:STEPS].tolist()):
            at = START + step * 6 * MINUTE + user
            found.append((f"user-{user}", {"item": f"item-{item}", "kind": KINDS[step % 4], "at": at}))
        found[-1][1].update(query=f"query-{user}", at=int(time.time() * 1000) + MINUTE)
    return found


def send(settings: Settings, records: list[tuple[str, dict[str, Any]]], chance: random.Random) -> None:
    """Late, out of order, some of them twice, in partitions that no partitioner would choose, records of no use between."""
    sent = records + chance.sample(records, len(records) // 3)
    chance.shuffle(sent)
    producer = Producer(producer_configuration(settings.kafka))
    for user in range(USERS):
        query = Query(text=f"thing {user}", history=("item-1", "item-2") if user % 2 else (), user=f"user-{user}")
        producer.produce(settings.topics.queries, key=f"query-{user}", value=QUERY.encode(query))
    producer.produce(settings.topics.queries, key="query-0", value=b"no query")
    for key, value in sent:
        partition = chance.randrange(settings.topics.partitions)
        producer.produce(settings.topics.interactions, key=key, value=json.dumps(value), partition=partition)
        if chance.random() < 0.1:
            producer.produce(settings.topics.interactions, key=key, value=b"nothing", partition=partition)
    assert producer.flush(30) == 0


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_interactions_give_the_same_file_however_they_lie_on_the_topics(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    window = Window(START, int(time.time() * 1000) + 2 * MINUTE, KINDS, KINDS)
    records = interactions(1)
    other = pipeline_settings.model_copy(
        update={
            "topics": pipeline_settings.topics.model_validate(
                {"prefix": f"{pipeline_settings.topics.prefix}b-", "partitions": 2}
            )
        }
    )
    create(other.kafka, topic_specs(other))
    files = []
    for seed, settings in enumerate((pipeline_settings, other)):
        send(settings, records, random.Random(seed))
        made = make_examples(settings, window, tmp_path / f"{seed}.jsonl")
        assert (made.examples, made.users, made.refused) == (USERS * (STEPS - 1), USERS, made.letters)
        assert made.letters > 0
        assert made.joined == made.named >= USERS
        assert make_examples(settings, window, tmp_path / f"{seed}.jsonl.gz").letters == 0
        files.append((tmp_path / f"{seed}.jsonl").read_bytes())
        assert gzip.decompress((tmp_path / f"{seed}.jsonl.gz").read_bytes()) == files[-1]
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "0.jsonl.gz", "1.jsonl", "1.jsonl.gz"]

    walk = [said for user, said in records if user == "user-3"]
    found = [line for line in lines(tmp_path / "0.jsonl") if line["user"] == "user-3"]
    assert [line["item"] for line in found] == [said["item"] for said in walk[1:]]
    assert [line["time"] for line in found] == [said["at"] for said in walk[1:]]
    for step, line in enumerate(found[:-1], start=1):
        assert line["history"] == [said["item"] for said in walk[:step]]
    assert found[-1]["query"] == "thing 3"
    assert found[-1]["history"] == [item for item in ("item-1", "item-2") if item != walk[-1]["item"]]


def test_window_without_an_example_says_why_and_leaves_the_file_as_it_was(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    output = tmp_path / "examples.jsonl"
    output.write_text("before\n")
    window = Window(START, START + 1, KINDS, KINDS)
    with pytest.raises(ExamplesError, match=r"has no interactions: send some"):
        make_examples(pipeline_settings, window, output)
    send(pipeline_settings, interactions(2), random.Random(0))
    with pytest.raises(ExamplesError, match=r"1 had neither a text nor a history"):
        make_examples(pipeline_settings, window, output)
    with pytest.raises(ExamplesError, match="cannot be written"):
        make_examples(pipeline_settings, window, tmp_path / "no" / "folder.jsonl")
    assert output.read_text() == "before\n"
    assert [path.name for path in tmp_path.iterdir()] == ["examples.jsonl"]


def invoke(*words: object) -> str:
    answer = CliRunner().invoke(app, list(map(str, words)))
    if answer.exception is not None:
        raise answer.exception
    return " ".join(answer.output.split())


def test_model_is_trained_on_what_came_before_a_moment_and_evaluated_on_what_came_after(
    pipeline_settings: Settings,
    tiny_bundle: Path,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    settings = pipeline_settings
    configuration = tmp_path / "sidstream.toml"
    configuration.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    monkeypatch.setenv("SIDSTREAM_CONFIG", str(configuration))
    items = tuple(CatalogueItem(id=f"item-{number}", title=f"thing {number}") for number in range(ITEMS))
    Catalogue(items=items, embeddings=tiny_embeddings[:ITEMS]).write(tmp_path / "shop")
    log = tmp_path / "interactions.jsonl"
    sent = [{"user": user, **said} for user, said in interactions(3)]
    log.write_text("".join(json.dumps(one) + "\n" for one in sent))
    assert f"{len(sent)} interactions are on" in invoke("interactions", log, "--check")

    moment = written_moment(START + 30 * MINUTE)
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl.gz"
    invoke("examples", "--since", "2h", "--until", moment, "--output", train)
    made = json.loads(invoke("examples", "--since", moment, "--output", test, "--json"))
    assert made["examples"] == 2 * USERS, "the last step is still to come"
    assert max(line["time"] for line in lines(train)) < START + 30 * MINUTE <= made["since"]

    bundle = ["--bundle", tmp_path / "bundle"]
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    small = ["--hidden-size", 16, "--model-layers", 1, "--epochs", 0.5]
    said = invoke("train", tmp_path / "shop", *bundle, "--examples", train, *small)
    assert "time" not in said.replace("times", ""), "the moment is no field that training does not know"
    found = tmp_path / "found.json"
    invoke(
        "evaluate", tmp_path / "shop", *bundle, "--examples", test, "--training", train, "--json", found,
        "--resamples", 100, "--require", "unanswered<=0",
    )  # fmt: skip
    assert json.loads(found.read_text())["cases"]["all"] == 2 * USERS


def test_wrong_line_of_a_file_of_interactions_is_named_and_nothing_is_sent(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    good = '{"user": "ada", "item": 17, "kind": "click"}\n'
    for line, said in (
        ("click", "line 2 is no interaction"),
        ('{"item": "a", "kind": "click"}', "line 2: it names no user"),
        ('{"user": "ada", "item": "a", "kind": "like"}', "line 2 is no interaction .*like"),
        ('{"user": "ada", "item": "a", "kind": "click", "at": 1767323045}', "line 2: at 1767323045 looks like seconds"),
        ('{"user": "ada", "item": "a", "kind": "click", "price": 3}', "line 2 is no interaction .*price"),
    ):
        file.write_text(good + line)
        with pytest.raises(DataFileError, match=said):
            publish_interactions(pipeline_settings, file)
    assert committed_records(pipeline_settings, pipeline_settings.topics.interactions) == []
    file.write_text(good)
    assert publish_interactions(pipeline_settings, file) == 1
    [record] = committed_records(pipeline_settings, pipeline_settings.topics.interactions)
    assert record.key() == b"ada"
    assert json.loads(record.value() or b"")["item"] == "17"
