"""Every client is made of one configuration, so that none forgets how to log in. What a client complains of is heard by its
process, and told to people once in a while."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from streamer.kafka.clients import ErrorListener
from streamer.process.health import Health, Part
from streamer.settings.kafka import KafkaSettings
from support.paths import ROOT

PARTS = ("models", "store", "streamer", "retriever", "gateway", "demo", "benchmarks", "tests")
CLIENTS = {"Producer", "Consumer", "AdminClient"}
MAKERS = {"client_configuration", "consumer_configuration", "producer_configuration"}
# The local broker asks itself by the login that it has given; its tests and those of topics speak to a broker without login, and
# the secure pipeline's test also sends somebody without one.
ELSEWHERE = (
    "streamer/local/broker.py",
    "tests/streamer/local/",
    "tests/streamer/kafka/",
    "tests/streamer/exactly_once/",
    "tests/scenarios/test_secure_pipeline.py",
)
TREES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for part in PARTS
    for path in sorted((ROOT / part).rglob("*.py"))
}


def clients_made(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in CLIENTS and node.args:
            yield node


def of_the_settings(call: ast.Call, tree: ast.Module) -> bool:
    """Whether its configuration is asked for in place, or is a name that such a call was given to."""
    names = {node.id for node in ast.walk(call.args[0]) if isinstance(node, ast.Name)}
    given = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and MAKERS & {one.id for one in ast.walk(node.value) if isinstance(one, ast.Name)}
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return bool(names & (MAKERS | given))


def test_no_client_is_made_without_the_login_of_the_settings() -> None:
    assert sum(1 for tree in TREES.values() for _call in clients_made(tree)) > 100
    forgetful = [
        f"{path}: {ast.unparse(call)}"
        for path, tree in TREES.items()
        if not path.startswith(ELSEWHERE)
        for call in clients_made(tree)
        if not of_the_settings(call, tree)
    ]
    assert not forgetful


@pytest.mark.parametrize(
    "text", ["Broker: Request not valid in current SASL state: broker's supported", "Local: Broker transport failure"]
)
def test_login_that_is_cut_off_is_none_that_is_refused(text: str) -> None:
    """Word by word as librdkafka says it, now and then, when tokens live for seconds or their issuer is away."""
    health = Health()
    health.set_ready(Part.BROKER)
    listener = ErrorListener(KafkaSettings(), health)
    listener(KafkaError(KafkaError._AUTHENTICATION, f"SASL OAUTHBEARER mechanism handshake failed: {text}"))
    assert listener.refusal is None
    assert health.is_well(Part.BROKER)
    listener(KafkaError(KafkaError._AUTHENTICATION, "SASL authentication error: Authentication failed"))
    assert listener.refusal is not None
    assert not health.is_well(Part.BROKER)


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
