"""The whole pipeline over TLS, its processes logged in by all that managed clusters ask for (passwords, tokens, certificates),
each with the rights that ``sidstream acls`` prints for it and no others; and what a wrong login looks like.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trustme
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from numpy.typing import NDArray

from models.errors import SidstreamError
from retriever.client import Client
from store.reading.reader import IndexReader
from streamer.client.follow import Follower, FollowOptions
from streamer.client.publisher import ItemPublisher
from streamer.events.records import TOKEN_COUNT
from streamer.events.topics import monitor_changelog, topic_specs
from streamer.kafka.admin import ClusterAwayError, create, require
from streamer.kafka.clients import producer_configuration
from streamer.kafka.errors import LoginRefusedError
from streamer.local.broker import LocalBroker
from streamer.local.broker_security import BrokerSecurity
from streamer.monitor.login import check_login, credentials
from streamer.monitor.token_state import decode_state
from streamer.settings import Settings, load_settings
from support.gateway_requests import send
from support.gateways import start
from support.patience import PATIENCE_SECONDS
from support.processes import committed_records, free_port, wait_until
from support.secure_logins import (
    BY_TOKEN,
    PASSWORD,
    PROVIDER,
    SECRET,
    SECRETS,
    TOKEN_SECONDS,
    USER,
    WRONG_PASSWORD,
    Logins,
    SecureProcess,
    broker_security,
    give_rights,
    with_kafka,
    with_security,
)
from support.token_issuer import TokenIssuer

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def issuer(certificates: Path) -> Iterator[TokenIssuer]:
    with TokenIssuer({f"sidstream-{name}": SECRET for name in BY_TOKEN}, trustme.CA(), certificates) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def security(certificates: Path, issuer: TokenIssuer) -> BrokerSecurity:
    return broker_security(certificates, issuer)


@pytest.fixture(scope="module")
def secure_broker(security: BrokerSecurity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("secure-broker"), security=security, short_lived=True) as broker:
        yield broker


@pytest.fixture
def secure_settings(
    secure_broker: LocalBroker, security: BrokerSecurity, tiny_model_bundle: Path, unique_prefix: str, tmp_path: Path
) -> Settings:
    """Without topics yet: most of these tests end at the login."""
    return load_settings(
        bundle=tiny_model_bundle,
        index=tmp_path / "index",
        kafka={"bootstrap_servers": secure_broker.bootstrap_servers, "security": security.client_properties(USER)},
        topics={"prefix": unique_prefix},
        gateway={"port": free_port(), "wait_seconds": PATIENCE_SECONDS},
        retriever={"maximum_wait_seconds": 300},  # a busy machine takes a while to load a model
        logging={"level": "debug"},
    )


@pytest.fixture
def logins(
    secure_settings: Settings,
    secure_broker: LocalBroker,
    security: BrokerSecurity,
    issuer: TokenIssuer,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Logins:
    (certificates / "shops_login.py").write_text(PROVIDER)
    monkeypatch.syspath_prepend(certificates)
    return Logins(secure_settings, secure_broker, security, issuer, certificates)


def produced(settings: Settings, topic: str) -> str | None:
    """Sends a record to a topic; the name of the error that the broker has for it."""
    outcome: list[str | None] = []
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(
        topic, key=b"nothing", value=None, on_delivery=lambda error, _: outcome.append(error and error.name())
    )
    producer.flush(PATIENCE_SECONDS)
    return outcome[0]


def test_item_reaches_index_answer_and_monitor_by_every_kind_of_login_and_no_secret_reaches_a_log(
    secure_settings: Settings,
    logins: Logins,
    issuer: TokenIssuer,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A token lives for seconds: with it the broker ends each connection on which no other has come."""
    monkeypatch.setattr(issuer, "lifetime", TOKEN_SECONDS)
    settings = secure_settings
    create(settings.kafka, topic_specs(settings))
    topics = settings.topics
    changelog = monitor_changelog(settings)
    table = tmp_path / "table.jsonl"
    table.write_bytes(msgspec.json.encode({"id": "item-0", "embedding": tiny_embeddings[0].tolist()}))
    assert produced(logins.by_password("producer"), topics.item_updates) == "TOPIC_AUTHORIZATION_FAILED", (
        "before it has any right"
    )
    give_rights(settings)

    def items() -> int:
        if not settings.index.exists():
            return 0
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            return snapshot.item_count

    def counted_by_monitor() -> int:
        """Items in the newest states of layer 1 in the changelog of the monitor's table."""
        states = {record.key(): record.value() for record in committed_records(settings, changelog)}
        return sum(decode_state(value).n for key, value in states.items() if key.split(b":")[1] == b"1")

    with (
        SecureProcess(logins.by_token("assigner"), "assigner", tmp_path),
        SecureProcess(logins.by_certificate("indexer"), "indexer", tmp_path),
        SecureProcess(logins.by_token("monitor"), "monitor", tmp_path) as monitor,
        SecureProcess(logins.by_token("retriever"), "retriever", tmp_path),
        SecureProcess(logins.by_password("gateway"), "gateway", tmp_path) as gateway,
        Client(logins.by_provider("client")) as client,
    ):
        with ItemPublisher(settings) as publisher:
            for number, embedding in enumerate(tiny_embeddings[:100]):
                if number:
                    publisher.update(f"item-{number}", embedding, title=f"thing {number}")
        with Follower.open(
            logins.by_password("follower"), str(table), tmp_path / "followed", FollowOptions()
        ) as follower:
            assert follower.look(settled=False).new == 1
        wait_until(lambda: items() == 100, what="100 items in the index", every=0.5)
        wait_until(lambda: counted_by_monitor() == 100, what="100 items in the monitor's table", every=1.0)
        first_tokens_end = time.monotonic() + TOKEN_SECONDS
        answer = client.ask("thing number 7", timeout_seconds=PATIENCE_SECONDS)
        assert answer.error is None
        start(gateway, settings)
        time.sleep(max(0.0, first_tokens_end - time.monotonic()))
        port = settings.gateway.port
        gone = send(port, "DELETE", "/items/item-7")
        after = {"Sidstream-After": gone.json["token"]}
        over_http = send(port, "POST", "/query", {"text": "thing number 7", "limit": 100}, headers=after)
        found = {item["item_id"] for item in over_http.json["items"]}
        assert len(found) > 50
        assert "item-7" not in found
        wait_until(lambda: counted_by_monitor() == 99, what="the deletion in the monitor's table", every=1.0)
        monitor.stop()
        with SecureProcess(logins.by_certificate("monitor"), "monitor", tmp_path, name="another-monitor"):
            with ItemPublisher(settings) as publisher:
                publisher.update("item-7", tiny_embeddings[7])
            wait_until(
                lambda: counted_by_monitor() == 100, what="the next item, counted by the next monitor", every=1.0
            )
        status = sidstream(settings, tmp_path, "status")
        assert status.returncode == 0, status.stderr
        assert "100 items" in status.stdout
    assert produced(logins.by_password("producer"), topics.item_updates) is None
    assert produced(logins.by_password("producer"), topics.item_codes) == "TOPIC_AUTHORIZATION_FAILED"
    counts = [TOKEN_COUNT.decode(record.value()) for record in committed_records(settings, topics.token_counts)]
    assert counts

    said = {path.name: path.read_text(errors="replace") for path in tmp_path.glob("*.log")}
    names = ("assigner", "indexer", "monitor", "another-monitor", "retriever", "gateway")
    assert set(said) == {f"{name}.log" for name in names}
    said |= {"status": status.stdout + status.stderr, "settings": repr(settings) + settings.model_dump_json()}
    said["broker security"] = repr(BrokerSecurity(Path(), Path(), {USER: PASSWORD}))
    issued = issuer.token("anyone").partition(".")[0]  # the header, with which every token begins
    for where, text in said.items():
        assert text
        for secret in (*SECRETS, msgspec.json.encode(PASSWORD).decode()[1:-1], issued):
            assert secret not in text, where


