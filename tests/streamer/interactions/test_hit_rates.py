"""How often answers were chosen, counted on a real broker and by the command."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import tomli_w
from confluent_kafka import Producer
from typer.testing import CliRunner

from sidstream import app
from streamer.client.interactions import InteractionPublisher
from streamer.events.interactions import KINDS, Kind
from streamer.events.records import ANSWER, Answer, AnswerError, AnswerItem
from streamer.interactions.hit_rates import BundleHitRates, hit_rates
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings
from streamer.shards.parts import AnsweredPart, Step

OLD, NEW = "a" * 16, "b" * 16


def answer(query: str, bundle: str, *, items: int = 10, fails: bool = False) -> tuple[str, bytes]:
    """The answer item-0, item-1 … of a bundle."""
    found = Answer(
        query_id=query,
        items=() if fails else tuple(AnswerItem(item_id=f"item-{n}", title="", sid="", score=-n) for n in range(items)),
        error=AnswerError(kind="DeadlinePassed", message="late") if fails else None,
        bundle=bundle,
    )
    return query, ANSWER.encode(found)


def send(settings: Settings, *answers: tuple[str, bytes]) -> None:
    producer = Producer(producer_configuration(settings.kafka))
    for query, value in answers:
        producer.produce(settings.topics.results, key=query, value=value)
    assert producer.flush(30) == 0


def test_hits_are_counted_once_a_query_bundle_by_bundle(
    pipeline_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline_settings
    send(settings, answer("early", OLD))
    time.sleep(0.1)
    since = int(time.time() * 1000)
    time.sleep(0.1)
    answers = [answer(f"old-{n}", OLD) for n in range(8)] + [answer(f"new-{n}", NEW) for n in range(4)]
    send(settings, *answers, answer("old-0", OLD), answer("failed", NEW, fails=True), ("junk", b"no answer"))
    chosen: list[tuple[str, int, Kind]] = [
        ("old-0", 0, "click"), ("old-0", 4, "click"), ("old-0", 7, "purchase"),
        ("old-1", 9, "view"),
        ("old-2", 99, "click"),  # of no item of the answer
        ("new-0", 3, "purchase"), ("new-1", 0, "cart"), ("new-2", 0, "click"),
        ("early", 0, "click"), ("failed", 0, "click"), ("nobody's", 0, "click"),
    ]  # fmt: skip
    random.Random(3).shuffle(chosen)
    with InteractionPublisher(settings) as publisher:
        for query, rank, kind in [*chosen, *chosen]:
            publisher.send("ada", f"item-{rank}", kind, query=query, at=since)
        publisher.send("ada", "item-0", "click")

    found = hit_rates(settings, since)
    assert [(one.bundle, one.answered, one.interacted) for one in found.bundles] == [(OLD, 8, 3), (NEW, 4, 3)]
    old, new = found.bundles
    assert old.hits == {
        "any": {1: 1, 5: 1, 10: 2}, "view": {1: 0, 5: 0, 10: 1}, "click": {1: 1, 5: 1, 10: 1}, "cart": {1: 0, 5: 0, 10: 0},
        "purchase": {1: 0, 5: 0, 10: 1},
    }  # fmt: skip
    assert (new.hits["any"], new.hits["purchase"]) == ({1: 2, 5: 3, 10: 3}, {1: 0, 5: 1, 10: 1})
    assert (found.interactions, found.unmatched) == (22, 6)
    assert found.first_answer is not None
    assert since <= found.first_answer <= int(time.time() * 1000)
    assert (new.rate(1), new.rate(5, "purchase")) == (0.5, 0.25)
    assert found.of(NEW) == new
    assert found.of("c" * 16).answered == 0
    assert hit_rates(settings, since, since + 1).bundles == ()

    configuration = tmp_path / "sidstream.toml"
    configuration.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    monkeypatch.setenv("SIDSTREAM_CONFIG", str(configuration))
    printed = CliRunner().invoke(app, ["hit-rates", "--since", "1h", "--at", "5", "--json"])
    assert printed.exit_code == 0
    whole = json.loads(printed.stdout)
    assert [one["answered"] for one in whole["bundles"]] == [9, 4]
    assert whole["bundles"][1]["hits"]["any"] == {"5": 3}
    table = CliRunner().invoke(app, ["hit-rates", "--since", "1h"]).output
    assert NEW in table
    assert "50.00%" in table


def part_of(query: str, partitions: str, step: Step, *scored: tuple[str, float]) -> tuple[str, bytes]:
    """What the shard of these partitions says in a round."""
    part = AnsweredPart(
        partitions=partitions, partition_count=4, step=step, order=tuple((score, 0, 0) for _, score in scored)
    )
    items = tuple(AnswerItem(item_id=name, title="", sid="", score=score) for name, score in scored)
    return query, ANSWER.encode(Answer(query_id=query, items=items, bundle=NEW, part=part))


def test_answer_of_several_shards_is_one_whose_items_stand_in_the_order_of_their_scores(
    pipeline_settings: Settings,
) -> None:
    settings, since = pipeline_settings, int(time.time() * 1000) - 1_000
    send(
        settings,
        part_of("q", "0-1", "search"),
        part_of("q", "2-3", "search"),
        part_of("q", "0-1", "items", ("a", -1.0), ("c", -3.0)),
        part_of("q", "2-3", "items", ("b", -2.0), ("d", -4.0)),
        part_of("r", "2-3", "items", ("d", -4.0)),  # the other shard did not answer
    )
    with InteractionPublisher(settings) as publisher:
        publisher.send("ada", "c", "click", query="q")  # third of both
        publisher.send("ada", "d", "click", query="r")
    [found] = hit_rates(settings, since, at=(1, 2, 3)).bundles
    assert (found.bundle, found.answered, found.interacted) == (NEW, 2, 2)
    assert found.hits["any"] == {1: 1, 2: 1, 3: 2}


def test_interval_is_wilsons() -> None:
    def of(hits: int, answered: int) -> tuple[float, float]:
        return BundleHitRates(bundle="", answered=answered, interacted=hits, hits={"any": {5: hits}}).interval(5)

    assert of(0, 0) == (0.0, 1.0)
    assert of(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # as statsmodels has it
    assert of(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert set(KINDS) == {"view", "click", "cart", "purchase"}
