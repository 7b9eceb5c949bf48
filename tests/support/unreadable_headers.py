"""A record whose header name is not UTF-8, which any producer can write and confluent-kafka cannot read."""

from __future__ import annotations

import os
import subprocess
import sys

from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS

# Only aiokafka's Python encoder takes a text that encodes itself.
_PRODUCE = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Bytes(str):
    def encode(self, *arguments):
        return b"\\xff\\xfe"

async def send(servers, topic, partition, key, value):
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        await producer.send_and_wait(
            topic, value.encode() if value else None, key=key.encode(), partition=int(partition),
            headers=[(Bytes("name"), b"content")],
        )

asyncio.run(send(*sys.argv[1:]))
"""


def send_unreadable_header(settings: Settings, topic: str, *, key: str, value: str = "", partition: int = 0) -> None:
    """Send one such record; without a value it is a tombstone."""
    subprocess.run(
        [sys.executable, "-c", _PRODUCE, settings.kafka.bootstrap_servers, topic, str(partition), key, value],
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
        check=True,
        timeout=PATIENCE_SECONDS,
    )
