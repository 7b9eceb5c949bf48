"""What `make demo` and `make test` say before there is anything to run: on machines that this one is not."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamer.local.kafka_distribution import CACHE_VARIABLE, KAFKA_VERSION, pinned_jars
from support.ci_scripts import of_ci
from support.paths import ROOT

first_steps = of_ci("first_steps")
GIGABYTE = 1_000_000_000


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Any]:
    """Machines with a checkout that has never been set up and ``disk`` free bytes; ``facts`` are fields of ``Machine``."""
    checkout = tmp_path / "checkout"
    (checkout / "requirements").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    for name in ("dev.txt", "wheels.tsv"):
        (checkout / "requirements" / name).write_bytes((ROOT / "requirements" / name).read_bytes())

    def made(name: str = "Linux x86_64", disk: int = 100 * GIGABYTE, **facts: Any) -> Any:
        class Faked(first_steps.Machine):  # type: ignore[misc, name-defined]
            def free(self, directory: Path) -> int:
                return disk

        return Faked(**{"name": name, "environment": {}, "root": checkout, "home": tmp_path / "home", **facts})

    return made


def set_up(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".ready").touch()


@pytest.mark.parametrize("command", ["demo", "test"])
def test_first_run_says_what_it_fetches_how_much_and_where_it_is_kept(
    machine: Callable[..., Any], command: str
) -> None:
    first, python, kafka, total = first_steps.announcement(machine(), command)
    assert "fetches" in first
    assert "3.4 GB" in python
    assert "PyTorch with CUDA" in python
    assert ".venv" in python
    assert f"Apache Kafka {KAFKA_VERSION} ({len(pinned_jars())} jars)" in kafka
    assert "~/.cache/sidstream" in kafka
    assert "of disk in all" in total
    assert first_steps.troubles(machine(), command) == []


def test_mac_fetches_no_cuda(machine: Callable[..., Any]) -> None:
    _, python, *_ = first_steps.announcement(machine("macOS arm64"), "demo")
    assert "CUDA" not in python
    assert "MB" in python


def test_nothing_is_said_when_everything_is_here(machine: Callable[..., Any]) -> None:
    here = machine()
    set_up(here.root)
    (first_steps.cache_directory(here) / f"kafka-{KAFKA_VERSION}").mkdir(parents=True)
    for command in ("demo", "test", "setup"):
        assert first_steps.announcement(here, command) == []
        assert first_steps.troubles(here, command) == []
        assert first_steps.doubts(here) == []


def test_kafka_alone_is_fetched_when_only_it_is_missing_and_an_installed_one_is_used(
    machine: Callable[..., Any],
) -> None:
    here = machine()
    set_up(here.root)
    assert [fetch.what[:12] for fetch in first_steps.fetches(here, "test")] == ["Apache Kafka"]
    assert first_steps.fetches(here, "setup") == []
    assert first_steps.fetches(dataclasses.replace(here, environment={"KAFKA_HOME": "/opt/kafka"}), "test") == []


def test_environment_older_than_its_requirements_is_set_up_again(machine: Callable[..., Any]) -> None:
    here = machine()
    set_up(here.root)
    assert first_steps.environment_is_ready(here)
    os.utime(here.root / ".venv" / ".ready", (0, 0))
    assert not first_steps.environment_is_ready(here)


def test_too_little_disk_is_said_with_how_much_to_free(machine: Callable[..., Any]) -> None:
    [sentence] = first_steps.troubles(machine(disk=2 * GIGABYTE), "demo")
    assert "too little disk" in sentence
    assert "2.0 GB are free" in sentence
    assert "free 6.6 GB" in sentence, sentence
    here = machine(disk=GIGABYTE, environment={"KAFKA_HOME": "/opt/kafka"})
    set_up(here.root)
    [sentence] = first_steps.troubles(here, "test")
    assert "TMPDIR" in sentence


def test_links_to_what_uv_has_unpacked_already_take_no_room(machine: Callable[..., Any]) -> None:
    here = machine(disk=2 * GIGABYTE)
    (first_steps.uv_cache(here) / "archive-v0").mkdir(parents=True)
    assert first_steps.troubles(here, "demo") == []


def test_platform_without_wheels_is_named_and_without_java_the_run_ends(machine: Callable[..., Any]) -> None:
    here = machine("Linux riscv64")
    [doubt] = first_steps.doubts(here)
    assert "Linux riscv64" in doubt
    [sentence] = first_steps.troubles(here, "demo")
    assert "no Java for Linux riscv64" in sentence
    assert "JAVA_HOME" in sentence
    assert first_steps.troubles(here, "setup") == []
    assert first_steps.troubles(dataclasses.replace(here, java="/usr/bin/java"), "demo") == []


def test_java_home_without_java_is_refused(machine: Callable[..., Any], tmp_path: Path) -> None:
    [sentence] = first_steps.troubles(machine(environment={"JAVA_HOME": str(tmp_path)}), "test")
    assert str(tmp_path / "bin" / "java") in sentence
    assert "correct JAVA_HOME or unset it" in sentence


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "WARNING: Retrying … NewConnectionError('… Temporary failure in name resolution')",
            "no package registry answers",
        ),
        (
            "error: Failed to fetch: `x`\n  Caused by: client error (Connect)\n  Caused by: dns error",
            "no package registry",
        ),
        ("error: Request failed after 3 retries\n  Caused by: operation timed out", "no package registry answers"),
        ("[Errno 28] No space left on device", "the disk is full"),
        ("error: failed to copy file: No space left on device (os error 28)", "the disk is full"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] …", "certificate"),
        ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 …'))", "proxy"),
        ("HTTP status client error (401 Unauthorized) for url", "refuses us"),
        ("error: Hash mismatch for `torch==2.15.0`", "not the one that is pinned"),
        ("torch==2.15.0 has no wheels with a matching platform tag", "no ready-made wheel"),
        ("error: command 'gcc' failed: No such file or directory", "no ready-made wheel"),
        ("The virtual environment was not created successfully because ensurepip is not available.", "python3-venv"),
        ("error: failed to create directory: Permission denied (os error 13)", "cannot be written"),
        ("something new\n\nwent wrong\n", "something new / went wrong"),
        ("", "no word"),
    ],
)
def test_what_an_installer_says_becomes_a_sentence_that_says_what_to_do(output: str, words: str) -> None:
    assert words in first_steps.translated(output)


def test_installer_that_fails_ends_the_command_with_a_sentence_and_keeps_what_it_said(
    machine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = machine()

    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "error: dns error: failed to lookup address\n")

    monkeypatch.setattr(first_steps, "this_machine", lambda: here)
    monkeypatch.setattr(first_steps.subprocess, "run", fail)
    assert first_steps.main("setup") == 1
    said = capsys.readouterr()
    assert "no package registry answers: connect to the network" in said.err
    assert "Traceback" not in said.err
    assert "failed to lookup address" in (here.root / ".venv" / "setup.log").read_text()
    assert not first_steps.environment_is_ready(here)


def test_what_is_said_of_kafka_is_what_the_broker_does(machine: Callable[..., Any], tmp_path: Path) -> None:
    assert len(pinned_jars()) == first_steps.KAFKA_JARS
    here = machine(environment={CACHE_VARIABLE: str(tmp_path)})
    assert f"kafka-{KAFKA_VERSION}" in [fetch.directory.name for fetch in first_steps.fetches(here, "demo")]
    assert first_steps.cache_directory(here) == tmp_path


def test_script_needs_nothing_but_python_and_names_no_registry(tmp_path: Path) -> None:
    program = f"import runpy; runpy.run_path({str(ROOT / '.ci' / 'first_steps.py')!r})"
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert "://" not in (ROOT / ".ci" / "first_steps.py").read_text()


def test_help_shows_the_first_commands_first() -> None:
    # Run by `make test` it would say which directory it enters.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    answer = subprocess.run(["make", "help"], capture_output=True, text=True, check=True, cwd=ROOT, env=outside)
    shown = answer.stdout
    commands = [line.split()[1] for line in shown.splitlines()]
    assert commands[:3] == ["demo", "test", "setup"]
    assert commands[-1] == "help"
    assert {"lint", "bench", "chaos", "audit", "lock", "clean"} < set(commands)


def test_parts_of_the_tests_that_run_side_by_side_are_of_folders_that_there_are_each_in_one() -> None:
    parts = re.findall(r'^\t"(tests/.*)"$', (ROOT / ".ci" / "test").read_text(), re.MULTILINE)
    folders = " ".join(parts).split()
    assert len(parts) == 4
    assert len(folders) == len(set(folders)) > 2
    assert all((ROOT / folder).is_dir() for folder in folders)
