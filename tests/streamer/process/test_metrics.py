"""What the shared metrics count, and that a large batch costs no more than a small one."""

from __future__ import annotations

import time

from confluent_kafka import Message
from prometheus_client import REGISTRY, CollectorRegistry, Histogram

from streamer.process.health import Health, Part
from streamer.process.metrics import describe_process, observe_ages


def records(count: int, *, seconds_ago: float, kind: int = 1) -> list[Message]:
    at = int((time.time() - seconds_ago) * 1000)
    return [Message(topic="t", partition=0, offset=n, key=b"k", value=b"v", timestamp=(kind, at)) for n in range(count)]


def histogram() -> tuple[Histogram, CollectorRegistry]:
    registry = CollectorRegistry()
    return Histogram("age_seconds", "", buckets=(1, 10), registry=registry), registry


def test_all_of_a_small_batch_and_a_sample_spread_over_a_large_one_are_timed() -> None:
    ages, registry = histogram()
    observe_ages(ages, records(20, seconds_ago=5))
    assert registry.get_sample_value("age_seconds_count") == 20
    assert registry.get_sample_value("age_seconds_bucket", {"le": "1.0"}) == 0
    assert registry.get_sample_value("age_seconds_bucket", {"le": "10.0"}) == 20
    old_then_new = records(5_000, seconds_ago=5) + records(5_000, seconds_ago=0)
    observe_ages(ages, old_then_new)
    timed = registry.get_sample_value("age_seconds_count") or 0
    assert 20 + 30 <= timed <= 20 + 32
    new = registry.get_sample_value("age_seconds_bucket", {"le": "1.0"}) or 0
    assert 14 <= new <= 17, "half of the sample is of the new half"


def test_timestamp_of_the_future_is_no_age_and_a_missing_one_is_not_timed() -> None:
    ages, registry = histogram()
    observe_ages(ages, records(3, seconds_ago=-60))
    assert registry.get_sample_value("age_seconds_sum") == 0
    observe_ages(ages, records(3, seconds_ago=1, kind=0))
    assert registry.get_sample_value("age_seconds_count") == 3


def test_readiness_and_liveness_are_asked_anew_at_every_scrape() -> None:
    health = Health()
    describe_process("test-process", health)

    def value(name: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"process": "test-process"})

    assert (value("sidstream_ready"), value("sidstream_live")) == (0.0, 1.0)
    for part in (Part.START, Part.BROKER, Part.INPUT):
        health.set_ready(part)
    assert value("sidstream_ready") == 1.0
    health.set_unready(Part.BROKER, "no broker answers")
    assert value("sidstream_ready") == 0.0


def test_exemplar_is_of_a_recorded_trace_wherever_it_stands_in_a_batch() -> None:
    ages, registry = histogram()
    batch = records(10_000, seconds_ago=5)
    for place, flags in ((4_321, "01"), (77, "00")):
        parent = f"00-{place:032x}-{place:016x}-{flags}".encode()
        batch[place].set_headers([("traceparent", parent)])
    observe_ages(ages, batch, traced=batch[4_321])
    [family] = registry.collect()
    exemplars = [sample.exemplar.labels["trace_id"] for sample in family.samples if sample.exemplar]
    assert exemplars == [f"{4_321:032x}"]
    timed = registry.get_sample_value("age_seconds_count") or 0
    assert 30 <= timed <= 32, "no more of them are timed for that"
