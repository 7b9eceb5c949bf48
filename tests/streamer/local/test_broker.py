"""The local broker: real transactions, data that survives, refusals that say what to do, and no start without its pins."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from typer.testing import CliRunner

from streamer.events.topics import TopicSpec
from streamer.kafka.admin import create, describe
from streamer.local.broker import BrokerError, DirectoryInUseError, LocalBroker, PortTakenError
from streamer.settings import Settings
from streamer.settings.kafka import KafkaSettings
from support.patience import PATIENCE_SECONDS
from support.processes import alive, wait_until

RECORDS_A_TRANSACTION = 100


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
    give_up = time.monotonic() + PATIENCE_SECONDS
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
    producer.init_transactions(PATIENCE_SECONDS)
    return producer


@pytest.fixture
def one_topic(broker_settings: Settings) -> str:
    name = broker_settings.topics.drift
    create(broker_settings.kafka, [TopicSpec(name, 1, 1)])
    return name


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker of the test's own; never left running."""
    broker = LocalBroker(
        tmp_path / "a broker's diréctory ₂", short_lived=True
    )  # paths of real people have blanks and accents
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
    producer.flush(PATIENCE_SECONDS)
    codes = [error.code() for error in refused if error]
    assert len(codes) == 1
    assert codes[0] in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)


def test_listeners_are_on_loopback_only(broker: LocalBroker) -> None:
    properties = (broker.directory / "server.properties").read_text()
    listeners = next(line for line in properties.splitlines() if line.startswith("listeners="))
    assert listeners.count("://127.0.0.1:") == listeners.count("://") == 2


def test_second_broker_on_a_directory_is_refused_with_its_owner(broker: LocalBroker) -> None:
    with pytest.raises(
        DirectoryInUseError,
        match=rf"started by process {os.getpid()} on {os.uname().nodename}\).*choose another directory",
    ):
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
    first = LocalBroker(stopped.directory, port=port, short_lived=True)
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}")
    with first:
        assert first.bootstrap_servers == kafka.bootstrap_servers
        create(kafka, [TopicSpec("kept", 1, 1, {"cleanup.policy": "compact"})])
        producer = Producer({"bootstrap.servers": first.bootstrap_servers})
        producer.produce("kept", key=b"key", value=b"value")
        assert producer.flush(PATIENCE_SECONDS) == 0
    assert not first.running
    stopped.start()
    found = describe(KafkaSettings(bootstrap_servers=stopped.bootstrap_servers), ["kept"])
    assert [(topic.cleanup_policy, topic.offsets) for topic in found] == [("compact", ((0, 1),))]
    assert read_all(stopped.bootstrap_servers, "kept", isolation="read_committed") == [b"value"]


