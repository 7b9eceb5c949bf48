"""Directories that a person has named."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.directories import DirectoryError, make_directory


def test_directory_is_made_with_those_above_it_and_one_that_is_there_is_as_good(tmp_path: Path) -> None:
    assert make_directory(tmp_path / "a" / "b").is_dir()
    assert make_directory(tmp_path / "a") == tmp_path / "a"


@pytest.mark.parametrize("name", ["file", "file/within"])
def test_what_a_file_has_the_name_of_cannot_be_made_and_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryError, match=f"{name} cannot be made: .*; name another directory"):
        make_directory(tmp_path / name)
