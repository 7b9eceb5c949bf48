"""Reports of a training's steps: what TensorBoard's file holds, what other services are told, what is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import SidstreamError
from models.language.tokenizer import BYTES
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.history_table import HistoryTable

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from models.training.fine_tuning import fine_tune  # noqa: E402
from models.training.reports import checked_services  # noqa: E402
from models.training.settings import TrainingOutcome, TrainingSettings  # noqa: E402

VOCABULARY = SidVocabulary(text_size=BYTES, user_buckets=0, layers=3, size=8)
CODES = np.random.default_rng(0).integers(8, size=(12, 3)).astype(np.uint16)
HISTORIES = HistoryTable(
    [[row, (row + 1) % 12, (row + 5) % 12] for row in range(12)],
    VOCABULARY,
    Layout(1, "codebook", 3, 8, ()),
    CODES,
    max_history=4,
)


def trained(**settings: Any) -> TrainingOutcome:
    model = small_causal_lm(VOCABULARY, hidden_size=16, layers=1, heads=1)
    return fine_tune(
        model,
        HISTORIES,
        TrainingSettings(max_steps=10, batch_size=8, report_every=4, learning_rate=0.01, **settings),
        validation=HISTORIES,
    )


def test_other_services_are_told_losses_learning_rate_and_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict[str, float]]] = []

    class Service(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append((state.global_step, dict(logs)))

    utils = transformers.integrations.integration_utils
    monkeypatch.setitem(utils.INTEGRATION_TO_CALLBACK, "wandb", Service)
    outcome = trained(report_to=("wandb",))
    steps = {step: logs for step, logs in told if "learning_rate" in logs}
    assert {4, 8, 10} <= steps.keys()
    assert steps[10]["loss"] == outcome.loss
    assert steps[10]["learning_rate"] == pytest.approx(0.0, abs=1e-9)
    assert outcome.validation is not None
    assert min(logs["eval_loss"] for logs in steps.values() if "eval_loss" in logs) == outcome.validation.loss
    assert all(0 <= logs["eval_recall_at_1"] <= 1 for logs in steps.values() if "eval_loss" in logs)


def test_tensorboards_file_has_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    outcome = trained(report_to=checked_services(["tensorboard"]), report_directory=tmp_path / "runs")
    [path] = (tmp_path / "runs").glob("*/events.out.tfevents.*")
    raw, at = path.read_bytes(), 0
    curves: dict[str, dict[int, float]] = {}
    while at < len(raw):  # a record: length, its checksum, the event, its checksum
        [length] = struct.unpack_from("<Q", raw, at)
        event = Event.FromString(raw[at + 12 : at + 12 + length])
        for value in event.summary.value:
            curves.setdefault(value.tag, {})[event.step] = value.simple_value
        at += 16 + length
    assert {"train/loss", "train/learning_rate", "eval/loss", "eval/recall_at_1"} <= curves.keys()
    assert curves["train/loss"][10] == pytest.approx(outcome.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["crystal-ball"], "transformers does not report to 'crystal-ball': choose of azure_ml,"),
        (["tensorboard"], r"pip install 'sidstream\[report\]'"),
        (["wandb"], "pip install wandb"),
        (["flyte"], "reports to flyte need packages that are not installed: pip install flytekit"),
        (["dagshub"], "pip install dagshub mlflow"),
        (["comet_ml"], "set COMET_API_KEY"),
        (["kubeflow"], "KUBEFLOW_TRAINER_SERVER_URL; there is none"),
        (["all"], "the package of none is installed"),
        (["none", "wandb"], "leave one of them out"),
    ],
)
def test_service_that_is_not_there_is_refused_with_what_to_install(
    names: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: [])
    with pytest.raises(SidstreamError, match=message):
        checked_services(names)


@pytest.mark.parametrize("name", sorted(transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK))
def test_service_that_cannot_begin_is_refused_before_training_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one that transformers reports to: listed as installed, and then its own code does not find what it needs."""

    def missing() -> None:
        raise ImportError("No module named 'its_own'")

    utils = transformers.integrations.integration_utils
    monkeypatch.setitem(utils.INTEGRATION_TO_CALLBACK, name, missing)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: [name])
    monkeypatch.setattr("transformers.integrations.is_flytekit_available", lambda: True)
    with pytest.raises(SidstreamError, match=f"reports to {name} cannot begin .*its_own.*leave --report-to {name} out"):
        checked_services([name])


def test_all_are_those_that_are_installed_and_none_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = transformers.integrations.integration_utils
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(utils.INTEGRATION_TO_CALLBACK, name, transformers.TrainerCallback)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb", "mlflow"])
    assert checked_services(["all"]) == ("wandb", "mlflow")
    assert checked_services(["none"]) == checked_services([]) == ()
    assert checked_services(["mlflow", "mlflow"]) == ("mlflow",)
