"""Spans out of the process: a collector that is away costs nobody anything, and what is dropped is counted."""

from __future__ import annotations

import random

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from streamer.settings import Settings, SettingsError, load_settings
from streamer.tracing.export import Export, ratio_of_variables
from streamer.tracing.spans import tracer
from streamer.tracing.start import TracingError, tracing_started
from streamer.tracing.started import is_tracing
from support.otlp_receiver import OtlpReceiver
from support.processes import free_port, wait_until


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("sidstream_spans_dropped_total", {"reason": reason}) or 0.0


def spans(export: Export, count: int) -> None:
    own = export.provider.get_tracer("sidstream")
    for _ in range(count):
        own.start_span("work").end()


def an_export(endpoint: str) -> Export:
    return Export(endpoint=endpoint, ratio=1.0, process="assigner", instance="7", version="1")


def test_collector_that_is_away_is_told_once_and_the_end_is_within_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    before = dropped("not_taken")
    with OtlpReceiver() as receiver, capture_logs() as lines:
        receiver.status = 400
        export = an_export(receiver.address)
        for number in (1, 2):
            spans(export, 3)
            wait_until(lambda number=number: dropped("not_taken") == before + 3 * number, what="3 more", every=0.01)  # type: ignore[misc]
        receiver.status = 200
        spans(export, 2)
        receiver.await_spans(lambda found: len(found) == 2, "2 spans, once it is there again")
        export.close(5.0)
    assert [line["event"] for line in lines] == ["spans_dropped", "spans_exported_again"]
    assert {span.service for span in receiver.spans} == {"sidstream-assigner"}


def test_traces_differ_although_somebody_seeds_the_random_numbers() -> None:
    with OtlpReceiver() as receiver:
        for _ in range(2):
            random.seed(0)
            export = an_export(receiver.address)
            spans(export, 1)
            export.close(5.0)
        assert len({span.trace_id for span in receiver.spans}) == len({span.span_id for span in receiver.spans}) == 2


def test_queue_that_is_full_drops_and_counts_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "50")
    before = dropped("queue_full")
    with capture_logs() as lines:
        export = an_export(f"http://127.0.0.1:{free_port()}")  # nobody listens: each attempt is repeated for seconds
        spans(export, 1_000)
        assert 0 < dropped("queue_full") - before <= 950, "but 50 that wait"
        export.close(0.2)
    assert "spans_left" in {line["event"] for line in lines}, "it did not wait until its attempts were over"


def traced_settings(endpoint: str) -> Settings:
    return load_settings(tracing={"endpoint": endpoint})


def test_variables_of_opentelemetry_count_where_the_settings_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver() as receiver:
        with tracing_started(load_settings(), "ask") as endpoint:
            assert (endpoint, is_tracing()) == ("", False)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        with tracing_started(load_settings(), "ask") as endpoint:
            assert (endpoint, is_tracing()) == (receiver.address, True)
            tracer().start_span("work").end()
        assert not is_tracing()
        assert [(span.name, span.service) for span in receiver.spans] == [("work", "shop")], "sent before its end"
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        with tracing_started(traced_settings(receiver.address), "ask") as endpoint:
            assert (endpoint, is_tracing()) == ("", False)


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio"),
    [
        ("", "", 1.0),
        ("", "0.25", 0.25),
        ("parentbased_traceidratio", "0.1", 0.1),
        ("always_off", "0.5", 0.0),
        ("parentbased_always_on", "0.5", 1.0),
        ("traceidratio", "half", 1.0),
    ],
)
def test_ratio_of_the_variables(monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, ratio: float) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    assert ratio_of_variables() == ratio


def test_tracing_that_cannot_be_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="gRPC is not spoken"):
        traced_settings("collector:4317")
    monkeypatch.setitem(__import__("sys").modules, "streamer.tracing.export", None)
    with (
        pytest.raises(TracingError, match=r"sidstream\[otel\]"),
        tracing_started(traced_settings("http://c:4318"), "ask"),
    ):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")  # an operator's, for all of its pods
    with capture_logs() as lines, tracing_started(load_settings(), "ask") as endpoint:
        assert endpoint == ""
    assert [line["event"] for line in lines] == ["not_traced"]
