"""Health over HTTP: ready says why not, and a taken port is a clear error."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request

import pytest

from models.errors import SidstreamError
from streamer.metrics import Health, HealthServer
from streamer.settings import MetricsSettings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_ready_tells_the_reason_until_it_is_ready_and_metrics_are_prometheus_text() -> None:
    port, health = free_port(), Health()
    server = HealthServer(MetricsSettings(port=port), health)
    try:
        assert get(port, "/live")[0] == 200
        assert get(port, "/ready") == (503, "starting\n")
        health.set_ready()
        assert get(port, "/ready")[0] == 200
        health.set_unready("no broker answers")
        assert get(port, "/ready") == (503, "no broker answers\n")
        assert "sidstream_events_total" in get(port, "/metrics")[1]
        assert get(port, "/nothing")[0] == 404
    finally:
        server.close()


def test_taken_port_is_refused_with_what_to_do() -> None:
    port = free_port()
    server = HealthServer(MetricsSettings(port=port), Health())
    try:
        with pytest.raises(SidstreamError, match=rf"{port}.*metrics\.port"):
            HealthServer(MetricsSettings(port=port), Health())
    finally:
        server.close()


def test_loop_that_no_longer_turns_is_not_ready_and_ready_again_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.metrics.STALLED_SECONDS", 0.05)
    health = Health()
    health.set_ready()
    health.progress()
    assert health.ready
    time.sleep(0.1)
    assert not health.ready
    assert "no progress" in (health.reason or "")
    health.progress()
    assert health.ready
