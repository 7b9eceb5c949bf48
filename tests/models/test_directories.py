"""Directories that a person has named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from models.directories import (
    DirectoryError,
    FileTargetError,
    make_directory,
    require_writable_directory,
    require_writable_file,
)


def test_directory_is_made_with_those_above_it_and_one_that_is_there_is_as_good(tmp_path: Path) -> None:
    assert make_directory(tmp_path / "a" / "b").is_dir()
    assert make_directory(tmp_path / "a") == tmp_path / "a"


@pytest.mark.parametrize("name", ["file", "file/within"])
def test_what_a_file_has_the_name_of_cannot_be_made_and_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryError, match=f"{name} cannot be made: .*; name another directory"):
        make_directory(tmp_path / name)


@pytest.mark.parametrize("name", ["new", "new/within", "there"])
def test_directory_that_can_be_written_passes_and_nothing_is_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    require_writable_directory(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "file is a file, not a directory"),
        ("file/within", "within cannot be made: Not a directory; name another directory"),
        ("x" * 300, "cannot be made: File name too long"),
    ],
)
def test_directory_that_cannot_be_made_is_refused_before_it_is_needed(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryError, match=message):
        require_writable_directory(tmp_path / name)


def test_place_where_this_user_may_not_write_is_refused_for_directories_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # whoever runs the tests may be root, who may write anywhere
    with pytest.raises(DirectoryError, match="cannot be written to: Permission denied; name another directory"):
        require_writable_directory(tmp_path)
    with pytest.raises(DirectoryError, match="new cannot be made: Permission denied"):
        require_writable_directory(tmp_path / "new")
    with pytest.raises(FileTargetError, match=r"new\.json cannot be written: Permission denied; name another file"):
        require_writable_file(tmp_path / "new.json")


def test_file_that_can_be_written_passes_and_holds_what_it_held(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for name in ("there", "new", "folder/new"):
        require_writable_file(tmp_path / name)
    require_writable_file(Path(os.devnull))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    assert (tmp_path / "there").read_text() == "mine"


def test_pipe_with_a_reader_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    require_writable_file(tmp_path / "pipe")  # to open it would wait for a reader, for ever


@pytest.mark.parametrize(
    ("name", "message"), [("folder", "is a directory, and a file is to be written"), ("file/within", "Not a directory")]
)
def test_file_that_cannot_be_written_is_refused_before_it_is_needed(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileTargetError, match=message):
        require_writable_file(tmp_path / name)
