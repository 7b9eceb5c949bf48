"""``sidstream dlq`` on a real broker: letters are shown safely, and replayed once what refused them was changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from streamer.client.publisher import ItemPublisher
from streamer.dead_letters.reading import (
    DeadLetter,
    read_letters,
)
from streamer.settings import Settings
from support.letters import refuse, run, send, updates
from support.processes import SidstreamProcess, committed_records, wait_until


def test_list_and_show_tell_everything_and_no_escape_sequence_reaches_the_terminal(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    settings = pipeline_settings
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
    send(
        settings,
        {"key": evil.encode(), "value": json.dumps({"title": evil}).encode(), "headers": [(f"h{evil}", evil.encode())]},
        {"key": b"plain", "value": b"\x1b[2J raw"},
    )
    refuse(settings, *updates(settings), kind=f"Evil{evil}")
    send(settings, {"key": b"q", "value": b"{"}, topic=settings.topics.queries)
    refuse(settings, *committed_records(settings, settings.topics.queries), stage="retriever", kind="UndecodableEvent")

    listed = run(settings, tmp_path, "dlq", "list")
    assert listed.returncode == 0, listed.stderr
    shown = run(settings, tmp_path, "dlq", "show", f"{settings.topics.item_updates}/1:0")
    assert shown.returncode == 0, shown.stderr
    assert '"title": "\\u001b[2J\\u001b]0;owned\\u0007\\x9b31m\\u202e"' in shown.stdout
    raw = run(settings, tmp_path, "dlq", "show", f"{settings.topics.item_updates}/1:1")
    assert "00000000  1b 5b 32 4a 20 72 61 77" in raw.stdout
    as_json = run(settings, tmp_path, "dlq", "list", "--json")
    one_as_json = run(settings, tmp_path, "dlq", "show", f"{settings.topics.item_updates}/1:0", "--json")
    for output in (listed, shown, raw, as_json, one_as_json):
        assert all(character.isprintable() or character == "\n" for character in output.stdout)
    found = json.loads(as_json.stdout)
    assert found["total"] == 3
    assert {one["class"] for one in found["classes"]} == {f"Evil{evil}", "UndecodableEvent"}
    assert json.loads(one_as_json.stdout)["key"] == evil
    only = json.loads(
        run(
            settings,
            tmp_path,
            "dlq",
            "list",
            "--json",
            "--class",
            "UndecodableEvent",
            "--topic",
            settings.topics.queries,
        ).stdout
    )
    assert [letter["key"] for letter in only["letters"]] == ["q"]

    ambiguous = run(settings, tmp_path, "dlq", "show", "0:0")
    assert ambiguous.returncode == 1
    assert "name one of" in ambiguous.stderr
    missing = run(settings, tmp_path, "dlq", "show", "0:99")
    assert missing.returncode == 1
    assert "there is no dead letter at 0:99" in missing.stderr

    assert "there is no dead letter" in run(settings, tmp_path, "dlq", "show", "9:0").stderr

    dry = run(settings, tmp_path, "dlq", "replay", "--dry-run", "--class", f"Evil{evil}")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.count("would be replayed") == 2
    assert "\x1b" not in dry.stdout


def test_event_refused_for_a_limit_is_indexed_by_a_replay_after_the_limit_was_raised(
    pipeline_settings: Settings, tiny_bundle: Path, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    strict = settings.model_copy(
        update={"assigner": settings.assigner.model_copy(update={"maximum_event_bytes": 1_024})}
    )
    with ItemPublisher(settings) as publisher:
        publisher.update("kettle", tiny_embeddings[0], title="k" * 2_000)

    def refused() -> list[DeadLetter]:
        return list(read_letters(settings, [settings.topics.item_updates_dead_letters]))

    with SidstreamProcess(strict, "assigner", tmp_path):
        wait_until(lambda: len(refused()) == 1, what="a dead letter")
    assert refused()[0].kind == "EventTooLarge"
    done = run(settings, tmp_path, "dlq", "replay")
    assert done.returncode == 0, done.stderr
    assert "1 letters replayed, 0 left" in done.stderr
    with SidstreamProcess(settings, "assigner", tmp_path):
        codes = settings.topics.item_codes
        wait_until(lambda: len(committed_records(settings, codes)) == 1, what="codes", every=0.5)
    assert len(refused()) == 1