def sidstream(settings: Settings, directory: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    process = SecureProcess(settings, f"{command}", directory)
    environment = {**os.environ, "SIDSTREAM_CONFIG": str(process.configuration)}
    return subprocess.run(
        [sys.executable, "-m", "sidstream", command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def wrong_login(logins: Logins, fault: str) -> Settings:
    if fault == "wrong password":
        return with_security(logins.settings, sasl_password=WRONG_PASSWORD)
    if fault == "wrong secret":
        return logins.by_token("monitor", WRONG_PASSWORD)
    if fault == "certificate of a stranger":
        stranger = {
            f"ssl_{part}_location": str(logins.directory / f"stranger.{part}") for part in ("certificate", "key")
        }
        return with_security(logins.by_certificate("monitor"), ssl_key_password="", **stranger)
    if fault == "no certificate":
        known = logins.by_certificate("monitor").kafka
        names = ("security.protocol", "ssl.ca.location")
        security = {name: known.security_properties()[name] for name in names}
        return with_kafka(logins.settings, bootstrap_servers=known.bootstrap_servers, security=security)
    return with_security(logins.settings, ssl_ca_location=str(logins.directory / "another-ca.pem"))


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("assigner", "wrong password"),
        ("monitor", "wrong password"),
        ("monitor", "wrong secret"),
        ("status", "wrong secret"),
        ("assigner", "untrusted certificate"),
        ("status", "untrusted certificate"),
    ],
)
def test_wrong_login_ends_each_process_with_what_to_do(
    logins: Logins, tmp_path: Path, command: str, fault: str
) -> None:
    ended = sidstream(wrong_login(logins, fault), tmp_path, command)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert "Correct kafka.security" in " ".join(said.split())
    assert "Traceback" not in said
    assert not [secret for secret in (WRONG_PASSWORD, *SECRETS) if secret in said]
    if fault == "wrong secret":
        assert "answers 401 Unauthorized (invalid_client Invalid client or wrong secret)" in " ".join(said.split())
        assert "sasl.oauthbearer.client.id" in said


@pytest.mark.parametrize("login", ["by_password", "by_token", "by_certificate", "by_provider"])
def test_fausts_own_client_logs_in_as_the_others_do(logins: Logins, login: str) -> None:
    asyncio.run(check_login(getattr(logins, login)("monitor").kafka))


@pytest.mark.parametrize(
    "fault",
    ["wrong password", "wrong secret", "untrusted certificate", "certificate of a stranger", "no certificate"],
)
def test_fausts_own_client_hears_of_a_wrong_login(logins: Logins, fault: str) -> None:
    """The monitor asks librdkafka first; that the two clients agree must not decide whether it waits for ever."""
    with pytest.raises(LoginRefusedError, match=r"kafka\.security") as refused:
        asyncio.run(check_login(wrong_login(logins, fault).kafka))
    assert WRONG_PASSWORD not in str(refused.value)


@pytest.mark.parametrize("fault", ["certificate of a stranger", "no certificate"])
def test_certificate_that_the_broker_refuses_is_no_broker_that_is_away(logins: Logins, fault: str) -> None:
    with pytest.raises(LoginRefusedError, match=r"ssl\.certificate\.location and ssl\.key\.location"):
        require(wrong_login(logins, fault).kafka, [], attempt_seconds=(0.5, 0.5, 4.0))


def test_token_that_the_broker_refuses_is_no_login_for_either_client(
    logins: Logins, issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "audience", "another cluster")
    refused = logins.by_token("assigner").kafka
    with pytest.raises(LoginRefusedError, match="invalid_token"):
        require(refused, [], attempt_seconds=(0.5, 0.5, 4.0))
    with pytest.raises(LoginRefusedError, match="invalid_token"):
        asyncio.run(check_login(refused))


def test_issuer_that_does_not_answer_is_waited_for_as_a_broker_is(logins: Logins) -> None:
    nobody = with_security(
        logins.by_token("monitor"), **{"sasl.oauthbearer.token.endpoint.url": "https://127.0.0.1:1/token"}
    )
    with pytest.raises(ClusterAwayError, match=r"token endpoint https://127\.0\.0\.1:1/token does not answer"):
        require(nobody.kafka, [], attempt_seconds=(1.0,))
    asyncio.run(check_login(nobody.kafka))


def test_managed_identity_of_an_azure_machine_logs_both_clients_in(logins: Logins, issuer: TokenIssuer) -> None:
    query = "api-version=2025-04-07&resource=https://shop.servicebus.windows.net&client_id=sidstream-monitor"
    identity = with_security(
        logins.by_token("monitor"),
        **{
            "sasl.oauthbearer.metadata.authentication.type": "azure_imds",
            "sasl.oauthbearer.token.endpoint.url": issuer.identity_endpoint,
            "sasl.oauthbearer.config": f"query={query}",
        },
    )
    before = len(issuer.asked)
    require(identity.kafka, [])
    asyncio.run(check_login(identity.kafka))
    assert [asked["resource"] for asked in issuer.asked[before:]] == 2 * ["https://shop.servicebus.windows.net"]


def test_files_that_a_client_cannot_read_are_refused_with_what_to_correct(secure_settings: Settings) -> None:
    missing = with_security(secure_settings, ssl_ca_location="/nowhere/ca.pem")
    with pytest.raises(SidstreamError, match=r"kafka\.security"):
        require(missing.kafka, [secure_settings.topics.results])
    with pytest.raises(SidstreamError, match=r"ssl\.keystore\.location"):
        credentials(with_security(secure_settings, ssl_keystore_location="x").kafka)


def test_wrong_password_of_a_key_is_told_by_either_client_and_never_asked_of_a_terminal(logins: Logins) -> None:
    for password in ("wrong", ""):
        locked = with_security(logins.by_certificate("monitor"), ssl_key_password=password).kafka
        with pytest.raises(SidstreamError, match=r"kafka\.security"):
            require(locked, [])
        with pytest.raises(SidstreamError, match=r"ssl\.key\.password"):
            credentials(locked)


def test_internal_listeners_refuse_who_has_no_certificate(secure_broker: LocalBroker, security: BrokerSecurity) -> None:
    assert secure_broker._ports is not None
    for port in secure_broker._ports[1:]:
        properties: dict[str, Any] = {
            "bootstrap.servers": f"127.0.0.1:{port}",
            "security.protocol": "SSL",
            "ssl.ca.location": str(security.truststore),
            "group.id": "intruder",
            "error_cb": lambda error: None,
            "log_level": 0,
        }
        consumer = Consumer(properties)
        try:
            with pytest.raises(KafkaException):
                consumer.get_watermark_offsets(TopicPartition("__consumer_offsets", 0), timeout=2)
        finally:
            consumer.close()


def test_files_of_the_broker_hold_no_password_and_a_user_needs_a_usable_name(
    secure_broker: LocalBroker, security: BrokerSecurity
) -> None:
    files = [path for path in secure_broker.directory.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
    assert len(files) > 3
    assert not [path for path in files if PASSWORD.encode() in _content(path)]
    assert PASSWORD not in "".join(security.scram_records())
    with pytest.raises(SidstreamError, match="user name"):
        BrokerSecurity(Path(), Path(), {"a]b": "x"})


def _content(path: Path) -> bytes:
    """Nothing for a file that the broker, which runs, has renamed or deleted meanwhile."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
