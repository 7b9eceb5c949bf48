"""A retriever process on a real broker whose record changes while it is asked: one answer a query, by the bundle of its user."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.codebooks.codebook import Codebook
from retriever.client import Client
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.deployments.log import change_serving
from streamer.events.records import ANSWER, QUERY, Answer, Query
from streamer.events.serving import Serving
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings
from support.deployed import serving, stored_twins
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until

ITEMS = 100
USERS = [f"user-{number}" for number in range(40)]
BETWEEN_SECONDS = 0.03
STEADY_QUERIES = 60  # asked while no change is under way


class Asking:
    """Asks without a pause, in a thread; ``asked``: the user of each query id, in the order of asking."""

    def __init__(self, settings: Settings) -> None:
        self.asked: dict[str, str] = {}
        self._settings = settings

    def __len__(self) -> int:
        return len(self.asked)

    @contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._ask, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _ask(self, ended: threading.Event) -> None:
        producer = Producer(producer_configuration(self._settings.kafka, linger_ms=0))
        for number in itertools.count():
            query_id, user = f"query-{number}", USERS[number % len(USERS)]
            value = b"{" if number % 20 == 7 else QUERY.encode(Query(text=f"thing {number}", user=user, limit=3))
            producer.produce(self._settings.topics.queries, key=query_id, value=value)
            producer.poll(0)
            self.asked[query_id] = user if value != b"{" else query_id
            if ended.wait(BETWEEN_SECONDS):
                break
        producer.flush()


def test_queries_are_answered_once_each_by_the_bundle_of_their_user_through_canary_promotion_rollback_and_kill_9(
    pipeline_settings: Settings, tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundles": tmp_path / "store"})
    old, new = stored_twins(settings.bundles, tiny_model_bundle, ["old", "new"], tmp_path)
    write_index(settings, old, tiny_embeddings)
    asking, steady = Asking(settings), list[tuple[int, int, Serving]]()

    def changed(record: Serving, cause: str) -> Serving:
        return change_serving(settings, lambda _: record, cause=cause)

    def wait_for(record: Serving) -> None:
        """Until a user whose bundle it changes has the new one; what is asked then, and answered, is steady."""
        before = steady[-1][2] if steady else record
        user = next((user for user in USERS if record.answers(user) != before.answers(user)), USERS[0])
        wait_until(
            lambda: client.ask("thing", user=user, timeout_seconds=PATIENCE_SECONDS).bundle == record.answers(user),
            what=f"{user} has the bundle of {record}",
        )
        begin = len(asking)
        wait_until(lambda: len(asking) >= begin + STEADY_QUERIES, what="some queries more")
        end = len(asking)
        wait_until(lambda: set(list(asking.asked)[begin:end]) <= answers().keys(), what="their answers", every=0.5)
        steady.append((begin, end, record))

    def answers() -> dict[str, list[Answer]]:
        """Those of the stream of queries, by their ids."""
        found: dict[str, list[Answer]] = defaultdict(list)
        for record in committed_records(settings, settings.topics.results):
            answer = ANSWER.decode(record.value())
            if answer.query_id in asking.asked:
                found[answer.query_id].append(answer)
        return found

    changed(serving(old, new), "the start")
    with SidstreamProcess(settings, "retriever", tmp_path) as retriever, Client(settings) as client:
        client.ask("thing", timeout_seconds=PATIENCE_SECONDS)
        with asking.running():
            wait_for(serving(old, new))

            half = changed(serving(old, new, canary=new.id, share=0.5), "half of the users")
            wait_until(lambda: "serving_changed" in retriever.log(), what="the retriever has the change", every=0.01)
            time.sleep(0.05)  # it loads
            retriever.kill()
            retriever.start()
            wait_for(half)

            wait_for(changed(serving(old, new, bundle=new.id, previous=old.id), "all of them"))
            wait_for(changed(serving(old, new, bundle=old.id, previous=new.id), "a rollback"))

        wait_until(lambda: answers().keys() == asking.asked.keys(), what="all are answered", every=0.5)
        assert retriever.stop() == 0
        answered = answers()

    assert {query_id for query_id, own in answered.items() if len(own) != 1} == set(), "one answer each"
    by = {query_id: answer for query_id, [answer] in answered.items()}
    assert {answer.bundle for answer in by.values()} == {old.id, new.id}, "every answer names its bundle"
    order = list(asking.asked.items())
    wrong = [
        (query_id, user, by[query_id].bundle, record.cause)
        for begin, end, record in steady
        for query_id, user in order[begin:end]
        if by[query_id].bundle != record.answers(user)
    ]
    assert not wrong
    errors = {answer.error.kind for answer in by.values() if answer.error is not None}
    assert errors == {"UndecodableEvent"}, "those that are no queries"


def write_index(settings: Settings, bundle: Bundle, embeddings: NDArray[np.float32]) -> None:
    layout = bundle.layout
    with IndexWriter.open(
        settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        codes = Codebook.load(bundle.codebook_path).encode(embeddings[:ITEMS])
        ids = [f"item-{number}".encode() for number in range(ITEMS)]
        items = CodesBatch(
            ids, codes, np.ones(ITEMS, np.float32), [""] * ITEMS, np.zeros(ITEMS, np.int64), np.zeros(ITEMS, bool)
        )
        writer.apply(items, {(settings.topics.item_codes, 0): ITEMS})
