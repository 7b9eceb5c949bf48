"""Where the figures of a training's steps are sent beside the terminal: TensorBoard and whatever else transformers reports to.

What must hold: a service that is asked for is there before training begins, or refused with what to install.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from models.errors import SidstreamError

_ALL: Final = "all"
_NONE: Final = "none"
_TENSORBOARD: Final = "tensorboard"
_DIRECTORY_VARIABLE: Final = "TENSORBOARD_LOGGING_DIR"  # transformers' own
_PACKAGES: Final = {_TENSORBOARD: "sidstream[report]", "azure_ml": "azureml-mlflow", "dagshub": "dagshub mlflow"}


def checked_services(names: Sequence[str]) -> tuple[str, ...]:
    """Names of services, "all" for those that are installed and "none" for none, each once.

    Raises ``SidstreamError`` for a name that transformers does not know, and for a service whose package is missing.
    """
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if _NONE in names and len(names) > 1:
        raise SidstreamError("reports to none and to others: leave one of them out")
    if not names or _NONE in names:
        return ()
    installed = get_available_reporting_integrations()
    if _ALL in names and not installed:
        raise SidstreamError(
            "reports to all services, and the package of none is installed: name one, such as tensorboard"
        )
    wanted = tuple(dict.fromkeys(installed if _ALL in names else names))
    for name in wanted:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise SidstreamError(f"transformers does not report to {name!r}: choose of {known}, all, none")
        # Those that it never lists as installed say themselves what they need.
        if name not in installed and name != "flyte":
            package = _PACKAGES.get(name, name)
            raise SidstreamError(f"reports to {name} need a package that is not installed: pip install '{package}'")
    return wanted


def default_directory(checkpoints: Path) -> Path:
    """Beside the checkpoints, which go when the model is whole; each begin of a training has a directory of its own below."""
    return checkpoints.with_suffix(".runs")


def callbacks(services: Sequence[str], directory: Path | None) -> list[Any]:
    """transformers' callback of each service, begun anew; TensorBoard's writes below ``directory`` (if None, where transformers
    would), unless its own variable says where.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    found = [service() for service in get_reporting_integration_callbacks(list(services))]
    if _TENSORBOARD in services and directory is not None and _DIRECTORY_VARIABLE not in os.environ:
        began = datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")
        found[list(services).index(_TENSORBOARD)].logging_dir = str(directory / began)
    return found
