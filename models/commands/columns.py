"""The options of every command that reads a catalogue: which column of a table is what of an item."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Final

import typer

from models.tables.columns import ColumnNames

_PANEL: Final = "A table's columns (Parquet, Arrow, CSV, JSON lines …)"


def _option(name: str, help_text: str, default: str) -> Any:
    return typer.Option(name, help=help_text, show_default=default, rich_help_panel=_PANEL)


# Field of ColumnNames → its option.
_OPTIONS: Final = {
    "id": Annotated[str | None, _option("--id", "Column of the ids.", "item_id or id")],
    "title": Annotated[str | None, _option("--title", "Column of the titles.", "title")],
    "embedding": Annotated[
        str | None,
        _option("--embedding", "Column of the embeddings: a list of numbers in each row.", "embedding"),
    ],
    "brand": Annotated[str | None, _option("--brand", "Column of the brands.", "brand")],
    "type": Annotated[str | None, _option("--type", "Column of the types.", "type")],
    "description": Annotated[str | None, _option("--description", "Column of the descriptions.", "description")],
    "weight": Annotated[str | None, _option("--weight", "Column of the weights.", "weight, or 1")],
    "attributes": Annotated[
        list[str] | None,
        _option(
            "--attribute",
            "A column that becomes an attribute: NAME or NAME=COLUMN; repeat it for several.",
            "those of a column attributes",
        ),
    ],
}


def with_columns(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, whose parameter ``columns`` is filled by options: Typer sees one for each field of ``ColumnNames``."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "columns":
            parameters.append(parameter)
            continue
        parameters += [
            inspect.Parameter(_parameter(field), parameter.kind, default=None, annotation=option)
            for field, option in _OPTIONS.items()
        ]

    @wraps(command)
    def of_options(**given: Any) -> None:
        fields = {field: given.pop(_parameter(field)) for field in _OPTIONS}
        fields["attributes"] = tuple(fields["attributes"] or ())
        command(columns=ColumnNames(**fields), **given)

    of_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    of_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return of_options


def _parameter(field: str) -> str:
    """Not the field's own name: a command may have a parameter that is called so."""
    return f"{field}_column"
