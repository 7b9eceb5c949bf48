"""Real sidstream processes for tests: forked from one that has imported everything, as `sidstream up` does, or started by
themselves as a container would; ended by SIGTERM or by ``kill -9``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import tomli_w
from confluent_kafka import Consumer, Message, TopicPartition

from streamer.kafka.clients import consumer_configuration
from streamer.kafka.gather import drain
from streamer.local.preloaded import AVAILABLE, ForkedProcess, Preloading, Running
from streamer.process.run import SUPERVISOR_VARIABLE
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a page on loopback; status 0 and the reason while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class SidstreamProcess:
    """``sidstream <command>`` under ``settings``; its log lines go to a file that a failing test prints."""

    def __init__(
        self,
        settings: Settings,
        command: str,
        directory: Path,
        *,
        name: str | None = None,
        program: Path | None = None,
        environment: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> None:
        """``command``: with its options; ``program``: a Python file to run instead, which gets the command as its argument;
        ``alone``: not forked, for its memory or for its start."""
        self._command = command
        self._forked = AVAILABLE and program is None and not alone
        self._program = ["-m", "sidstream"] if program is None else [str(program)]
        self._log = directory / f"{name or command}.log"
        configuration = directory / f"{name or command}.toml"
        values = settings.model_dump(mode="json", exclude_none=True)
        configuration.write_text(tomli_w.dumps(values))
        self._environment = {
            **os.environ,
            "SIDSTREAM_CONFIG": str(configuration),
            "OMP_NUM_THREADS": "1",
            "SIDSTREAM_SHUTDOWN_SECONDS": str(PATIENCE_SECONDS),  # a clean end takes longer on a busy machine
            SUPERVISOR_VARIABLE: str(os.getpid()),  # none outlives a test run that was killed
            **(environment or {}),
        }
        self._process: Running | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> Self:
        """``environment``: for this start alone."""
        if self._forked:
            self._log.touch()  # a test may read it before the fork has opened it
            preloading()
            self._process = ForkedProcess(
                self._command.split(), {**self._environment, **(environment or {})}, self._log
            )
            return self
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._program, *self._command.split()],
                env={**self._environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def kill(self) -> None:
        """``kill -9``: nothing is flushed, nothing is closed."""
        assert self._process is not None
        assert self._process.poll() is None, f"the {self._command} died by itself:\n{self.log()}"
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it was forked just now, and leads no group yet
            self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_SECONDS)

    def status(self) -> int | None:
        """The exit status; negative for the signal that ended it, ``None`` while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """The exit status, waited for; negative for a signal."""
        assert self._process is not None
        return self._process.wait(PATIENCE_SECONDS)

    @property
    def peak_mebibytes(self) -> float:
        """The most memory that it has held at once since its start (Linux' VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-6_000:]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            print(f"--- {self._command} ---\n{self.log()}")
        if self.running():
            self.stop()


@cache
def preloading() -> Preloading:
    """The test run's fork server."""
    return Preloading()


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended, and that nobody has asked for its status yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


FORK_SERVER = "fork server"


def processes_of(up: int) -> dict[str, int]:
    """What ``sidstream up`` runs now: the process id of each command, and of the server that forks some of them."""
    found: dict[str, int] = {}
    for pid in _children(up):
        command = _command_line(pid)
        if any("forkserver" in word for word in command):
            found[FORK_SERVER] = pid
            for forked in _children(pid):
                if not any("resource_tracker" in word for word in _command_line(forked)) and alive(forked):
                    # It may end between the two looks.
                    with suppress(OSError):
                        found[Path(f"/proc/{forked}/comm").read_text().strip()] = forked
        elif "sidstream" in command and alive(pid):
            found[command[command.index("sidstream") + 1]] = pid
    return found


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _command_line(pid: int) -> list[str]:
    """Its words; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def wait_until(
    condition: Callable[[], bool], *, what: str, every: float = 0.1, seconds: float = PATIENCE_SECONDS
) -> None:
    """Poll until ``condition`` holds; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(every)


def committed_records(settings: Settings, topic: str, *, committed: bool = True) -> list[Message]:
    """Every committed record of a topic, partition by partition; with ``committed=False`` all that are in the log."""
    level = "read_committed" if committed else "read_uncommitted"
    configuration = consumer_configuration(
        settings.kafka, group="test-reader", enable_partition_eof=True, isolation_level=level
    )
    consumer = Consumer(configuration)
    try:
        partitions = list(consumer.list_topics(topic, timeout=PATIENCE_SECONDS).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        return list(_until_end(consumer, set(partitions)))
    finally:
        consumer.close()


def _until_end(consumer: Consumer, partitions: set[int]) -> Iterator[Message]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while partitions:
        assert time.monotonic() < deadline, f"partitions {partitions} have no end"
        yield from drain(consumer, 10_000, 1.0, lambda end: partitions.discard(end.partition()))
