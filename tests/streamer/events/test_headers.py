"""A record whose header name is not UTF-8, which any producer can write and confluent-kafka cannot read: a dead letter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamer.settings import Settings
from support.item_stream import publish_updates
from support.processes import SidstreamProcess, committed_records, wait_until
from support.unreadable_headers import send_unreadable_header


def test_record_with_an_unreadable_header_is_a_dead_letter_and_the_next_one_goes_on(
    pipeline_settings: Settings, tiny_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    topics = settings.topics
    publish_updates(settings, tiny_embeddings, range(20))  # the interpreter specialises calls that it has seen
    send_unreadable_header(settings, topics.item_updates, key="poison", value="{}")
    publish_updates(settings, tiny_embeddings, range(20, 40))
    with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
        wait_until(lambda: len(committed_records(settings, topics.item_codes)) == 40, what="40 items", every=0.5)
        assert assigner.stop() == 0
    [letter] = committed_records(settings, topics.item_updates_dead_letters)
    headers = dict(letter.headers())
    assert headers["dlq.errors.class"] == b"UndecodableHeaders"
    assert headers["dlq.errors.omitted"].startswith(b"headers")
    assert (letter.key(), letter.value()) == (b"poison", b"{}")


def test_headers_are_read_by_the_one_guarded_function_alone() -> None:
    root = Path(__file__).parents[3]
    for part in ("streamer", "retriever", "store", "models", "demo", "study", "benchmarks"):
        for path in (root / part).rglob("*.py"):
            assert not re.search(r"\.headers\(\)", path.read_text()) or path.name == "headers.py", (
                f"{path.relative_to(root)} reads headers without streamer.events.headers.headers_of"
            )
