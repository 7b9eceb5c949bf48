"""Where results live: small records under ``docs/study/results``, kept with the project, and big ones (trained models,
checkpoints) under ``.sidstream/study``, kept on this machine.

What must hold: a record is written whole or not at all, and says by which choice and code it came about.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import msgspec

from study.experiments.configuration import RunChoice


class RunResult(msgspec.Struct, kw_only=True):
    """One trained model. ``curve``: (epochs, loss) as training went; ``parameters``: of the model; ``loss``: mean of the
    last steps, natural logarithm a token; ``seconds``: of training, on the machine that trained it; ``measured``: name →
    figures.
    """

    choice: RunChoice
    parameters: int
    loss: float
    seconds: float
    targets: int
    curve: list[tuple[float, float]]
    measured: dict[str, Any] = msgspec.field(default_factory=dict)


class Results:
    """The records of a study by key."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        """``directory`` for records, ``scratch`` for models."""
        self.directory, self.scratch = directory, scratch

    def model_directory(self, choice: RunChoice) -> Path:
        """Where a trained model's weights lie."""
        return self.scratch / choice.key

    def checkpoints(self, choice: RunChoice) -> Path:
        """Where a training that is under way keeps its last epoch."""
        return self.scratch / f"{choice.key}-checkpoints"

    def run(self, choice: RunChoice) -> RunResult | None:
        """The result of a run, None if it has not been run."""
        path = self._path("run", choice.key)
        return msgspec.json.decode(path.read_bytes(), type=RunResult) if path.is_file() else None

    def write_run(self, result: RunResult) -> None:
        """Keeps a run's result."""
        record = {field: getattr(result, field) for field in RunResult.__struct_fields__}
        self._write(self._path("run", result.choice.key), record | {"choice": result.choice.said()})

    def record(self, kind: str, key: str) -> Any:
        """Another record as plain values, None if there is none."""
        path = self._path(kind, key)
        return msgspec.json.decode(path.read_bytes()) if path.is_file() else None

    def write_record(self, kind: str, key: str, record: Mapping[str, Any] | msgspec.Struct) -> None:
        """Keeps another record."""
        self._write(self._path(kind, key), record)

    def forget_run(self, choice: RunChoice) -> None:
        """Forgets a run's result, its model and its checkpoints."""
        self.forget("run", choice.key)
        rmtree(self.model_directory(choice), ignore_errors=True)
        rmtree(self.checkpoints(choice), ignore_errors=True)

    def forget(self, kind: str, key: str) -> None:
        """Forgets another record."""
        self._path(kind, key).unlink(missing_ok=True)

    def _path(self, kind: str, key: str) -> Path:
        return self.directory / f"{kind}-{key}.json"

    def _write(self, path: Path, record: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(_laid_out(record) + b"\n")
        partial.replace(path)


def _laid_out(record: Any) -> bytes:
    """JSON with a line a figure, but each point of a curve in one line."""
    text = msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=1).decode()
    return re.sub(r"\[\s+(-?[\d.e-]+),\s+(-?[\d.e-]+)\s+\]", r"[\1, \2]", text).encode()
