"""The end of real processes: clean on the first signal, at once on the second, within the deadline when they are stuck."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.codebooks.onnx_encoder import OnnxEncoder
from store.checks.verification import verify
from store.reading.reader import IndexReader
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.process.shutdown import STUCK_STATUS
from streamer.settings import Settings, load_settings
from streamer.settings.process import MetricsSettings
from support.item_stream import Stream, publish_updates
from support.patience import PATIENCE_SECONDS
from support.processes import (
    FORK_SERVER,
    SidstreamProcess,
    alive,
    committed_records,
    free_port,
    http_get,
    processes_of,
    wait_until,
)

PROCESSES = ("retriever", "monitor", "indexer", "assigner")


def exit_status(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_every_process_becomes_ready_under_load_and_ends_clean_on_one_signal(
    pipeline_settings: Settings, tiny_model_bundle: Path, tmp_path: Path
) -> None:
    ports = {name: free_port() for name in PROCESSES}
    processes = {
        name: SidstreamProcess(
            pipeline_settings.model_copy(
                update={"bundle": tiny_model_bundle, "metrics": MetricsSettings(port=ports[name])}
            ),
            name,
            tmp_path,
        )
        for name in PROCESSES
    }
    dimension = OnnxEncoder(Bundle.open(tiny_model_bundle).encoder_path).dimension
    stream = Stream(pipeline_settings, dimension, events=300_000, ids=3_000, per_second=500, seed=5)
    publisher = threading.Thread(target=stream.publish, daemon=True)
    publisher.start()
    try:
        for process in processes.values():
            process.start()
        for name in PROCESSES:
            wait_until(lambda: http_get(ports[name], "/ready")[0] == 200, what=f"{name} ready", every=0.5)  # noqa: B023
            assert http_get(ports[name], "/live") == (200, "alive\n")
        metrics = http_get(ports["indexer"], "/metrics")[1]
        assert 'sidstream_ready{process="indexer"} 1.0' in metrics
        assert 'sidstream_freshness_seconds_count{process="indexer"}' in metrics
        assert not stream.sent.is_set(), "the flood goes on"
        for name in PROCESSES:
            assert processes[name].stop() == 0, processes[name].log()
            assert "stopped" in processes[name].log()
            assert "Traceback" not in processes[name].log()
    finally:
        stream.stop()
        for process in processes.values():
            if process.running():
                process.kill()
        publisher.join()
    with IndexReader(pipeline_settings.index) as reader, reader.snapshot() as snapshot:
        assert verify(snapshot) == []


STUCK_ASSIGNER = """
import time
from streamer.assigner import process as assigner
from streamer.settings import load_settings

def encode(encoder, embeddings, ids):
    print("encoding", flush=True)
    time.sleep(600)

assigner.ItemEncoder.encode = encode
assigner.run_assigner(load_settings())
"""


@pytest.mark.parametrize("second_signal", [True, False], ids=["second signal", "deadline"])
def test_stuck_assigner_ends_at_once_when_asked_twice_and_else_at_its_deadline_and_its_successor_does_its_batch(
    pipeline_settings: Settings,
    tiny_bundle: Path,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
    second_signal: bool,
) -> None:
    settings = pipeline_settings.model_copy(
        update={"bundle": tiny_bundle, "shutdown_seconds": 2 * PATIENCE_SECONDS if second_signal else 2.0}
    )
    publish_updates(settings, tiny_embeddings, range(100))
    successor = SidstreamProcess(settings, "assigner", tmp_path)
    stuck = subprocess.Popen(
        [sys.executable, "-c", STUCK_ASSIGNER],
        env={**os.environ, "SIDSTREAM_CONFIG": str(tmp_path / "assigner.toml")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert stuck.stdout is not None
    assert stuck.stderr is not None
    assert stuck.stdout.readline() == "encoding\n"
    stuck.send_signal(signal.SIGTERM)
    if second_signal:
        assert any("stopping" in line for line in stuck.stderr)
        assert stuck.poll() is None, "one signal is a request"
        stuck.send_signal(signal.SIGINT)
        assert exit_status(stuck) == 128 + signal.SIGINT, "and not the status of a deadline"
    else:
        assert exit_status(stuck) == STUCK_STATUS
        told = stuck.stderr.read().split("ended_at_deadline")[1]
        assert "a batch of " in told
        assert "encode" in told, "where it is stuck"

    def assigned() -> list[bytes]:
        return sorted(record.key() for record in committed_records(settings, settings.topics.item_codes))

    with successor:
        wait_until(lambda: len(assigned()) >= 100, what="100 items", every=0.5)
        assert successor.stop() == 0
    assert assigned() == sorted(f"item-{number}".encode() for number in range(100))


@pytest.mark.broker
def test_process_whose_broker_hangs_says_so_and_stays_alive_and_is_ready_when_it_is_back(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with LocalBroker(tmp_path / "broker", short_lived=True) as broker:
        port = free_port()
        settings = load_settings(
            bundle=tiny_bundle,
            kafka={"bootstrap_servers": broker.bootstrap_servers},
            metrics={"port": port, "stalled_seconds": 12},
        )
        create(settings.kafka, topic_specs(settings))
        broker_pid = broker.pid
        stream = Stream(settings, 8, events=1_000, ids=300, per_second=500, seed=3)
        with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
            wait_until(lambda: http_get(port, "/ready")[0] == 200, what="a ready assigner", every=0.2)
            publisher = threading.Thread(target=stream.publish)
            publisher.start()
            time.sleep(0.5)  # in the middle of batches
            os.kill(broker_pid, signal.SIGSTOP)
            try:
                wait_until(lambda: http_get(port, "/ready")[0] == 503, what="an assigner that says so", every=0.2)
                for _ in range(14):
                    assert http_get(port, "/live") == (200, "alive\n"), "waiting is no reason to be started anew"
                    time.sleep(1)
            finally:
                os.kill(broker_pid, signal.SIGCONT)
                publisher.join()
            wait_until(lambda: http_get(port, "/ready")[0] == 200, what="a ready assigner again", every=0.2)
            assert assigner.stop() == 0, assigner.log()


# A call of a library that never looks at signals, as librdkafka's can be; and an end that hangs after the last Python thread.
IN_A_CALL = "Consumer({'bootstrap.servers': '127.0.0.1:1', 'group.id': 'g'}).consume(1, 600)"
IN_A_DESTRUCTOR = "stop.wait(); time.hangs = Hangs()"


def blind_process(call: str, deadline: float, port: int) -> subprocess.Popen[str]:
    code = f"""
