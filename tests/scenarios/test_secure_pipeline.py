"""The whole pipeline over SASL_SSL with SCRAM-SHA-512 and a certificate of the test's own, each process with the rights that
``sidstream acls`` prints for it and no others; and what a wrong login looks like.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tomli_w
import trustme
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from numpy.typing import NDArray

from models.errors import SidstreamError
from retriever.client import Client
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.events.records import TOKEN_COUNT
from streamer.events.topics import monitor_changelog, topic_specs
from streamer.kafka.admin import create, require
from streamer.kafka.clients import client_configuration, producer_configuration
from streamer.kafka.errors import LoginRefusedError
from streamer.local.broker import LocalBroker
from streamer.local.broker_security import BrokerSecurity
from streamer.monitor.faust_app import check_login, credentials
from streamer.monitor.token_state import decode_state
from streamer.operations.acls import acl_lines
from streamer.settings import KafkaSettings, Settings, load_settings
from support.gateway_requests import send
from support.gateways import start
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, free_port, wait_until

pytestmark = pytest.mark.broker
USER = "pipeline"
PASSWORD = 'correct "horse" = battery, staple\\$7c1f'  # with all that a configuration file could trip over
LIMITED = (
    "producer",
    "assigner",
    "indexer",
    "monitor",
    "retriever",
    "gateway",
    "client",
)  # who has the rights of its lines alone
WRONG_PASSWORD = "wrong-horse-9d2e"


def pem_keystore(certificate: trustme.LeafCert, path: Path) -> Path:
    """Kafka reads PKCS 8 keys alone."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + b"".join(part.bytes() for part in certificate.cert_chain_pems))
    return path


@pytest.fixture(scope="module")
def security(tmp_path_factory: pytest.TempPathFactory) -> BrokerSecurity:
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(directory / "another-ca.pem"))
    keystore = pem_keystore(authority.issue_cert("127.0.0.1"), directory / "broker.pem")
    users = {USER: PASSWORD, "reader": "another-password"} | {f"sidstream-{name}": PASSWORD for name in LIMITED}
    return BrokerSecurity(keystore, directory / "ca.pem", users, super_users=(USER,))


@pytest.fixture(scope="module")
def secure_broker(security: BrokerSecurity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("secure-broker"), security=security, short_lived=True) as broker:
        yield broker


@pytest.fixture
def secure_settings(
    secure_broker: LocalBroker, security: BrokerSecurity, tiny_model_bundle: Path, unique_prefix: str, tmp_path: Path
) -> Settings:
    settings = load_settings(
        bundle=tiny_model_bundle,
        index=tmp_path / "index",
        kafka={"bootstrap_servers": secure_broker.bootstrap_servers, "security": security.client_properties(USER)},
        topics={"prefix": unique_prefix},
        gateway={"port": free_port(), "wait_seconds": PATIENCE_SECONDS},
        retriever={"maximum_wait_seconds": 300},  # a busy machine takes a while to load a model
        logging={"level": "debug"},
    )
    create(settings.kafka, topic_specs(settings))
    return settings


class SecureProcess(SidstreamProcess):
    """With the password in its configuration: settings are dumped with it masked."""

    def __init__(self, settings: Settings, command: str, directory: Path) -> None:
        super().__init__(settings, command, directory)
        configuration = directory / f"{command}.toml"
        values = settings.model_dump(mode="json", exclude_none=True)
        assert PASSWORD not in str(values)
        values["kafka"]["security"] = settings.kafka.security_properties()
        configuration.write_text(tomli_w.dumps(values))
        self.configuration = configuration


def with_security(settings: Settings, **changes: str) -> Settings:
    security = {
        **settings.kafka.security_properties(),
        **{name.replace("_", "."): value for name, value in changes.items()},
    }
    kafka = KafkaSettings.model_validate({"bootstrap_servers": settings.kafka.bootstrap_servers, "security": security})
    return settings.model_copy(update={"kafka": kafka})


def give_rights(settings: Settings) -> None:
    """What `sidstream acls` prints, as kafka-acls does it."""
    admin = AdminClient(client_configuration(settings.kafka))
    kinds = {
        "--topic": ResourceType.TOPIC,
        "--group": ResourceType.GROUP,
        "--transactional-id": ResourceType.TRANSACTIONAL_ID,
    }
    bindings = []
    for line in acl_lines(settings, {}):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        [(kind, name)] = [(kinds[word], words[place + 1]) for place, word in enumerate(words) if word in kinds]
        pattern = ResourcePatternType.PREFIXED if words[-1] == "prefixed" else ResourcePatternType.LITERAL
        principal = words[words.index("--allow-principal") + 1]
        for place, word in enumerate(words):
            if word == "--operation":
                operation = AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", words[place + 1]).upper()]
                bindings.append(AclBinding(kind, name, pattern, principal, "*", operation, AclPermissionType.ALLOW))
    for done in admin.create_acls(bindings).values():
        done.result(PATIENCE_SECONDS)


def of_user(settings: Settings, name: str) -> Settings:
    return with_security(settings, sasl_username=f"sidstream-{name}")


