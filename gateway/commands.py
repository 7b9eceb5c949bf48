"""Command of the gateway: the process, and keys for its clients."""

from __future__ import annotations

from typing import Annotated

import typer

from models.terminal import print_line, terminal
from streamer.settings import load_settings


def gateway(
    new_key: Annotated[
        str | None,
        typer.Option(
            help="Make a key for the client of this name: print it, and what belongs into the file gateway.clients."
        ),
    ] = None,
) -> None:
    """Serve queries, answers and items over HTTP, with a page to try queries by hand."""
    if new_key is not None:
        _show_new_key(new_key)
        return
    try:
        from gateway.process import run_gateway
    except ModuleNotFoundError as error:
        from models.errors import SidstreamError

        raise SidstreamError(
            f"the gateway needs {error.name}, which is not installed: install sidstream with its extra, as in "
            "pip install 'sidstream[gateway]'"
        ) from None
    run_gateway(load_settings())


def _show_new_key(name: str) -> None:
    from gateway.clients.keys import new_key_of

    key, table = new_key_of(name)
    print(table)
    console = terminal(stderr=True)
    print_line(console, f"the key of {name}, which is shown this once: {key}")
    console.print(
        "The lines above belong into the file that gateway.clients names; a running gateway reads them by itself."
    )
