"""The spans of a batch, as the SDK hands them to an exporter."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Message
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import StatusCode

from streamer.tracing.batches import PassedOn, traces_of
from streamer.tracing.context import current_context, trace_context
from streamer.tracing.export import LinkedOrRatio
from streamer.tracing.spans import AGE, MOST_TRACED, TRACED_COUNT, SpansOfBatches
from streamer.tracing.started import set_provider


def traced(number: int, *, sampled: bool = True, age_ms: int = 250, value: bytes | None = b"{}") -> Message:
    parent = f"00-{number:032x}-{number:016x}-{int(sampled):02x}".encode()
    return record(number, age_ms=age_ms, value=value, headers=[("traceparent", parent)])


def record(
    number: int, *, age_ms: int = 0, value: bytes | None = b"{}", headers: list[tuple[str, bytes]] | None = None
) -> Message:
    sent = (1, time.time_ns() // 1_000_000 - age_ms)
    return Message(
        topic="item-updates", partition=3, offset=number, key=b"sku", value=value, timestamp=sent, headers=headers
    )


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(LinkedOrRatio(0.0)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_provider(provider)
    yield exporter
    set_provider(None)


@pytest.fixture
def traces(exported: InMemorySpanExporter) -> SpansOfBatches:
    found = traces_of("assign", "item-updates", group="assigners")
    assert isinstance(found, SpansOfBatches)
    return found


def batch_and_records(exported: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    found = exported.get_finished_spans()
    [batch] = [span for span in found if span.name == "process item-updates"]
    return batch, [span for span in found if span.name == "assign item-updates"]


def test_without_tracing_contexts_are_passed_on_as_they_came() -> None:
    passed = traces_of("assign", "item-updates", group="assigners")
    assert isinstance(passed, PassedOn)
    records = [record(1), traced(2, sampled=False)]
    trace = passed.begin(records)
    assert passed.onward(records) == [None, records[1].headers()]
    assert passed.onward(records[:1]) is None
    with trace.current():
        assert current_context() is None


def test_batch_is_linked_to_the_recorded_traces_and_they_get_a_span_each(
    exported: InMemorySpanExporter, traces: SpansOfBatches
) -> None:
    records = [traced(7), record(8), traced(9, sampled=False), traced(10, value=None)]
    trace = traces.begin(records)
    onward = traces.onward(records)
    with trace.current():
        inside = current_context()
    trace.end()
    batch, [first, last] = batch_and_records(exported)
    assert batch.context is not None
    assert inside is not None
    assert int(inside.trace_id, 16) == batch.context.trace_id
    assert [link.context.trace_id for link in batch.links] == [7, 10]
    assert [batch.attributes[name] for name in ("messaging.batch.message_count", TRACED_COUNT)] == [4, 2]  # type: ignore[index]
    for span, number in ((first, 7), (last, 10)):
        assert span.parent is not None
        assert span.context is not None
        assert (span.context.trace_id, span.parent.span_id) == (number, number)
        assert [link.context.span_id for link in span.links] == [batch.context.span_id]
    assert dict(first.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.destination.name": "item-updates",
        "messaging.destination.partition.id": "3",
        "messaging.operation.type": "process",
        "messaging.operation.name": "assign",
        "messaging.consumer.group.name": "assigners",
        "messaging.kafka.offset": 7,
        "messaging.kafka.message.key": "sku",
        AGE: pytest.approx(250, abs=60_000),
    }
    assert (last.attributes or {})["messaging.kafka.message.tombstone"] is True
    # What is made of a recorded one is its span's; of another, as it came.
    assert onward is not None
    made = [None if headers is None else trace_context(headers) for headers in onward]
    assert first.context is not None
    assert made[0] is not None
    assert (int(made[0].trace_id, 16), int(made[0].span_id, 16)) == (7, first.context.span_id)
    assert made[1] is None
    assert onward[2] == records[2].headers()


def test_batch_of_untraced_records_is_recorded_by_the_ratio_alone(
    exported: InMemorySpanExporter, traces: SpansOfBatches
) -> None:
    records = [record(1), traced(2, sampled=False)]
    traces.begin(records).end()
    assert exported.get_finished_spans() == ()


def test_no_batch_makes_more_spans_than_its_bound_and_the_rest_is_passed_on(
    exported: InMemorySpanExporter, traces: SpansOfBatches
) -> None:
    records = [traced(number) for number in range(1, MOST_TRACED + 3)]
    trace = traces.begin(records)
    onward = traces.onward(records)
    trace.end()
    batch, spans = batch_and_records(exported)
    assert (len(spans), len(batch.links)) == (MOST_TRACED, MOST_TRACED)
    assert (batch.attributes or {})[TRACED_COUNT] == MOST_TRACED
    assert onward is not None
    assert [headers == one.headers() for headers, one in zip(onward, records, strict=True)].count(True) == 2


def test_record_that_is_read_again_long_after_has_no_span_in_its_old_trace(
    exported: InMemorySpanExporter, traces: SpansOfBatches
) -> None:
    old = traced(5, age_ms=2 * 3_600_000)
    traces.begin([old]).end()
    assert exported.get_finished_spans() == ()
    assert traces.onward([old]) == [old.headers()]


def test_refused_record_and_failed_batch_say_so(exported: InMemorySpanExporter, traces: SpansOfBatches) -> None:
    good, bad = traced(1), traced(2)
    trace = traces.begin([good, bad])
    traces.refused(bad, "WrongDimension")
    trace.end()
    batch, spans = batch_and_records(exported)
    assert [span.status.status_code for span in (batch, *spans)] == [
        StatusCode.UNSET,
        StatusCode.UNSET,
        StatusCode.ERROR,
    ]
    assert (spans[1].attributes or {})["error.type"] == "WrongDimension"

    exported.clear()
    traces.begin([good]).fail(RuntimeError("the coordinator moved"))
    batch, [span] = batch_and_records(exported)
    assert [one.status.description for one in (batch, span)] == ["the coordinator moved"] * 2

    exported.clear()
    traces.begin([good])  # it waits for the schema registry, and is begun again
    assert exported.get_finished_spans() == ()
