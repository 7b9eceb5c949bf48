"""The gateway: asking over HTTP against asking through Kafka directly, with as many queries in flight, by turns in one minute.

Who answers is no retriever but a process that sends a fixed answer of ten items at once: what is measured is the way to it and
back. Both sides keep the same number of queries in flight; HTTP over connections that stay open. What the gateway's process takes
of a processor for a query stands beside it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.common.own_process import other_process
from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.stream.freshness import Latency
from benchmarks.stream.running_pipeline import PATIENCE_SECONDS, Running, pipeline, status
from retriever.asking import Results, query_producer, query_record
from streamer.events.records import ANSWER, QUERY, Answer, AnswerItem, Query
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain
from streamer.settings import Settings

ITEMS: Final = 10
_TURN_SECONDS: Final = 2.0
_GROUP: Final = "benchmark-answers"


@dataclass
class Asked:
    """What one way has shown: queries answered, the seconds of each, and the seconds of all turns."""

    latencies: list[float]
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def latency(self) -> Latency:
        return Latency.of(np.array(self.latencies))


def query() -> Query:
    return Query(text="electric kettle with a glass body", history=("sku-4", "sku-9"), limit=ITEMS)


class ThroughKafka:
    """One thread, a consumer of all results and a producer, as ``retriever.client`` has."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topics.queries
        self._results, self._producer = Results(settings), query_producer(settings)

    def turn(self, in_flight: int, seconds: float) -> list[float]:
        """Seconds of every query that was answered within the turn."""
        sent_at: dict[bytes, float] = {}
        found: list[float] = []

        def send() -> None:
            query_id = uuid.uuid4().hex
            sent_at[query_id.encode()] = time.perf_counter()
            self._producer.produce(self._topic, **query_record(query_id, query(), PATIENCE_SECONDS))

        until = time.perf_counter() + seconds
        for _ in range(in_flight):
            send()
        while sent_at:
            self._producer.poll(0)
            for record in self._results.read(0.05):
                if (at := sent_at.pop(record.key(), None)) is None:
                    continue
                ANSWER.decode(record.value())  # who asks wants to read it
                now = time.perf_counter()
                if now < until:
                    found.append(now - at)
                    send()
        return found


class OverHttp:
    """As many connections as queries in flight, each with its next query once it has its answer."""

    def __init__(self, settings: Settings) -> None:
        self._host, self._port = settings.gateway.host, settings.gateway.port
        body = msgspec.json.encode(query())
        self._request = (
            f"POST /query HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def turn(self, in_flight: int, seconds: float) -> list[float]:
        """As ``ThroughKafka.turn``."""
        return asyncio.run(self._all(in_flight, seconds))

    async def _all(self, in_flight: int, seconds: float) -> list[float]:
        connections = [await asyncio.open_connection(self._host, self._port) for _ in range(in_flight)]
        until = time.perf_counter() + seconds
        found = await asyncio.gather(*(self._one(*connection, until) for connection in connections))
        return [latency for own in found for latency in own]

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: float) -> list[float]:
        found: list[float] = []
        while (at := time.perf_counter()) < until:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the gateway has answered {head.decode('latin-1')}")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            ANSWER.decode(await reader.readexactly(length))
            if (now := time.perf_counter()) < until:
                found.append(now - at)
        writer.close()
        return found


def answer_all(pipe: Connection, settings: Settings) -> None:
    """In a process of its own: a fixed answer to every query, at once."""
    items = tuple(
        AnswerItem(
            item_id=f"sku-{number}", title=f"Glass electric kettle, {number} l", sid="<a_12><b_7><c_40>", score=-3.1
        )
        for number in range(ITEMS)
    )
    answer = Answer(query_id="", items=items, layout=1, model="none", milliseconds={"decode": 1.0})
    consumer = Consumer(consumer_configuration(settings.kafka, group=_GROUP, fetch_wait_max_ms=10))
    topic = settings.topics.queries
    partitions = consumer.list_topics(topic, timeout=PATIENCE_SECONDS).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    producer = Producer(producer_configuration(settings.kafka, linger_ms=0))
    pipe.send("ready")
    while not pipe.poll():
        for record in drain(consumer, 500, 0.02):
            QUERY.decode(record.value())
            value = ANSWER.encode(msgspec.structs.replace(answer, query_id=record.key().decode()))
            producer.produce(settings.topics.results, key=record.key(), value=value)
        producer.poll(0)
    pipe.recv()
    consumer.close()


def measure(running: Running, in_flight: int, seconds: float) -> tuple[dict[str, Asked], float]:
    """Both ways by turns, the first turn of each not counted; and the gateway's processor seconds for a query."""
    ways: dict[str, ThroughKafka | OverHttp] = {
        "kafka": ThroughKafka(running.settings),
        "http": OverHttp(running.settings),
    }
    found = {name: Asked([]) for name in ways}
    spent = 0.0
    for turn in range(max(2, round(seconds / _TURN_SECONDS)) + 1):
        for name, way in ways.items():
            used = running.processor_seconds().get("gateway", 0.0)
            latencies = way.turn(in_flight, _TURN_SECONDS)
            if not turn:
                continue
            found[name].latencies += latencies
            found[name].seconds += _TURN_SECONDS
            if name == "http":
                spent += running.processor_seconds().get("gateway", 0.0) - used
    return found, spent / len(found["http"].latencies)


def rows(found: dict[str, Asked], processor_seconds: float, in_flight: int) -> list[Result]:
    kafka, http, name = found["kafka"], found["http"], f"{in_flight} in flight"
    base = "through Kafka directly"
    return [
        Result(
            f"asking over HTTP, {name}",
            http.per_second,
            "queries/s",
            base,
            kafka.per_second,
            Target.ratio_at_least(0.3),
        ),
        Result(f"p50, {name}", http.latency.p50, "ms", base, kafka.latency.p50),
        Result(f"p99, {name}", http.latency.p99, "ms", base, kafka.latency.p99, Target.ratio_at_most(3.0)),
        Result(f"processor time of the gateway for a query, {name}", processor_seconds * 1e6, "µs"),
    ]


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument(
        "--in-flight", type=int, nargs="+", default=(1, 32), help="queries at once (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10, help="of each way (default: %(default)s)")
    arguments = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="sidstream-benchmark-") as directory, ExitStack() as stack:
        running = stack.enter_context(pipeline(Path(directory)))
        stack.callback(running.stop)
        answering = stack.enter_context(other_process(answer_all, running.settings))
        stack.callback(lambda: answering.send(None))
        running.start("gateway")
        for in_flight in arguments.in_flight:
            status(f"asking with {in_flight} in flight …")
            results += rows(*measure(running, in_flight, arguments.seconds), in_flight)
    return report(f"The gateway, {ITEMS} items an answer", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
