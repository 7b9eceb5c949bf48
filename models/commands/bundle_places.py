"""Where a bundle lies that no option names: the front door, which knows the settings, says it here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

PLACES: Final[dict[str, Callable[[], Path]]] = {
    "bundle": lambda: Path(".sidstream/bundle"),
    "bundles": lambda: Path(".sidstream/bundles"),
}
"""By the setting's name; asked when a command runs, not before, for settings may be wrong."""


def own_bundle() -> Path:
    """What `fit` writes and `train` adds its model to."""
    return PLACES["bundle"]()


def own_bundle_store() -> Path:
    """The store that holds bundles by their ids."""
    return PLACES["bundles"]()
