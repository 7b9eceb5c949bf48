"""Numbers that no command can use are refused by the command line, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from sidstream import app


def floats_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """The options whose values are floats of a command and of all below it."""
    for name, below in getattr(command, "commands", {}).items():
        yield from floats_of(below, (*path, name))
    for option in command.params:
        if float in (option.type_descriptor.annotation, *get_args(option.type_descriptor.annotation)) and option.opts[
            0
        ].startswith("--"):
            yield " ".join(path), option.opts[0]


FLOATS = list(floats_of(get_command(app)))


def refused(command: str, option: str, value: str) -> str:
    answer = CliRunner().invoke(app, [*command.split(), "nothing", option, value], env={"COLUMNS": "200"})
    assert answer.exit_code == 2, f"{command} {option} {value}: {answer.exception!r}"
    assert f"Invalid value for '{option}'" in answer.output
    return answer.output


def test_every_command_with_a_float_is_asked() -> None:
    commands = {command for command, _ in FLOATS}
    assert {"fit", "towers", "train", "evaluate", "ask", "refresh", "publish", "export", "deploy", "retire"} <= commands
    assert ("fit", "--co-occurrence") in FLOATS


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(("command", "option"), FLOATS)
def test_option_that_is_infinite_or_no_number_is_refused(command: str, option: str, value: str) -> None:
    refused(command, option, value)


@pytest.mark.parametrize("value", ["-1", "4294967296", "1" + "0" * 30])
@pytest.mark.parametrize("command", ["fit", "towers", "train", "evaluate"])
def test_seed_out_of_its_bounds_is_refused(command: str, value: str) -> None:
    refused(command, "--seed", value)


@pytest.mark.parametrize("value", ["-1", "1025", "100000"])
@pytest.mark.parametrize("command", ["towers", "train"])
def test_threads_that_no_machine_starts_are_refused(command: str, value: str) -> None:
    refused(command, "--threads", value)
