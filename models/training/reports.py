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
_NEEDS: Final = {  # where it is not one package of the service's own name
    _TENSORBOARD: "a package that is not installed: pip install 'sidstream[report]'",
    "azure_ml": "azureml-core, and no mlflow beside it: pip install azureml-core, or name mlflow where that is installed",
    "comet_ml": "comet_ml of a new version and its key: pip install -U comet_ml, and set COMET_API_KEY",
    "dagshub": "packages that are not installed: pip install dagshub mlflow",
    "flyte": "packages that are not installed: pip install flytekit flytekitplugins-deck-standard pandas",
    "kubeflow": "a Kubeflow TrainJob around the training, which sets KUBEFLOW_TRAINER_SERVER_URL; there is none",
}


def checked_services(names: Sequence[str]) -> tuple[str, ...]:
    """Names of services, "all" for those that are installed and "none" for none, each once.

    Raises ``SidstreamError`` for a name that transformers does not know, for a service whose package is missing, and for one that
    cannot begin.
    """
    from transformers.integrations import get_available_reporting_integrations, is_flytekit_available
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
        # transformers never lists Flyte as installed.
        if name not in installed and not (name == "flyte" and is_flytekit_available()):
            raise SidstreamError(f"reports to {name} need {_NEEDS.get(name, _own_package(name))}")
        _begun(name)
    return wanted


def default_directory(checkpoints: Path) -> Path:
    """Beside the checkpoints, which go when the model is whole; each begin of a training has a directory of its own below."""
    return checkpoints.with_suffix(".runs")


def callbacks(services: Sequence[str], directory: Path | None) -> list[Any]:
    """transformers' callback of each service, begun anew; TensorBoard's writes below ``directory`` (if None, where transformers
    would), unless its own variable says where.
    """
    found = [_begun(name) for name in services]
    if _TENSORBOARD in services and directory is not None and _DIRECTORY_VARIABLE not in os.environ:
        began = datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")
        found[list(services).index(_TENSORBOARD)].logging_dir = str(directory / began)
    return found


def _begun(name: str) -> Any:
    """A service's callback. Raises ``SidstreamError`` where it has no version, key or surroundings that it can work with: each
    says so by an error of its own kind.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    try:
        return INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:
        raise SidstreamError(
            f"reports to {name} cannot begin ({str(error).strip() or type(error).__name__}): mend that, or leave --report-to "
            f"{name} out"
        ) from error


def _own_package(name: str) -> str:
    return f"a package that is not installed: pip install {name}"
