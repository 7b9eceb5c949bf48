"""Numbers that no command can use are refused by the command line, before anything is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import get_args

import pytest
from typer.testing import CliRunner

from models.commands.fit import fit
from models.commands.towers import towers
from retriever.commands import ask, evaluate
from sidstream import app

COMMANDS = (fit, towers, evaluate, ask)


def floats_of(command: Callable[..., None]) -> Iterator[str]:
    """The options of a command whose values are floats."""
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind, *_ = get_args(parameter.annotation) or (None,)
        if kind is float or float in get_args(kind):
            yield f"--{name.replace('_', '-')}"


FLOATS = [(command.__name__, option) for command in COMMANDS for option in floats_of(command)]


def refused(command: str, option: str, value: str) -> str:
    answer = CliRunner().invoke(app, [command, "nothing", option, value], env={"COLUMNS": "200"})
    assert answer.exit_code == 2, f"{command} {option} {value}: {answer.exception!r}"
    assert f"Invalid value for '{option}'" in answer.output
    return answer.output


def test_every_command_with_a_float_is_asked() -> None:
    assert {command for command, _ in FLOATS} == {command.__name__ for command in COMMANDS}
    assert ("fit", "--co-occurrence") in FLOATS


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(("command", "option"), FLOATS)
def test_option_that_is_infinite_or_no_number_is_refused(command: str, option: str, value: str) -> None:
    refused(command, option, value)


@pytest.mark.parametrize("value", ["-1", "4294967296", "1" + "0" * 30])
@pytest.mark.parametrize("command", ["fit", "towers", "evaluate"])
def test_seed_out_of_its_bounds_is_refused(command: str, value: str) -> None:
    refused(command, "--seed", value)


@pytest.mark.parametrize("value", ["-1", "1025", "100000"])
def test_threads_that_no_machine_starts_are_refused(value: str) -> None:
    refused("towers", "--threads", value)
