"""The page of the command line, made from the Typer application."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import typer

import sidstream
from documentation.markdown import anchor, code, plain, table, unbroken

PAGE: Final = "reference/command-line.md"
_WORDS: Final[dict[Any, str]] = {str: "text", int: "number", float: "number", Path: "path", bool: "switch"}
_BEGINNING: Final = """\
# Command line

Made from the code; `sidstream --help` and `sidstream COMMAND --help` say the same.
"""


def commands() -> Iterator[tuple[str, str, Any]]:
    """(group, whole name, command) of each command, in the order of ``sidstream --help``."""
    root: Any = typer.main.get_command(sidstream.app)
    for name, command in root.commands.items():
        group = str(command.rich_help_panel)
        inner = getattr(command, "commands", None)
        if inner is None:
            yield group, f"sidstream {name}", command
        else:
            for below, one in inner.items():
                yield group, f"sidstream {name} {below}", one


@cache
def command_names() -> set[str]:
    """``sidstream ask``, ``sidstream dlq list`` and so on."""
    return {name for _, name, _ in commands()}


def command_anchor(name: str) -> str:
    return name.replace(" ", "-")


def command_line_page() -> str:
    """The page, in Markdown."""
    lines = [_BEGINNING]
    root: Any = typer.main.get_command(sidstream.app)
    lines += ["## Before the command", "", plain(inspect.cleandoc(root.callback.__doc__)), ""]
    lines += [*_options(root.params), ""]
    groups: dict[str, list[tuple[str, Any]]] = {}
    for group, name, command in commands():
        groups.setdefault(group, []).append((name, command))
    for group, members in groups.items():
        lines += [f"## {group}", ""]
        for name, command in members:
            lines += _command(name, command)
    return "\n".join(lines)


def _command(name: str, command: Any) -> list[str]:
    arguments = [one for one in command.params if _is_argument(one)]
    usage = " ".join([name, "[OPTIONS]", *(_usage(one) for one in arguments)])
    lines = [f"### {name} {{ #{command_anchor(name)} }}", ""]
    lines += [*(plain(line) for line in inspect.cleandoc(command.help or "").splitlines()), ""]
    lines += ["```", usage, "```", ""]
    if arguments:
        rows = [(code(one.name), _type(one), plain(one.help or "")) for one in arguments]
        lines += [*table(("argument", "type", "meaning"), rows), ""]
    options = _options(command.params, command_anchor(name))
    return [*lines, *options, ""] if options else lines


def _options(params: list[Any], inside: str = "") -> list[str]:
    rows = []
    for one in params:
        if _is_argument(one) or one.hidden or one.name in ("help", "install_completion", "show_completion"):
            continue
        names = ", ".join(unbroken(name) for name in (*one.opts, *one.secondary_opts))
        place = anchor(f"{inside}{one.opts[0]}") if inside else ""
        rows.append((place + names, _type(one), _default(one), plain(one.help or "")))
    return table(("option", "type", "default", "meaning"), rows) if rows else []


def _is_argument(param: Any) -> bool:
    return not param.opts[0].startswith("-")


def _usage(argument: Any) -> str:
    name = str(argument.name).upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _type(param: Any) -> str:
    kind, repeated = param.type_descriptor.annotation, param.multiple or param.nargs == -1
    while get_origin(kind) in (list, types.UnionType) or repr(get_origin(kind)) == "typing.Union":
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        word = ", ".join(code(str(value)) for value in get_args(kind))
    elif inspect.isclass(kind) and issubclass(kind, Enum):
        word = ", ".join(code(str(value.value)) for value in kind)
    else:
        word = _WORDS.get(kind, "text")
    bounds = " to ".join(f"{bound:,}" for bound in (param.min, param.max) if bound is not None)
    if bounds:
        word += f" ({'from ' if param.max is None else '' if param.min is not None else 'to '}{bounds})"
    return f"{word}, repeatable" if repeated else word


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return code(param.show_default)
    value = param.default
    if value is None or value is False or value == () or value == [] or param.required:
        return "" if not param.required else "needed"
    if value is True:
        return code(param.opts[0])
    if callable(value):
        return ""
    return code(str(value.value if isinstance(value, Enum) else value))
