"""Health over HTTP: alive and ready say why not, long calls have a limit of their own, and a taken port is a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from models.errors import SidstreamError
from streamer.process.health import Health, Part
from streamer.process.health_server import HealthServer
from streamer.settings.process import MetricsSettings
from support.processes import free_port, http_get


class Clock:
    """Health's clock, which goes on only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr("streamer.process.health.time", stopped)
    return stopped


@contextmanager
def serving(health: Health) -> Iterator[int]:
    port = free_port()
    server = HealthServer(MetricsSettings(port=port), health)
    try:
        yield port
    finally:
        server.close()


def well(settings: MetricsSettings | None = None) -> Health:
    health = Health(settings)
    for part in (Part.START, Part.BROKER, Part.INPUT):
        health.set_ready(part)
    return health


def test_ready_tells_every_reason_until_all_is_well_and_metrics_are_prometheus_text() -> None:
    health = Health()
    with serving(health) as port:
        assert http_get(port, "/live") == (200, "alive\n")
        assert http_get(port, "/ready") == (503, "starting; the broker has not answered yet; nothing is read yet\n")
        health.set_ready(Part.START)
        health.set_unready(Part.INPUT, "catching up: 7 offsets on 1 partitions to go")
        health.set_ready(Part.BROKER)
        assert http_get(port, "/ready") == (503, "catching up: 7 offsets on 1 partitions to go\n")
        health.set_ready(Part.INPUT)
        assert http_get(port, "/ready") == (200, "ready\n")
        health.set_unready(Part.BROKER, "no broker answers")
        assert http_get(port, "/ready") == (503, "no broker answers\n")
        assert http_get(port, "/live")[0] == 200, "a broker that is away is no reason to start a process anew"
        assert "sidstream_events_total" in http_get(port, "/metrics")[1]
        assert http_get(port, "/nothing")[0] == 404


def test_taken_port_is_refused_with_what_to_do() -> None:
    with serving(Health()) as port, pytest.raises(SidstreamError, match=rf"{port}.*metrics\.port"):
        HealthServer(MetricsSettings(port=port), Health())


def test_loop_that_no_longer_turns_is_neither_alive_nor_ready_until_it_turns_again(clock: Clock) -> None:
    health = well(MetricsSettings(stalled_seconds=0.2))
    with serving(health) as port:
        health.progress()
        assert (http_get(port, "/live")[0], http_get(port, "/ready")[0]) == (200, 200)
        clock.advance(0.3)
        status, reason = http_get(port, "/live")
        assert status == 503
        assert "the loop has not turned for" in reason
        assert http_get(port, "/ready") == (503, reason)
        health.progress()
        assert (http_get(port, "/live")[0], http_get(port, "/ready")[0]) == (200, 200)


def test_long_call_is_alive_past_the_loops_limit_and_not_past_its_own(clock: Clock) -> None:
    health = well(MetricsSettings(stalled_seconds=0.05, slow_seconds=0.3))
    with health.working("a batch of 16 events"):
        clock.advance(0.15)
        assert health.stalled is None
        clock.advance(0.25)
        assert "a batch of 16 events has taken" in (health.stalled or "")
    assert health.stalled is None, "the end of the call is a turn of the loop"
    clock.advance(0.1)
    assert "the loop has not turned" in (health.stalled or "")


def test_start_is_a_long_call_whatever_the_loops_limit(clock: Clock) -> None:
    health = Health(MetricsSettings(stalled_seconds=0.05, slow_seconds=0.3))
    clock.advance(0.15)
    assert health.stalled is None
    clock.advance(0.25)
    assert "the start has taken" in (health.stalled or "")


def test_start_that_goes_on_while_it_waits_for_its_broker_is_alive(clock: Clock) -> None:
    health = Health(MetricsSettings(stalled_seconds=0.05, slow_seconds=0.3))
    for _ in range(5):
        clock.advance(0.15)
        health.progress()
        assert health.stalled is None


def test_attempts_that_fail_again_and_again_are_alive_and_one_that_hangs_is_not(clock: Clock) -> None:
    health = well(MetricsSettings(stalled_seconds=0.05, slow_seconds=0.2))
    for _ in range(6):
        with health.working("commit_transaction"):
            clock.advance(0.06)
        assert health.stalled is None
    with health.working("commit_transaction"):
        clock.advance(0.3)
        assert "commit_transaction" in (health.stalled or "")


def test_call_that_is_long_over_its_time_makes_the_process_unready_and_not_dead(clock: Clock) -> None:
    health = well()
    with serving(health) as port:
        with health.working("commit_transaction", due_seconds=10.0), health.working("a batch of 3 events"):
            clock.advance(9.0)
            assert http_get(port, "/ready")[0] == 200
            clock.advance(3.0)
            assert http_get(port, "/ready") == (503, "commit_transaction has not returned for 12 s\n")
            assert http_get(port, "/live")[0] == 200
        assert http_get(port, "/ready")[0] == 200
