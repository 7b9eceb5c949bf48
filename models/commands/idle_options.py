"""Options of `sidstream train` that would say nothing beside the others: refused, not dropped in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.commands.warm_start import is_given, option_of
from models.errors import SidstreamError

if TYPE_CHECKING:
    import typer


def require_no_idle_options(context: typer.Context) -> None:
    """Raises ``SidstreamError`` for the first option that was given and that nothing reads, with what it belongs to."""
    given = context.params
    own = given["checkpoint"] is not None
    validated = bool(given["validation"]) or given["validation_share"] is not None
    idle = {
        "hidden_size": "is of a new model, and --checkpoint brings its own: leave one of the two out" if own else "",
        "model_layers": "is of a new model, and --checkpoint brings its own: leave one of the two out" if own else "",
        "align_share": "" if given["align"] else "is of the tasks of --align: give one, or leave it out",
        "patience": "" if validated else "counts validations: give --validation or --validation-share, or leave it out",
        "per_item": "is of queries made of the catalogue: leave it or --examples out" if given["examples"] else "",
    }
    for name, reason in idle.items():
        if reason and is_given(context, name):
            raise SidstreamError(f"{option_of(context, name)} {reason}")