import time
from confluent_kafka import Consumer
from streamer.process.run import run_process
from streamer.settings import load_settings

class Hangs:
    def __del__(self, sleep=time.sleep):
        sleep(600)

def work(stop, health):
    print("working", flush=True)
    {call}

run_process("blind", load_settings(shutdown_seconds={deadline}, metrics={{"port": {port}}}), work)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "SIDSTREAM_CONFIG": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize(
    ("call", "words"), [(IN_A_CALL, "work"), (IN_A_DESTRUCTOR, "__del__")], ids=["in a call", "in a destructor"]
)
def test_process_that_is_stuck_in_a_call_ends_within_its_deadline_and_says_where(call: str, words: str) -> None:
    process = blind_process(call, 1.0, 0)
    process.send_signal(signal.SIGTERM)
    status = exit_status(process)
    assert process.stderr is not None
    log = process.stderr.read()
    assert status != 0, log
    assert words in log[log.index("stopping") :]


def test_stopping_process_is_not_ready_but_alive_and_a_second_signal_ends_it_although_it_is_stuck() -> None:
    port = free_port()
    process = blind_process(IN_A_CALL, 2 * PATIENCE_SECONDS, port)
    assert http_get(port, "/live")[0] == 200
    process.send_signal(signal.SIGINT)
    wait_until(lambda: http_get(port, "/ready")[1].startswith("stopping"), what="an unready process")
    assert http_get(port, "/live")[0] == 200
    process.send_signal(signal.SIGTERM)
    assert exit_status(process) == 128 + signal.SIGTERM


def test_second_signal_to_up_kills_its_processes_and_ends_at_once(
    broker: LocalBroker, unique_prefix: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    environment = {
        "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "SIDSTREAM_TOPICS__PREFIX": unique_prefix,
        "SIDSTREAM_MONITOR__APP_ID": f"{unique_prefix}monitor",
        "SIDSTREAM_BUNDLE": str(tiny_bundle),
        "SIDSTREAM_INDEX": str(tmp_path / "index"),
        "SIDSTREAM_CONFIG": "",
        "SIDSTREAM_SHUTDOWN_SECONDS": str(2 * PATIENCE_SECONDS),
    }
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "sidstream", "up", "--retrievers", "0", "--logs", str(tmp_path / "logs")],
            env={**os.environ, **environment},
            stderr=output,
        )
    try:
        indexer_log = tmp_path / "logs" / "indexer.log"
        wait_until(lambda: indexer_log.exists() and "caught_up" in indexer_log.read_text(), what="an indexer")
        # A process between its fork and its name is "python" for a moment.
        expected = {"assigner", "indexer", "monitor", FORK_SERVER}
        wait_until(lambda: set(processes_of(up.pid)) == expected, what="each process once, by its name")
        found = processes_of(up.pid)
        pids = list(found.values())
        # A child that does not end by itself: `up` would wait for it until the deadline.
        os.kill(found["assigner"], signal.SIGSTOP)
        up.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in log.read_text(), what="an `up` that ends")
        assert up.poll() is None
        up.send_signal(signal.SIGINT)
        assert up.wait(PATIENCE_SECONDS) == 128 + signal.SIGINT
        wait_until(lambda: not any(alive(pid) for pid in pids), what="no process left behind")
    finally:
        if up.poll() is None:
            up.kill()
