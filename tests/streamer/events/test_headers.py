"""A record whose header name is not UTF-8, which any producer can write and confluent-kafka cannot read: a dead letter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamer.settings import Settings
from support.item_stream import publish_updates
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until

# Only aiokafka's Python encoder takes a text that encodes itself.
PRODUCE = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Bytes(str):
    def encode(self, *arguments):
        return b"\\xff\\xfe"

async def send(servers, topic):
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        await producer.send_and_wait(topic, b"{}", key=b"poison", headers=[(Bytes("name"), b"content")])

asyncio.run(send(*sys.argv[1:]))
"""


def test_record_with_an_unreadable_header_is_a_dead_letter_and_the_next_one_goes_on(
    pipeline_settings: Settings, tiny_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    topics = settings.topics
    publish_updates(settings, tiny_embeddings, range(20))  # the interpreter specialises calls that it has seen
    subprocess.run(
        [sys.executable, "-c", PRODUCE, settings.kafka.bootstrap_servers, topics.item_updates],
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    publish_updates(settings, tiny_embeddings, range(20, 40))
    with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
        wait_until(lambda: len(committed_records(settings, topics.item_codes)) == 40, what="40 items", every=0.5)
        assert assigner.stop() == 0
    [letter] = committed_records(settings, topics.item_updates_dead_letters)
    headers = dict(letter.headers())
    assert headers["dlq.errors.class"] == b"UndecodableHeaders"
    assert headers["dlq.errors.omitted"].startswith(b"headers")
    assert (letter.key(), letter.value()) == (b"poison", b"{}")