def test_broker_ends_when_its_starter_is_killed_and_the_directory_is_free_again(stopped: LocalBroker) -> None:
    script = (
        "import sys, time, pathlib, threading\n"
        "from streamer.local.broker import LocalBroker\n"
        "broker = LocalBroker(pathlib.Path(sys.argv[1]), short_lived=True)\n"
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
    assert not alive(int(java))


def test_every_transaction_that_a_kill_interrupts_is_ended_after_the_restart_and_no_acknowledged_one_is_lost(
    stopped: LocalBroker,
) -> None:
    """Without the guard of ``_fence_the_dead`` most kills make Kafka give up markers; many leave a transaction open."""
    stopped.start()
    servers, names = stopped.bootstrap_servers, [f"producer-{number}" for number in range(6)]
    create(KafkaSettings(bootstrap_servers=servers), [TopicSpec("killed", 1, 1)])
    acknowledged: set[bytes] = set()

    def commit_until_the_end(name: str, producer: Producer) -> None:
        for number in itertools.count():
            value = f"{name}-{number}".encode()
            try:
                producer.begin_transaction()
                producer.produce("killed", value)
                producer.commit_transaction(5.0)
            except KafkaException:
                return
            acknowledged.add(value)

    threads = [
        threading.Thread(target=commit_until_the_end, args=(name, transactional_producer(servers, name)))
        for name in names
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(acknowledged) > 60, what="transactions of every producer", every=0.01)
    os.kill(stopped.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert len(acknowledged) > 6
    stopped.start()
    for name in names:
        transactional_producer(servers, name)  # whatever its predecessor had not committed is aborted
    partition = TopicPartition("killed", 0)
    admin = AdminClient({"bootstrap.servers": servers})
    stable, end = (
        admin.list_offsets({partition: OffsetSpec.latest()}, isolation_level=isolation)[partition].result().offset
        for isolation in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
    )
    assert stable == end, "a transaction is open for ever"
    assert "can be skipped" not in stopped.log_file.read_text(), "markers were given up"
    assert acknowledged - set(read_all(servers, "killed", isolation="read_committed")) == set()


def test_broker_that_died_before_it_was_registered_is_started_again(
    stopped: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise BrokerError("killed after the format")

    with monkeypatch.context() as patched:
        patched.setattr(stopped, "_spawn", die)
        with pytest.raises(BrokerError, match="killed after the format"):
            stopped.start()
    monkeypatch.setattr("streamer.local.broker._FENCE_SECONDS", 1.0)
    stopped.start()
    assert stopped.running


def test_death_at_the_start_shows_the_log_and_leaves_the_directory_free(
    stopped: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "process.roles=broker,controller\nnode.id=-7\n"
    monkeypatch.setattr("streamer.local.broker.broker_properties", lambda *_, **__: broken)
    (stopped.directory / "data").mkdir(parents=True)  # as if it had been formatted, and stopped
    (stopped.directory / "data" / ".kafka_cleanshutdown").touch()
    with pytest.raises(BrokerError, match=r"died \(exit status 1\)[^\n]*kafka.log[^\n]*\n(.*\n)*.*node.id") as death:
        stopped.start()
    assert str(stopped.log_file) in str(death.value)
    assert not stopped.running
    other = LocalBroker(stopped.directory, short_lived=True)
    other._take_lock()
    other.stop()


def test_death_while_running_is_reported_by_wait_and_the_directory_is_free_again(
    stopped: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped.start()
    address = stopped.bootstrap_servers
    assert stopped._process is not None
    os.kill(stopped._process.pid, signal.SIGKILL)
    with pytest.raises(BrokerError, match="SIGKILL"):
        stopped.wait(PATIENCE_SECONDS)
    assert not stopped.running
    # The directory is free for the next start, though nobody has called stop().
    monkeypatch.setattr(stopped, "_launch", lambda _: None)
    stopped.start()
    assert stopped.bootstrap_servers == address


def test_free_port_that_another_process_takes_meanwhile_is_given_up_for_another(
    stopped: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        stolen = int(thief.getsockname()[1])
        choices = iter([(stolen, stopped._choose_ports()[1]), stopped._choose_ports()])
        monkeypatch.setattr(stopped, "_choose_ports", lambda: next(choices))
        monkeypatch.setattr("streamer.local.broker._refuse_taken_port", lambda _: None)
        stopped.start()
    assert stopped.running
    assert stopped.bootstrap_servers != f"127.0.0.1:{stolen}"


def test_directory_with_a_comma_is_refused_because_kafka_would_take_it_for_two(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="no comma"):
        LocalBroker(tmp_path / "one,two").start()


def test_java_that_this_machine_cannot_run_is_an_error_that_says_what_to_do(
    stopped: LocalBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a Java for another processor is: its ``release`` file is read without running it."""
    java = tmp_path / "java home" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_bytes(b"\x7fELF of another machine")
    java.chmod(0o755)
    (java.parent.parent / "release").write_text('JAVA_VERSION="25.0.1"\n')
    monkeypatch.setenv("JAVA_HOME", str(java.parent.parent))
    for formatted in (False, True):
        if formatted:
            (stopped.directory / "data").mkdir()
            (stopped.directory / "data" / ".kafka_cleanshutdown").touch()
        with pytest.raises(BrokerError, match=r"java cannot be run on this machine.*JAVA_HOME"):
            stopped.start()
        assert not stopped.running


def test_unwritable_directory_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BrokerError, match=r"cannot write to .*choose another directory"):
        LocalBroker(tmp_path / "file" / "broker").start()


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


# The command line


def test_topics_commands_create_then_describe(broker_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer.commands import broker as broker_commands

    monkeypatch.setattr(broker_commands, "load_settings", lambda: broker_settings)
    monkeypatch.setattr(broker_commands, "configure_logging", lambda *_, **__: None)  # it would outlive the test
    monkeypatch.setenv("COLUMNS", "240")
    runner = CliRunner()
    before = runner.invoke(broker_commands.topics, ["describe"])
    created = runner.invoke(broker_commands.topics, ["create"])
    after = runner.invoke(broker_commands.topics, ["describe"])
    assert [result.exception for result in (before, created, after)] == [None, None, None]
    assert before.output.count("missing │") == created.output.count("created │") == 17
    assert "create the missing ones with: sidstream topics create" in before.output
    assert "missing" not in after.output
    assert broker_settings.topics.item_updates_dead_letters in after.output


def test_broker_command_announces_itself_and_stops_on_sigterm(tmp_path: Path) -> None:
    script = "import typer; from streamer.commands.broker import broker; typer.run(broker)"
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
    assert process.wait(PATIENCE_SECONDS) == 0
    assert "127.0.0.1:" in "".join(told)
    assert "has stopped" in told[-1]
    assert (tmp_path / "broker" / "data" / ".kafka_cleanshutdown").is_file()
