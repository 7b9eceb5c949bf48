"""A real schema registry for tests: Apicurio's application, which speaks Confluent's API, from Maven as Kafka's jars are."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from streamer.local.kafka_distribution import cache_directory, find_java
from support.patience import PATIENCE_SECONDS
from support.processes import free_port

VERSION: Final = "3.3.3"
_SHA256: Final = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
_FETCH_SECONDS: Final = 120


def application() -> Path:
    """The unpacked application, fetched on first use; a test that needs it is skipped where it cannot be had."""
    directory = cache_directory() / f"apicurio-registry-{VERSION}"
    if not directory.is_dir():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        archive = _fetched(partial / "download")
        with tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
        shutil.rmtree(partial / "download")
        try:
            partial.rename(directory)
        except OSError:  # another run was first
            shutil.rmtree(partial, ignore_errors=True)
    return directory


def _fetched(into: Path) -> Path:
    import requests
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    context = MavenContext(
        repo_cache=into, remote_repos=GlobalSettings.load().repositories or None, timeout=_FETCH_SECONDS
    )
    project = context.project("io.apicurio", "apicurio-registry-app").at_version(VERSION)
    try:
        path: Path = project.artifact(classifier="all", packaging="tar.gz").resolve()
    except (requests.RequestException, RuntimeError) as error:
        pytest.skip(f"the schema registry cannot be fetched from Maven ({type(error).__name__})")
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == _SHA256, "another archive than the one that was tried"
    return path


class SchemaRegistry:
    """The application on a port of loopback, its schemas in memory."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "registry.log"

    def __enter__(self) -> Self:
        while not self._starts():
            pass  # another process has taken the port meanwhile
        return self

    def _starts(self) -> bool:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
        options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx384m", "-Dquarkus.http.host=127.0.0.1"]
        options += [f"-Dquarkus.http.port={port}", "-jar", "quarkus-run.jar"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [find_java().executable, *options], cwd=application(), stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                said = self._log.read_text()
                assert "Address already in use" in said, said[-2_000:]
                return False
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.1)
        return True

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def pause(self) -> None:
        """It keeps its port, and answers nobody."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
