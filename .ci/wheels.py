"""Writes ``requirements/wheels.tsv``: the files that the pinned requirements are on each platform that docs/platforms.md names.

Run by ``make lock`` with the lock as ``pylock.toml``, which has the files' names beside their hashes. That page's words on
platforms are tested against the table and the table against ``requirements/dev.txt``; ``first_steps.py`` reads sizes from it.
"""

from __future__ import annotations

import csv
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "requirements" / "wheels.tsv"
COLUMNS = ("platform", "package", "version", "bytes", "sha256", "file")
PYTHON = (3, 11)


class Platform(NamedTuple):
    """``tags``: what its wheels may be called, the best first; ``environment``: what the lock's markers ask."""

    tags: tuple[str, ...]
    environment: dict[str, str]


def _linux(machine: str) -> Platform:
    """With glibc 2.31 or newer: Debian 11, Ubuntu 20.04, RHEL 9."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(31, 16, -1)]
    old = (
        f"manylinux2014_{machine}",
        *((f"manylinux2010_{machine}", f"manylinux1_{machine}") if machine == "x86_64" else ()),
    )
    environment = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine, "os_name": "posix"}
    return Platform((*tags, *old, f"linux_{machine}"), environment)


PLATFORMS = {
    "Linux x86_64": _linux("x86_64"),
    "Linux aarch64": _linux("aarch64"),
    "macOS arm64": Platform(
        tuple(mac_platforms((14, 0), "arm64")),
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
    ),
}


def needed(marker: str | None, platform: str) -> bool:
    """Whether a requirement with this marker is installed on the platform by CPython 3.11."""
    version = ".".join(map(str, PYTHON))
    fixed = {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    return marker is None or Marker(marker).evaluate({**fixed, **PLATFORMS[platform].environment})


def tags_of(platform: str) -> list[Tag]:
    """What CPython 3.11 installs there, the best first."""
    names = PLATFORMS[platform].tags
    return [*cpython_tags(PYTHON, platforms=names), *compatible_tags(PYTHON, "cp311", names)]


def best_wheel(files: Iterable[str], platform: str) -> str | None:
    """The file that an installer takes there; None if it would have to build one."""
    tags = {tag: rank for rank, tag in enumerate(tags_of(platform))}
    ranks = {}
    for file in files:
        fitting = [tags[tag] for tag in parse_wheel_filename(file)[3] if tag in tags]
        if fitting:
            ranks[file] = min(fitting)
    return min(ranks, key=ranks.__getitem__, default=None)


def rows(packages: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, str, int, str, str]]:
    """A row for each platform and package, of the wheel, or of the sources where there is no wheel."""
    for package in packages:
        files = {_name(wheel): wheel for wheel in package.get("wheels", [])}
        for platform in PLATFORMS:
            if not needed(package.get("marker"), platform):
                continue
            name = best_wheel(files, platform)
            file = files[name] if name else package.get("sdist")
            if file is not None:
                yield (
                    platform,
                    package["name"],
                    package["version"],
                    file["size"],
                    file["hashes"]["sha256"],
                    name or _name(file),
                )


def _name(file: dict[str, Any]) -> str:
    return unquote(urlparse(file["url"]).path.rsplit("/", 1)[-1]) if "url" in file else str(file["name"])


def main(lock: Path) -> None:
    packages = tomllib.loads(lock.read_text())["packages"]
    with TABLE.open("w", newline="") as output:
        writer = csv.writer(output, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows(packages)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
