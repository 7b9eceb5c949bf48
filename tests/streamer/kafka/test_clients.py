"""What a client complains of is heard by its process, and told to people once in a while."""

from __future__ import annotations

from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from streamer.kafka.clients import ErrorListener
from streamer.process.health import Health, Part
from streamer.settings import KafkaSettings


def test_broker_that_is_away_is_told_once_by_all_clients_of_a_process_and_each_makes_its_own_health_unready() -> None:
    kafka = KafkaSettings(bootstrap_servers="nobody.invalid:1")
    listeners = [(ErrorListener(kafka, health), health) for health in (Health(), Health())]
    with capture_logs() as told:
        for listener, health in listeners:
            health.set_ready(Part.BROKER)
            for _ in range(20):
                listener(KafkaError(KafkaError._ALL_BROKERS_DOWN))
            assert health.reason is not None
            assert "no broker of nobody.invalid:1 answers" in health.reason
    assert [entry["event"] for entry in told] == ["broker_away"]
