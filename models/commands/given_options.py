"""Which options a person has given, and how they are written; and those of `sidstream train` that would say nothing beside the
others: refused, not dropped in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import SidstreamError

if TYPE_CHECKING:
    import typer


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, on the command line or by its environment variable."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def option_of(context: typer.Context, name: str) -> str:
    """How a person writes it: "--max-history"."""
    return next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)


def require_no_idle_options(context: typer.Context) -> None:
    """Raises ``SidstreamError`` for the first option of `sidstream train` that was given and that nothing reads, with what it
    belongs to.
    """
    given = context.params
    of_new = (
        "is of a new model, and --checkpoint brings its own: leave one of the two out" if given["checkpoint"] else ""
    )
    validated = bool(given["validation"]) or given["validation_share"] is not None
    idle = {
        "hidden_size": of_new,
        "model_layers": of_new,
        "align_share": "" if given["align"] else "is of the tasks of --align: give one, or leave it out",
        "patience": "" if validated else "counts validations: give --validation or --validation-share, or leave it out",
        "per_item": "is of queries made of the catalogue: leave it or --examples out" if given["examples"] else "",
    }
    for name, reason in idle.items():
        if reason and is_given(context, name):
            raise SidstreamError(f"{option_of(context, name)} {reason}")
