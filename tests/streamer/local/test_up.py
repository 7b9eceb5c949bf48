"""The pipeline on one machine: what each process is given, and what happens when the embedded broker dies. No broker needed."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from models.errors import SidstreamError
from store.errors import IndexLockedError
from store.files.environment import lock_directory, unlock
from streamer.events.serving import Deployed, Serving
from streamer.events.serving import Pipeline as ServedPipeline
from streamer.local.broker import BrokerError
from streamer.local.supervisor import Supervisor, _Child
from streamer.local.up import Pipeline, StartStopped
from streamer.process.ports import PortInUseError
from streamer.settings import load_settings


class DyingBroker:
    """Runs until it is killed; ``starts`` counts how often it was started."""

    bootstrap_servers = "127.0.0.1:19092"
    log_file = Path("kafka.log")
    starts = 0
    running = False

    def __init__(self, *_arguments: Any, **_named: Any) -> None: ...

    def start(self) -> None:
        if DyingBroker.starts == 2:
            raise BrokerError("it does not come back")
        DyingBroker.starts += 1
        self.running = True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.running = False


SERVING = Serving(
    bundle="1" * 16,
    deployed=(Deployed(bundle="1" * 16, codebook="c", since=1),),
    pipelines=(ServedPipeline(codebook="c", bundle="1" * 16, since=1),),
)


class QuietFollower:
    """Nothing changes."""

    current = SERVING

    def __init__(self, *_arguments: Any) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None: ...


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mapping[str, str]]:
    """Environment of each process that would have been started."""
    environments: dict[str, Mapping[str, str]] = {}

    def start(
        self: Supervisor,
        name: str,
        _arguments: Sequence[str],
        environment: Mapping[str, str] | None,
        **_more: Any,
    ) -> None:
        environments[name] = environment or {}
        self._children[name] = _Child(name, (), {})

    monkeypatch.setattr(Supervisor, "start", start)
    monkeypatch.setattr(Pipeline, "_prepare", lambda _self: SERVING)
    monkeypatch.setattr("streamer.local.up.ServingFollower", QuietFollower)
    monkeypatch.setattr(Supervisor, "check", lambda _self: None)
    monkeypatch.setattr("streamer.local.up.LocalBroker", DyingBroker)
    monkeypatch.setattr(DyingBroker, "starts", 0)
    return environments


def test_processes_of_one_machine_have_a_metrics_port_each(started: dict[str, Mapping[str, str]]) -> None:
    settings = load_settings(metrics={"port": 9100})
    with Pipeline(settings, embedded_broker=False, retrievers=2):
        pass
    assert {name: environment["SIDSTREAM_METRICS__PORT"] for name, environment in started.items()} == {
        "assigner": "9100",
        "indexer": "9101",
        "monitor": "9102",
        "retriever": "9103",
        "retriever-1": "9104",
    }


def test_metrics_that_are_switched_off_stay_off(started: dict[str, Mapping[str, str]]) -> None:
    with Pipeline(load_settings(), embedded_broker=False):
        pass
    assert not any("SIDSTREAM_METRICS__PORT" in environment for environment in started.values())


@pytest.mark.parametrize(
    ("taken", "wanted", "setting"),
    [("metrics", 2, "metrics.port"), ("metrics", 0, "metrics.port"), ("dashboard", 0, "monitor.web_port")],
)
def test_port_of_another_pipeline_is_refused_with_its_setting_before_anything_runs(
    started: dict[str, Mapping[str, str]], taken: str, wanted: int, setting: str
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = load_settings(
            **{"metrics": {"port": port - wanted}} if taken == "metrics" else {"monitor": {"web_port": port}}
        )
        pipeline = Pipeline(settings, embedded_broker=True)
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{port}.*another {re.escape(setting)}"):
            pipeline.__enter__()
    assert (list(started), DyingBroker.starts) == ([], 0), "nothing was started"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"metrics": {"port": 9700}, "monitor": {"web_port": 9701}},
            "metrics.port (9700 to 9704) and monitor.web_port both",
        ),
        (
            {"monitor": {"web_port": 9800}, "gateway": {"port": 9800}},
            "monitor.web_port and gateway.port both take port 9800",
        ),
        (
            {"broker": {"port": 9092}, "metrics": {"port": 9090}},
            "broker.port and metrics.port (9090 to 9094) both take port 9092",
        ),
        ({"metrics": {"port": 65_535}}, "choose a metrics.port of 65531 or less"),
    ],
)
def test_ports_of_one_pipeline_that_cannot_be_are_refused_before_anything_runs(
    started: dict[str, Mapping[str, str]], settings: dict[str, Any], fault: str
) -> None:
    with pytest.raises(SidstreamError, match=re.escape(fault)):
        Pipeline(load_settings(**settings), embedded_broker=True, gateway=True).__enter__()
    assert (list(started), DyingBroker.starts) == ([], 0), "nothing was started"


@pytest.mark.parametrize("index", ["index", "indexes/second"])
def test_index_that_somebody_writes_is_refused_before_anything_runs_and_one_that_is_let_go_of_is_taken(
    started: dict[str, Mapping[str, str]], index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / index).mkdir(parents=True)
    settings = load_settings(index=tmp_path / "index")
    monkeypatch.setattr("streamer.local.up._ORPHAN_SECONDS", 0.0)
    held = lock_directory(tmp_path / index)
    with pytest.raises(IndexLockedError, match=f"{index} is written by process .*another `up` runs here"):
        Pipeline(settings, embedded_broker=True).__enter__()
    assert (list(started), DyingBroker.starts) == ([], 0), "nothing was started"
    unlock(held)
    with Pipeline(settings, embedded_broker=True):
        assert DyingBroker.starts == 1


def test_start_that_is_told_to_stop_starts_nothing_more_and_ends_what_runs(
    started: dict[str, Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    pipeline = Pipeline(load_settings(), embedded_broker=True, stop=stop)
    monkeypatch.setattr(DyingBroker, "start", lambda _self: stop.set())
    with pytest.raises(StartStopped):
        pipeline.__enter__()
    assert not started
    assert pipeline._broker is not None
    assert not pipeline._broker.running


def test_embedded_broker_that_dies_is_started_again_and_one_that_cannot_ends_the_pipeline(
    started: dict[str, Mapping[str, str]],
) -> None:
    with Pipeline(load_settings(), embedded_broker=True) as pipeline:
        broker: Any = pipeline._broker
        stop = threading.Event()
        watching = threading.Thread(target=pipeline.watch, args=(stop,))
        broker.running = False
        watching.start()
        for _ in range(200):
            if broker.running:
                break
            stop.wait(0.05)
        stop.set()
        watching.join()
        assert DyingBroker.starts == 2
        broker.running = False
        with pytest.raises(BrokerError, match="does not come back"):
            pipeline.watch(threading.Event())


def test_pipelines_that_come_and_go_have_their_processes_started_and_ended(
    started: dict[str, Mapping[str, str]],
) -> None:
    candidate = ServedPipeline(codebook="d", bundle="2" * 16, suffix="-d", since=2)
    deployed = (*SERVING.deployed, Deployed(bundle="2" * 16, codebook="d", since=2))
    both = msgspec.structs.replace(SERVING, deployed=deployed, pipelines=(*SERVING.pipelines, candidate))
    with Pipeline(load_settings(metrics={"port": 9100}), embedded_broker=False, retrievers=0) as pipeline:
        pipeline._follow(both)
        assert started["assigner-d"] == {"SIDSTREAM_PIPELINE": "d", "SIDSTREAM_METRICS__PORT": "9103"}
        assert started["indexer-d"] == {"SIDSTREAM_PIPELINE": "d", "SIDSTREAM_METRICS__PORT": "9104"}
        assert started["assigner"]["SIDSTREAM_PIPELINE"] == "c"
        pipeline._follow(SERVING)
        ending = [name for name in pipeline.supervisor.names if pipeline.supervisor.is_ending(name)]
        assert ending == ["assigner-d", "indexer-d"]
        pipeline.supervisor._children.clear()


def test_candidates_processes_give_way_until_somebody_is_answered_from_them(
    started: dict[str, Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    monkeypatch.setattr("streamer.local.up.may_change", lambda: True)
    monkeypatch.setattr("streamer.local.up.give_way", lambda pid: done.append(("gives way", pid)) or pid != 1_000)
    monkeypatch.setattr("streamer.local.up.take_part", lambda pid: done.append(("takes part", pid)))
    pids = {"assigner": 1, "indexer": 2, "assigner-d": 3, "indexer-d": 1_000}
    monkeypatch.setattr(Supervisor, "pid", lambda _self, name: pids.get(name))
    candidate = ServedPipeline(codebook="d", bundle="2" * 16, suffix="-d", since=2)
    deployed = (*SERVING.deployed, Deployed(bundle="2" * 16, codebook="d", since=2))
    both = msgspec.structs.replace(SERVING, deployed=deployed, pipelines=(*SERVING.pipelines, candidate))
    with Pipeline(load_settings(), embedded_broker=False, retrievers=0, preload=False) as pipeline:
        pipeline._follow(both)
        pipeline._prioritise(both)
        assert done == [("gives way", 3), ("gives way", 1_000)]
        pids["indexer-d"] = 4  # the one before led no session yet, or has died
        pipeline._prioritise(both)
        pipeline._prioritise(both)
        assert done[2:] == [("gives way", 4)]
        canary = msgspec.structs.replace(both, canary="2" * 16, share=0.1)
        pipeline._prioritise(canary)
        pipeline._prioritise(canary)
        assert done[3:] == [("takes part", 3), ("takes part", 4)]
        pipeline.supervisor._children.clear()
