"""The state of a refresh on the disk: its moments, what is done, and where each step leaves what it makes.

What must hold: the state is written after a step and before the next one, whole or not at all; what a step left half done is
removed before it is done again; a refresh that has ended makes room for the next one and stays to be looked at.
"""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from models.bundles.manifest import synchronise
from models.errors import SidstreamError

Outcome = Literal["promoted", "rolled back", "kept"]
_STATE: Final = "state.json"
_CURRENT: Final = "current"
_KEPT: Final = 3  # refreshes that have ended


class RefreshError(SidstreamError):
    """A refresh cannot go on; the message says what to do."""


class RefreshState(msgspec.Struct, frozen=True, kw_only=True):
    """Times are milliseconds since the epoch. Interactions from ``since`` on are learnt, those from ``split`` to ``until`` are
    measured on. ``asked``: what was asked for, in words: a refresh goes on with the same alone. ``serving``: the bundle that
    answered when it began; ``done``: step → what came of it, in words; ``candidate``: the new bundle's id; ``deployed_at``: since
    when it answers its share.
    """

    record_version: int = 1
    asked: str
    since: int
    split: int
    until: int
    serving: str
    done: dict[str, str] = {}
    candidate: str | None = None
    deployed_at: int | None = None
    outcome: Outcome | None = None

    def with_done(self, step: str, said: str) -> RefreshState:
        """The state after a step."""
        return msgspec.structs.replace(self, done={**self.done, step: said})


class RefreshFolder:
    """``<work>/current`` of the refresh that is under way; those that have ended lie beside it, by their time."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.root = work / _CURRENT
        self.catalogue = self.root / "catalogue"
        self.train = self.root / "train.jsonl"
        self.test = self.root / "test.jsonl"
        self.bundle = self.root / "bundle"
        self.evaluation = self.root / "evaluation.json"

    def load(self) -> RefreshState | None:
        """The state of the refresh that is under way; None if there is none. Raises ``RefreshError`` for one that is damaged."""
        path = self.root / _STATE
        if not path.is_file():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=RefreshState)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise RefreshError(f"{path} cannot be read ({error}): begin anew with --anew") from error

    def save(self, state: RefreshState) -> None:
        """Returns once the state is on the disk."""
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".{_STATE}"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))
        synchronise(temporary)
        os.replace(temporary, self.root / _STATE)
        synchronise(self.root)

    def clear(self, *paths: Path) -> None:
        """Removes what a step may have left half done."""
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def end(self, state: RefreshState) -> Path:
        """Puts the refresh aside, without its catalogue and examples; of those before it the last ones stay."""
        self.save(state)
        self.clear(self.catalogue, self.train, self.test)
        name = datetime.fromtimestamp(state.until / 1000, UTC).strftime("%Y-%m-%dT%H-%M-%S")
        target = self.work / name
        self.clear(target)
        os.rename(self.root, target)
        for old in sorted(path for path in self.work.iterdir() if (path / _STATE).is_file() and path != self.root)[
            :-_KEPT
        ]:
            shutil.rmtree(old)
        return target
