"""One run of Kafka's JVM: started under a guard, stopped, and, when it has died by itself, why.

What must hold: the JVM never outlives the process that started it, and it holds the directory's lock for as long as it lives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import structlog

from models.errors import SidstreamError
from streamer.local import broker_guard

log = structlog.get_logger(__name__)

STOP_SECONDS: Final = 30.0
_LOG_LINES_SHOWN: Final = 12
# Compiled lightly, and collected by what costs the least in all.
_SHORT_LIVED: Final = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
# Collected as Kafka's own scripts have it: pauses of 10 ms where the serial one's are 20 to 50.
_LONG_LIVED: Final = ("-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20")


class BrokerError(SidstreamError):
    """The local broker cannot be started or has died; the message says why and what to do."""


class BrokerProcess:
    """A JVM that runs from the construction of this object on.

    Args:
        java: the executable and the options that make it find Kafka's classes.
        directory: of the broker; with ``logs/`` and ``log4j2.properties``.
        configuration: the properties file to run, by its name in ``directory``.
        heap: as ``-Xmx`` takes it.
        short_lived: leave out the optimising compiler.
        lock: a locked file that the JVM inherits, so that a killed starter frees nothing.

    Raises:
        BrokerError: this Java cannot be run here.
    """

    def __init__(
        self, java: Sequence[str], directory: Path, configuration: str, *, heap: str, short_lived: bool, lock: IO[str]
    ) -> None:
        self._directory = directory
        self.log_file = directory / "logs" / "kafka.log"
        self.jvm_log_file = directory / "logs" / "jvm.log"
        self._earlier_log_bytes = self.log_file.stat().st_size if self.log_file.is_file() else 0
        self._stopping = False
        command = [
            *java[:1], f"-Xmx{heap}", "-Xshare:auto", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
            *(_SHORT_LIVED if short_lived else _LONG_LIVED), *java[1:],
            f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}",
            "kafka.Kafka", str(directory / configuration),
        ]  # fmt: skip
        with self.jvm_log_file.open("ab") as output:
            try:
                # A session of its own: the terminal's Ctrl-C goes to us, and we stop it last.
                self._jvm = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    pass_fds=(lock.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                raise java_cannot_run(java[0], error) from None
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", broker_guard.__file__, str(os.getpid()), str(self._jvm.pid)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._jvm.pid

    @property
    def running(self) -> bool:
        return self._jvm.poll() is None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help; returns when both JVM and guard have ended."""
        self._stopping = True
        if self.running:
            self._jvm.send_signal(signal.SIGTERM)
            try:
                self._jvm.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("broker_killed", waited_seconds=STOP_SECONDS, log_file=str(self.log_file))
                self._jvm.kill()
                self._jvm.wait()
        self._guard.wait()  # it ends with the JVM

    def kill(self) -> None:
        """SIGKILL, from any thread; returns at once."""
        self._jvm.kill()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block while it runs, at most ``timeout_seconds``.

        Raises:
            BrokerError: it ended without being asked to.
        """
        try:
            self._jvm.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return
        if not self._stopping:
            self.check()

    def check(self) -> None:
        """Raises:
        BrokerError: it has ended; with the last lines that it said.
        """
        status = self._jvm.poll()
        if status is None:
            return
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        raise BrokerError(
            f"the broker on {self._directory} died ({how}); its logs are {self.log_file} and {self.jvm_log_file}:\n"
            f"{self.last_log_lines()}"
        )

    def said(self) -> str:
        """What this run has written into Kafka's log."""
        return _beyond(self.log_file, self._earlier_log_bytes)

    def last_log_lines(self) -> str:
        """For a person: what this run said last, and rather what failed than what followed."""
        lines: list[str] = []
        for said in (self.said(), _beyond(self.jvm_log_file, 0)):
            tail = said[-100_000:].splitlines()
            # What failed is said before the stack trace and the shutdown's chatter.
            telling = [line for line in tail if " ERROR " in line or " FATAL " in line or "Exception" in line]
            lines += (telling or tail)[-_LOG_LINES_SHOWN:]
        return "\n".join(f"  {line}" for line in lines)


def java_cannot_run(executable: str, error: OSError) -> BrokerError:
    """The operating system refuses to run this Java."""
    return BrokerError(
        f"the Java {executable} cannot be run on this machine ({error.strerror or error}): "
        "point JAVA_HOME at a Java that is made for it"
    )


def _beyond(log_file: Path, earlier_bytes: int) -> str:
    """What a log has beyond its first ``earlier_bytes``; all of it if it was rolled since."""
    try:
        with log_file.open("rb") as file:
            if file.seek(0, os.SEEK_END) >= earlier_bytes:
                file.seek(earlier_bytes)
            else:
                file.seek(0)
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
