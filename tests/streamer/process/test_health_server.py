"""What a scraper gets: Prometheus' text, or OpenMetrics with the exemplars of freshness for one that accepts it."""

from __future__ import annotations

import time
import urllib.request

from confluent_kafka import Message
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from streamer.process.health import Health
from streamer.process.health_server import HealthServer
from streamer.process.metrics import FRESHNESS_SECONDS, observe_ages
from streamer.settings.process import MetricsSettings
from support.processes import free_port

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
# As Prometheus 3 sends it.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
)


def scraped(port: int, accept: str) -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_exemplar_of_freshness_is_the_trace_of_an_update_and_for_openmetrics_alone() -> None:
    settings = MetricsSettings(port=free_port())
    header = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode())
    at = int(time.time() * 1000) - 700
    update = Message(topic="t", partition=0, offset=1, key=b"k", value=b"v", timestamp=(1, at), headers=[header])
    observe_ages(FRESHNESS_SECONDS.labels("indexer"), [update])
    server = HealthServer(settings, Health(settings))
    try:
        kind, text = scraped(settings.port, PROMETHEUS)
        assert kind.startswith("application/openmetrics-text")
        [family] = [one for one in text_string_to_metric_families(text) if one.name == "sidstream_freshness_seconds"]
        found = [
            sample for sample in family.samples if sample.exemplar is not None and sample.labels["process"] == "indexer"
        ]
        [exemplar] = [sample.exemplar for sample in found if sample.exemplar.labels == {"trace_id": TRACE}]
        assert 0.7 <= exemplar.value < 60
        for accept in ("", "text/plain", "*/*"):
            kind, text = scraped(settings.port, accept)
            assert kind.startswith("text/plain")
            assert TRACE not in text
    finally:
        server.close()
