"""A real single-node Apache Kafka (KRaft) in a directory of ours; started means that a transaction can be begun.

Its data stays in the directory and is there again at the next start. One broker a directory, listeners on loopback only,
and the broker never outlives the process that started it.
"""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import structlog

from streamer.local import kafka_distribution
from streamer.local.broker_process import BrokerError, BrokerProcess, java_cannot_run
from streamer.local.broker_properties import broker_properties, controller_properties, logging_properties
from streamer.local.broker_security import BrokerSecurity
from streamer.local.kafka_distribution import FetchProgress

log = structlog.get_logger(__name__)

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 300.0  # 3 s usually; a busy machine or the recovery of much data takes longer
_LOCK_SECONDS: Final = 20.0  # the broker of a killed process ends within the guard's grace
_PORT_ATTEMPTS: Final = 3  # a free port may be taken by another process before the broker has it
_CLEAN_SHUTDOWN_FILE: Final = ".kafka_cleanshutdown"
_ACTIVE_SIGN: Final = "Becoming the active controller"
_FENCED_SIGN: Final = "Fencing broker 1 "
_ACTIVE_SECONDS: Final = 180.0  # 1.5 s usually
_FENCE_SECONDS: Final = 10.0  # 0.6 s usually
_PORT_TAKEN_SIGNS: Final = ("Address already in use", "BindException")


class PortTakenError(BrokerError):
    """A port that was asked for is in use."""


class DirectoryInUseError(BrokerError):
    """Another broker runs on the directory."""


