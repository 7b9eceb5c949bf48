"""The pinned requirements: every platform that docs/platforms.md names has the files of each package, known without a network."""

from __future__ import annotations

import csv
import re
from collections import defaultdict

import pytest

from support.ci_scripts import of_ci
from support.paths import ROOT

wheels = of_ci("wheels")
# What has to be built there, and the page says so.
BUILT = {("Linux aarch64", "faust-streaming")}


def pinned() -> dict[str, tuple[str, str | None, set[str]]]:
    """package → (version, marker, sha256 of its files) of ``requirements/dev.txt``."""
    text = (ROOT / "requirements" / "dev.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if match := re.match(r"([a-z0-9][\w.-]*)==(\S+)(?: ; (.*?))?\s+--hash", line):
            found[match[1]] = (match[2], match[3], set(re.findall(r"sha256:([0-9a-f]{64})", line)))
    return found


PINNED = pinned()
with (ROOT / "requirements" / "wheels.tsv").open(newline="") as _table:
    ROWS = list(csv.DictReader(_table, delimiter="\t"))


PAGE = (ROOT / "docs" / "platforms.md").read_text()


def platforms_of_the_page() -> set[str]:
    """The first cells of its table, less those that it says are not known to work."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    return {name for name, has, *_ in rows[2:] if has.startswith("every package")}


def test_lock_has_every_package_once_with_hashes() -> None:
    assert len(PINNED) > 100
    assert all(hashes for _, _, hashes in PINNED.values())


def test_table_is_of_the_lock() -> None:
    for row in ROWS:
        version, _, hashes = PINNED[row["package"]]
        assert (row["version"], row["sha256"] in hashes) == (version, True), f"{row['file']}: run `make lock`"


@pytest.mark.parametrize("platform", wheels.PLATFORMS)
def test_every_package_that_a_platform_needs_has_a_wheel_for_it(platform: str) -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for row in ROWS:
        if row["platform"] == platform:
            files[row["package"]].append(row["file"])
    assert files.keys() == {name for name, (_, marker, _) in PINNED.items() if wheels.needed(marker, platform)}
    built = set()
    for name, [file] in files.items():
        if not file.endswith(".whl"):
            built.add((platform, name))
        else:
            assert wheels.best_wheel([file], platform) == file, f"{file} is not for {platform}"
    assert built == {entry for entry in BUILT if entry[0] == platform}


def test_page_names_the_platforms_of_the_table_and_no_other() -> None:
    assert platforms_of_the_page() == set(wheels.PLATFORMS)
    assert all(package in PAGE for _, package in BUILT), "what has to be built is said"


def test_cuda_is_pinned_for_linux_alone() -> None:
    cuda = {name for name in PINNED if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert cuda
    assert not {row["package"] for row in ROWS if row["platform"] == "macOS arm64"} & cuda


def test_a_wheel_of_another_machine_is_no_wheel() -> None:
    files = [
        "x-1-cp311-cp311-manylinux_2_17_aarch64.whl",
        "x-1-cp39-abi3-macosx_11_0_arm64.whl",
        "x-1-cp312-cp312-linux_x86_64.whl",
    ]
    assert wheels.best_wheel(files, "Linux aarch64") == files[0]
    assert wheels.best_wheel(files, "macOS arm64") == files[1]
    assert wheels.best_wheel(files, "Linux x86_64") is None
