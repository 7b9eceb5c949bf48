"""Checkpoints of a training that is under way: Trainer's own (weights, optimizer, scheduler, random state), each whole or not
there, and known by what it was trained on.

What must hold: a checkpoint without its mark, which is written last, is none; the one before stays until the next is
marked; training never goes on from a checkpoint of other data or settings.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from models.errors import SidstreamError

VERSION: Final = 1  # of the mark and of what lies beside it
_MARK: Final = "whole.json"
_PREFIX: Final = "checkpoint-"  # Trainer's
_BEST: Final = "best-"
_SHORTEST_PAUSE_SECONDS: Final = 30.0
_PAUSES_A_WRITE: Final = 50  # so that writing takes at most a fiftieth of the time


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training was: after ``step`` steps and ``seconds``, with the ``losses`` of the last steps and the state of its
    ``validation``; ``facts``: what it was of, filled in by ``Checkpoints``.
    """

    step: int
    seconds: float
    losses: list[float]
    validation: dict[str, Any] | None = None
    facts: dict[str, Any] = {}
    version: int = VERSION


def begin_anew(directory: Path) -> None:
    """Removes all checkpoints; what a training read is not of what it learnt, and stays."""
    _remove(directory.glob("*"))


def is_under_way(directory: Path) -> bool:
    """Whether a directory holds a checkpoint to go on from."""
    return any(directory.glob(f"{_PREFIX}*/{_MARK}"))


def facts_of(directory: Path) -> dict[str, Any]:
    """What the newest whole checkpoint of a directory is of; empty without one."""
    marks = [mark for path in directory.glob(f"{_PREFIX}*") if (mark := _mark_of(path)) is not None]
    return max(marks, key=lambda mark: mark.step).facts if marks else {}


@dataclass
class Checkpoints:
    """The checkpoints of one training in a directory of their own.

    ``facts``: by the names that people know, whatever decides the weights; ``hint``: what to do about a checkpoint of
    other facts.
    """

    directory: Path
    facts: Mapping[str, Any]
    hint: str = "remove that directory to begin anew"
    clock: Callable[[], float] = time.monotonic
    _pause: float = field(default=_SHORTEST_PAUSE_SECONDS, init=False)
    _last: float = field(init=False)
    _asked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def newest(self) -> tuple[Path, Mark] | None:
        """The newest whole checkpoint. Raises ``SidstreamError`` if it is of other data or settings."""
        found = [(mark.step, path, mark) for path in self._all() if (mark := _mark_of(path)) is not None]
        if not found:
            return None
        _, path, mark = max(found, key=lambda one: one[0])
        self._require_same(mark)
        return path, mark

    def is_due(self) -> bool:
        """Whether it is time for one."""
        self._asked = self.clock()
        return self._asked - self._last >= self._pause

    def complete(self, mark: Mark) -> None:
        """Marks the checkpoint of ``mark.step``, which Trainer has written since ``is_due``, and removes older ones."""
        path = self.directory / f"{_PREFIX}{mark.step}"
        for file in sorted(path.iterdir()):
            _synchronise(file)
        partial = path / f".{_MARK}"
        partial.write_bytes(msgspec.json.encode(msgspec.structs.replace(mark, facts=_plain(self.facts))))
        _synchronise(partial)
        partial.replace(path / _MARK)
        for directory in (path, self.directory):
            _synchronise(directory)
        best = self.best(self.directory, mark.validation["best_step"]) if mark.validation else None
        _remove(other for other in self.directory.iterdir() if other not in (path, best))
        self._last = self.clock()
        self._pause = max(_SHORTEST_PAUSE_SECONDS, _PAUSES_A_WRITE * (self._last - self._asked))

    @staticmethod
    def best(directory: Path, step: int) -> Path:
        """Where the weights lie that validation liked best, those after ``step``."""
        return directory / f"{_BEST}{step}.safetensors"

    def remove(self) -> None:
        """Removes them all: the model is where it belongs."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _all(self) -> list[Path]:
        return [path for path in self.directory.glob(f"{_PREFIX}*") if path.is_dir()]

    def _require_same(self, mark: Mark) -> None:
        if mark.version != VERSION:
            raise SidstreamError(
                f"{self.directory} holds a training of another sidstream (checkpoints of version {mark.version}, this one has "
                f"{VERSION}): end it with that one, or {self.hint}"
            )
        now = _plain(self.facts)
        names = [name for name in dict.fromkeys((*mark.facts, *now)) if mark.facts.get(name) != now.get(name)]
        if names:
            differences = "; ".join(
                f"{name} {_told(mark.facts.get(name))} there, {_told(now.get(name))} here" for name in names
            )
            raise SidstreamError(
                f"{self.directory} holds a training that stopped after {mark.step:,} steps, and it is another one: "
                f"{differences}. Give what it was given to go on with it, or {self.hint}"
            )


def _remove(paths: Iterable[Path]) -> None:
    """Those of them that are checkpoints or best weights."""
    for path in list(paths):
        if path.name.startswith((_PREFIX, _BEST)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _mark_of(path: Path) -> Mark | None:
    try:
        return msgspec.json.decode((path / _MARK).read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise SidstreamError(
            f"the checkpoint {path} cannot be read ({error}): remove it to go on from the one before, or begin anew"
        ) from error


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON, to be compared."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(dict(facts)))
    return plain


def _told(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _synchronise(path: Path) -> None:
    """Return once a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