class LocalBroker:
    """A broker on ``directory``; ``with LocalBroker(path) as broker: broker.bootstrap_servers``.

    Args:
        directory: data, logs and configuration; made if it is not there.
        port: of the clients' listener; ``None`` or 0 takes a free one, kept for later starts of this object.
        controller_port: of the KRaft listener, likewise.
        heap: of the JVM, as ``-Xmx`` takes it.
        short_lived: its code is compiled lightly, which pays for a few minutes (tests, the demo).
        progress: told of each jar that the first use fetches.
        security: SASL_SSL for clients, certificates at ``certificate_servers``; without it all is plain, on loopback.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        controller_port: int | None = None,
        heap: str = "512m",
        short_lived: bool = False,
        progress: FetchProgress | None = None,
        security: BrokerSecurity | None = None,
    ) -> None:
        self._security = security
        self.directory = directory.absolute()
        self._given_ports = (port or None, controller_port or None)
        self._ports: tuple[int, ...] | None = None
        self._heap = heap
        self._short_lived = short_lived
        self._progress = progress
        self._process: BrokerProcess | None = None
        self._lock: IO[str] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` for clients; known once the broker has been started."""
        if self._ports is None:
            raise BrokerError(f"the broker on {self.directory} has not been started: call start() first")
        return f"{_HOST}:{self._ports[0]}"

    @property
    def certificate_servers(self) -> str:
        """``host:port`` for clients that log in by a certificate; of a started broker with ``security``."""
        if self._ports is None or self._security is None:
            raise BrokerError(f"the broker on {self.directory} has not been started, or has no security")
        return f"{_HOST}:{self._ports[2]}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Of the JVM that runs."""
        if self._process is None:
            raise BrokerError(f"the broker on {self.directory} has not been started: call start() first")
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """Kafka's own log."""
        return self.directory / "logs" / "kafka.log"

    def start(self) -> None:
        """Start and return when a transaction can be begun; does nothing when it runs already.

        Raises:
            PortTakenError: a given port is in use.
            DirectoryInUseError: another broker runs on the directory.
            DistributionError: Java or Kafka's jars are not to be had.
            BrokerError: the directory cannot be written, or the broker died or hung; with its last log lines.
        """
        if self.running:
            return
        self.stop()  # what a broker that died has left
        if "," in str(self.directory):
            raise BrokerError(f"Kafka takes no comma in {self.directory}: choose another directory (broker.directory)")
        begun = time.monotonic()
        java = kafka_distribution.find_java()
        class_path = kafka_distribution.class_path(self._progress)
        try:
            (self.directory / "logs").mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise BrokerError(
                f"the broker cannot write to {self.directory} ({error.strerror}): "
                "correct its permissions or choose another directory (broker.directory)"
            ) from None
        try:
            options = [] if self._security is None else self._security.java_options()
            self._launch([str(java.executable), *options, "-cp", class_path])
        except BaseException:
            self.stop()
            raise
        log.info(
            "broker_ready",
            bootstrap_servers=self.bootstrap_servers,
            directory=str(self.directory),
            java=java.version,
            seconds=round(time.monotonic() - begun, 2),
        )

    def stop(self) -> None:
        """Stop cleanly and let go of the directory; does nothing when it does not run."""
        self._stop_process()
        lock, self._lock = self._lock, None
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough while a forked child holds a copy
            lock.close()

    def _stop_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def kill(self) -> None:
        """SIGKILL, from any thread; the directory is let go of when this process ends. The broker recovers at its next start."""
        if (process := self._process) is not None:
            process.kill()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block while the broker runs, at most ``timeout_seconds``.

        Raises:
            BrokerError: the broker ended without being asked to.
        """
        if (process := self._process) is not None:
            process.wait(timeout_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_lock(self) -> None:
        """Hold ``broker.lock`` for as long as the JVM lives: it inherits the file, so a killed starter frees nothing."""
        lock = (self.directory / "broker.lock").open("a+")
        give_up = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip()
                # With its starter dead the broker is on its way out: wait for it instead of refusing.
                if _is_alive(owner) or time.monotonic() > give_up:
                    lock.close()
                    raise DirectoryInUseError(
                        f"another broker runs on {self.directory} (started by process {owner or 'unknown'}): "
                        "use that one, stop it, or choose another directory (broker.directory)"
                    ) from None
                time.sleep(0.05)
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        self._lock = lock

    def _launch(self, java: list[str]) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            ports = self._ports or self._choose_ports()
            for port in ports:
                _refuse_taken_port(port)
            self._ports = ports
            self._write_configuration(ports)
            killed = self._was_killed()
            self._format(java, ports)
            try:
                if killed:
                    self._fence_the_dead(java, ports)
                self._await_readiness(self._spawn(java, "server.properties"))
                return
            except BrokerError as error:
                taken = any(sign in str(error) for sign in _PORT_TAKEN_SIGNS)
                if not taken or all(self._given_ports) or attempt == _PORT_ATTEMPTS:
                    raise
                log.info("broker_port_lost", ports=ports, attempt=attempt)
                self._ports = None

    def _choose_ports(self) -> tuple[int, ...]:
        wanted = self._given_ports if self._security is None else (*self._given_ports, None)
        # All sockets are open at once, so that the numbers differ.
        with ExitStack() as stack:
            free = [stack.enter_context(socket.socket()) for _ in wanted]
            for free_socket in free:
                free_socket.bind((_HOST, 0))
            return tuple(
                port or int(free_socket.getsockname()[1]) for port, free_socket in zip(wanted, free, strict=True)
            )

    def _write_configuration(self, ports: tuple[int, ...]) -> None:
        try:
            properties = broker_properties(_HOST, ports, data=self.directory / "data", security=self._security)
            (self.directory / "server.properties").write_text(properties, "utf-8")
            (self.directory / "log4j2.properties").write_text(logging_properties(self.log_file), "utf-8")
            (self.directory / "logs" / "jvm.log").write_bytes(b"")
        except OSError as error:
            raise BrokerError(
                f"the broker cannot write to {self.directory}: {error.strerror}; free some space"
            ) from None

    def _format(self, java: list[str], ports: tuple[int, ...]) -> None:
        """Give a new directory its cluster id, under another name first: a half-formatted one never counts."""
        data, fresh = self.directory / "data", self.directory / "data.new"
        if data.is_dir():
            return
        shutil.rmtree(fresh, ignore_errors=True)
        configuration = self.directory / "format.properties"
        security = self._security
        configuration.write_text(broker_properties(_HOST, ports, data=fresh, security=security), "utf-8")
        users = [
            argument
            for record in (security.scram_records() if security else ())
            for argument in ("--add-scram", record)
        ]
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [
            *java[:1], "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *java[1:],
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", str(configuration), *users,
        ]  # fmt: skip
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise java_cannot_run(java[0], error) from None
        if answer.returncode != 0:
            raise BrokerError(
                f"Kafka cannot format {data}; correct the cause and start again:\n{(answer.stderr or answer.stdout).strip()}"
            )
        configuration.unlink()
        fresh.rename(data)

    def _was_killed(self) -> bool:
        data = self.directory / "data"
        return data.is_dir() and not (data / _CLEAN_SHUTDOWN_FILE).exists()

    def _fence_the_dead(self, java: list[str], ports: tuple[int, ...]) -> None:
        """Let the controller alone notice that the broker which was killed is dead, before a new one is started.

        Else the new one, not registered while the dead one's session lasts (9 s), already leads what the dead one led,
        finds the transactions that were committed but had no markers yet, cannot send them, and, when the session ends
        and no partition has a leader, takes the partitions for deleted: Kafka 4.3 then calls the transaction complete,
        without a marker. A commit that was acknowledged would be lost (docs/reliability.md).
        """
        properties = controller_properties(_HOST, ports, data=self.directory / "data", security=self._security)
        (self.directory / "controller.properties").write_text(properties, "utf-8")
        controller = self._spawn(java, "controller.properties")
        give_up, active = time.monotonic() + _ACTIVE_SECONDS, False
        while _FENCED_SIGN not in (said := controller.said()):
            if not active and _ACTIVE_SIGN in said:
                # A broker that died before it was registered is unknown, and never fenced: no reason to wait for long.
                active, give_up = True, time.monotonic() + _FENCE_SECONDS
            controller.check()
            if time.monotonic() > give_up:
                log.warning("dead_broker_not_fenced", controller_active=active, log_file=str(self.log_file))
                break
            time.sleep(0.05)
        self._stop_process()

    def _spawn(self, java: list[str], configuration: str) -> BrokerProcess:
        assert self._lock is not None
        self._process = BrokerProcess(
            java, self.directory, configuration, heap=self._heap, short_lived=self._short_lived, lock=self._lock
        )
        return self._process

    def _await_readiness(self, process: BrokerProcess) -> None:
        """Wait until the port is open, the cluster describes itself, and a throw-away transaction begins and aborts."""
        from confluent_kafka import KafkaException, Producer
        from confluent_kafka.admin import AdminClient

        give_up = time.monotonic() + _START_SECONDS
        while not _accepts(*self.bootstrap_servers.split(":")):
            self._check_alive(process, give_up, "its port does not open")
            time.sleep(0.05)
        login = {} if self._security is None else self._security.client_properties(next(iter(self._security.users)))
        client = {"bootstrap.servers": self.bootstrap_servers, "log_level": 0, "error_cb": lambda error: None, **login}
        admin = AdminClient(client)
        while True:
            try:
                admin.describe_cluster(request_timeout=2).result()
                break
            except KafkaException:
                self._check_alive(process, give_up, "it does not describe its cluster")
        # The coordinator's first answers are "loading": ask again at once instead of after librdkafka's 100 ms.
        producer = Producer({**client, "transactional.id": "sidstream-readiness", "retry.backoff.ms": 10})
        while True:
            try:
                producer.init_transactions(2)
                break
            except KafkaException:
                self._check_alive(process, give_up, "it does not begin a transaction")
        producer.begin_transaction()
        producer.abort_transaction(10)

    def _check_alive(self, process: BrokerProcess, give_up: float, complaint: str) -> None:
        process.check()
        if time.monotonic() > give_up:
            raise BrokerError(
                f"the broker on {self.directory} is not ready after {_START_SECONDS:.0f} s ({complaint}); "
                f"its log is {self.log_file}:\n{process.last_log_lines()}"
            )


def _is_alive(owner: str) -> bool:
    """Whether the process that wrote ``17 on shop-1`` runs; of another host, whose processes we do not see, ``False``."""
    pid, _, host = owner.partition(" on ")
    if not pid.isdigit() or host not in ("", os.uname().nodename):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _accepts(host: str, port: str) -> bool:
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: a port in TIME_WAIT is free
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise PortTakenError(
                f"port {port} of {_HOST} cannot be used ({error.strerror}): "
                "stop what listens there, or give the broker another port (broker.port; 0 takes a free one)"
            ) from None