def produced(settings: Settings, topic: str) -> str | None:
    """Sends a record to a topic; the name of the error that the broker has for it."""
    outcome: list[str | None] = []
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(
        topic, key=b"nothing", value=None, on_delivery=lambda error, _: outcome.append(error and error.name())
    )
    producer.flush(PATIENCE_SECONDS)
    return outcome[0]


def test_item_reaches_index_answer_and_monitor_over_sasl_ssl_and_no_secret_reaches_a_log(
    secure_settings: Settings, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = secure_settings
    topics = settings.topics
    changelog = monitor_changelog(settings)
    assert produced(of_user(settings, "producer"), topics.item_updates) == "TOPIC_AUTHORIZATION_FAILED", (
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
        SecureProcess(of_user(settings, "assigner"), "assigner", tmp_path),
        SecureProcess(of_user(settings, "indexer"), "indexer", tmp_path),
        SecureProcess(of_user(settings, "monitor"), "monitor", tmp_path),
        SecureProcess(of_user(settings, "retriever"), "retriever", tmp_path),
        SecureProcess(of_user(settings, "gateway"), "gateway", tmp_path) as gateway,
        Client(of_user(settings, "client")) as client,
    ):
        with ItemPublisher(settings) as publisher:
            for number, embedding in enumerate(tiny_embeddings[:100]):
                publisher.update(f"item-{number}", embedding, title=f"thing {number}")
        wait_until(lambda: items() == 100, what="100 items in the index", every=0.5)
        wait_until(lambda: counted_by_monitor() == 100, what="100 items in the monitor's table", every=1.0)
        answer = client.ask("thing number 7", timeout_seconds=PATIENCE_SECONDS)
        assert answer.error is None
        start(gateway, settings)
        port = settings.gateway.port
        gone = send(port, "DELETE", "/items/item-7")
        after = {"Sidstream-After": gone.json["token"]}
        over_http = send(port, "POST", "/query", {"text": "thing number 7", "limit": 100}, headers=after)
        found = {item["item_id"] for item in over_http.json["items"]}
        assert len(found) > 50
        assert "item-7" not in found
        status = sidstream(settings, tmp_path, "status")
        assert status.returncode == 0, status.stderr
        assert "99 items" in status.stdout
    assert produced(of_user(settings, "producer"), topics.item_updates) is None
    assert produced(of_user(settings, "producer"), topics.item_codes) == "TOPIC_AUTHORIZATION_FAILED"
    counts = [TOKEN_COUNT.decode(record.value()) for record in committed_records(settings, topics.token_counts)]
    assert counts

    said = {path.name: path.read_text(errors="replace") for path in tmp_path.glob("*.log")}
    assert set(said) == {"assigner.log", "indexer.log", "monitor.log", "retriever.log", "gateway.log"}
    said |= {"status": status.stdout + status.stderr, "settings": repr(settings) + settings.model_dump_json()}
    said["broker security"] = repr(BrokerSecurity(Path(), Path(), {USER: PASSWORD}))
    for where, text in said.items():
        assert text
        assert PASSWORD not in text, where
        assert msgspec.json.encode(PASSWORD).decode()[1:-1] not in text, where


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


@pytest.mark.parametrize("command", ["assigner", "monitor", "status"])
@pytest.mark.parametrize("fault", ["wrong password", "untrusted certificate"])
def test_wrong_login_ends_each_process_with_what_to_do(
    secure_settings: Settings, security: BrokerSecurity, tmp_path: Path, command: str, fault: str
) -> None:
    if fault == "wrong password":
        wrong = with_security(secure_settings, sasl_password=WRONG_PASSWORD)
    else:
        wrong = with_security(secure_settings, ssl_ca_location=str(security.truststore.parent / "another-ca.pem"))
    ended = sidstream(wrong, tmp_path, command)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert "Correct kafka.security" in " ".join(said.split())
    assert "Traceback" not in said
    assert WRONG_PASSWORD not in said
    assert PASSWORD not in said


@pytest.mark.parametrize("fault", ["wrong password", "untrusted certificate"])
def test_fausts_own_client_hears_of_a_wrong_login(
    secure_settings: Settings, security: BrokerSecurity, fault: str
) -> None:
    """The monitor asks librdkafka first; that the two clients agree must not decide whether it waits for ever."""
    import asyncio

    asyncio.run(check_login(secure_settings.kafka))
    if fault == "wrong password":
        wrong = with_security(secure_settings, sasl_password=WRONG_PASSWORD)
    else:
        wrong = with_security(secure_settings, ssl_ca_location=str(security.truststore.parent / "another-ca.pem"))
    with pytest.raises(LoginRefusedError, match=r"kafka\.security") as refused:
        asyncio.run(check_login(wrong.kafka))
    assert WRONG_PASSWORD not in str(refused.value)


def test_files_that_a_client_cannot_read_are_refused_with_what_to_correct(secure_settings: Settings) -> None:
    missing = with_security(secure_settings, ssl_ca_location="/nowhere/ca.pem")
    with pytest.raises(SidstreamError, match=r"kafka\.security"):
        require(missing.kafka, [secure_settings.topics.results])
    with pytest.raises(SidstreamError, match=r"ssl\.keystore\.location"):
        credentials({**secure_settings.kafka.security_properties(), "ssl.keystore.location": "x"})


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
