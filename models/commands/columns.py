"""The options of every command that reads a catalogue: which column of a table is what of an item."""

from __future__ import annotations

from typing import Annotated

import typer

from models.tables.columns import ColumnNames

_PANEL = "A table's columns (Parquet, Arrow, CSV, JSON lines …)"

IdOption = Annotated[
    str | None,
    typer.Option("--id", help="Column of the ids.", show_default="item_id or id", rich_help_panel=_PANEL),
]
TitleOption = Annotated[
    str | None, typer.Option("--title", help="Column of the titles.", show_default="title", rich_help_panel=_PANEL)
]
EmbeddingOption = Annotated[
    str | None,
    typer.Option(
        "--embedding",
        help="Column of the embeddings: a list of numbers in each row.",
        show_default="embedding",
        rich_help_panel=_PANEL,
    ),
]
BrandOption = Annotated[
    str | None, typer.Option("--brand", help="Column of the brands.", show_default="brand", rich_help_panel=_PANEL)
]
TypeOption = Annotated[
    str | None, typer.Option("--type", help="Column of the types.", show_default="type", rich_help_panel=_PANEL)
]
DescriptionOption = Annotated[
    str | None,
    typer.Option(
        "--description", help="Column of the descriptions.", show_default="description", rich_help_panel=_PANEL
    ),
]
WeightOption = Annotated[
    str | None,
    typer.Option("--weight", help="Column of the weights.", show_default="weight, or 1", rich_help_panel=_PANEL),
]
AttributeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        help="A column that becomes an attribute: NAME or NAME=COLUMN; repeat it for several.",
        show_default="those of a column attributes",
        rich_help_panel=_PANEL,
    ),
]


def columns_of(
    identity: str | None,
    title: str | None,
    embedding: str | None,
    brand: str | None,
    kind: str | None,
    description: str | None,
    weight: str | None,
    attribute: list[str] | None,
) -> ColumnNames:
    """The options as one record."""
    return ColumnNames(
        id=identity,
        title=title,
        embedding=embedding,
        brand=brand,
        type=kind,
        description=description,
        weight=weight,
        attributes=tuple(attribute or ()),
    )
