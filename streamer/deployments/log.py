"""The topic ``serving``: the record that counts now, and a change of it, in one transaction that fences whoever else writes.

What must hold: a change is made from the newest committed record, and is the next one: two operators at once cannot undo each
other unseen. Killed anywhere, either the old record counts or the new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import KafkaException, Message, Producer

from models.errors import SidstreamError
from store.writing.failpoints import Failpoint, reach
from streamer.deployments.pipelines import DeploymentError
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.serving import SERVING, SERVING_KEY, Serving
from streamer.exactly_once.retrying import repeated_for_a_while
from streamer.kafka.admin import require
from streamer.kafka.clients import producer_configuration
from streamer.kafka.errors import FatalKafkaError, Meaning, error_text, took_our_place
from streamer.kafka.gather import produce
from streamer.kafka.read_to_end import end_reader, read_spans, whole_topics
from streamer.settings import Settings

log = structlog.get_logger(__name__)
_BROKER_SECONDS: Final = 10.0
_TAKE_OVER_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.05
_SOMEBODY_ELSE: Final = (
    "somebody else changes what is deployed at this moment: look with `sidstream deployments`, then try again"
)

Change = Callable[[Serving | None], Serving]


class ServingRecordError(SidstreamError):
    """The newest record of ``serving`` cannot be read."""


def read_serving(settings: Settings) -> Serving | None:
    """The record that counts now; None before anything was deployed.

    Raises:
        MissingTopicsError: there is no topic ``serving``.
        ServingRecordError: it holds what this sidstream does not read.
        LogReadError: the broker does not answer.
    """
    topic = settings.topics.serving
    require(settings.kafka, [topic])
    consumer = end_reader(settings, "serving")
    newest: Serving | None = None
    try:
        for reading in read_spans(consumer, whole_topics(consumer, [topic])):
            for record in reading.records:
                newest = decoded(record, newest)
    finally:
        consumer.close()
    return newest


def decoded(record: Message, before: Serving | None) -> Serving | None:
    """What counts after a record of the topic; records of other keys change nothing. Raises ``ServingRecordError``."""
    if record.key() != SERVING_KEY:
        return before
    if (value := record.value()) is None:
        return None
    try:
        found: Serving = SERVING.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServingRecordError(
            f"the record that says what answers cannot be read ({record.topic()} at offset {record.offset()}: {error}): update "
            "sidstream, or find out who else writes to that topic"
        ) from None
    return found


def change_serving(settings: Settings, change: Change, *, cause: str) -> Serving:
    """Writes ``change`` of the newest record; what counts now. A change that gives back the same writes nothing.

    ``cause``: who asks for it, in words. Raises what ``change`` raises, as it was before.
    """
    producer = Producer(
        producer_configuration(settings.kafka, transactional_id=settings.in_cluster("sidstream-serving"), linger_ms=0)
    )
    _called(producer.init_transactions, _TAKE_OVER_SECONDS)  # from here on nobody else's change is committed
    before = read_serving(settings)
    wanted = change(before)
    if wanted == before:
        return wanted
    _require_whole(wanted)
    now = int(time.time() * 1000)
    number = 0 if before is None else before.number + 1
    wanted = msgspec.structs.replace(wanted, number=number, since=now, cause=cause)
    _called(producer.begin_transaction)
    headers = cloud_event_headers("serving", identity=f"serving@{now}", subject=wanted.bundle, at=now)
    produce(producer, settings.topics.serving, key=SERVING_KEY, value=SERVING.encode(wanted), headers=headers)
    reach(Failpoint.SERVING_SENT, producer.flush)
    _called(producer.commit_transaction, _BROKER_SECONDS)
    reach(Failpoint.SERVING_COMMITTED)
    _await_visible(settings, wanted)
    return wanted


def _await_visible(settings: Settings, written: Serving) -> None:
    """A commit is acknowledged a moment before its marker is in the log: whoever reads next must find the change."""
    give_up = time.monotonic() + _BROKER_SECONDS
    while time.monotonic() < give_up:
        found = read_serving(settings)
        if found is not None and found.number >= written.number:
            return
        time.sleep(_LOOK_SECONDS)
    log.warning("serving_not_visible_yet", number=written.number, next="it is committed, and read in a moment")


def _require_whole(serving: Serving) -> None:
    """A record that names what it does not have would leave retrievers with nothing to load. Raises ``DeploymentError``."""
    named = [serving.bundle, *(one for one in (serving.canary, serving.previous) if one is not None)]
    for bundle in named:
        if serving.pipeline_of(bundle) is None:
            raise DeploymentError(
                f"the bundle {bundle} is not deployed, or its codebook has no pipeline: deploy it first"
            )


def _called(call: Callable[..., Any], *arguments: Any) -> None:
    def refusal(error: KafkaException, means: Meaning) -> Exception:
        if means is Meaning.FENCED:
            return DeploymentError(_SOMEBODY_ELSE)
        if means is Meaning.PASSING:
            return DeploymentError(f"what answers was not changed, or it is not known: {error_text(error)}. Try again")
        return FatalKafkaError(f"the record that says what answers cannot be written: {error_text(error)}")

    try:
        repeated_for_a_while(call, *arguments, refusal=refusal)
    except KafkaException as error:  # the transaction is to be aborted, which the next writer does
        if took_our_place(error.args[0]):
            raise DeploymentError(_SOMEBODY_ELSE) from error
        raise refusal(error, Meaning.PASSING) from error
