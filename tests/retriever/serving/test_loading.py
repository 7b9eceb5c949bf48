"""The model that a retriever loads: on the device and in the numbers of its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from models.bundles.bundle import Bundle  # noqa: E402
from models.language.int8 import has_int8  # noqa: E402
from retriever.serving.loading import load_model  # noqa: E402
from streamer.settings import Settings  # noqa: E402


def settings(**own: Any) -> Settings:
    return Settings(retriever={"threads": torch.get_num_threads(), **own})


@pytest.mark.parametrize(
    ("dtype", "weights", "in_int8"),
    [
        ("auto", torch.float32, False),
        ("float32", torch.float32, False),
        ("bfloat16", torch.bfloat16, False),
        ("int8", torch.float32, True),
    ],
)
def test_model_has_the_numbers_of_the_settings(
    tiny_model_bundle: Path, dtype: str, weights: Any, in_int8: bool
) -> None:
    model, prompts = load_model(Bundle.open(tiny_model_bundle), settings(device="cpu", dtype=dtype))
    assert model is not None
    assert prompts is not None
    assert model.get_input_embeddings().weight.dtype == weights
    assert has_int8(model) == in_int8
    assert not model.training


def test_model_is_moved_to_the_device_of_the_settings(tiny_model_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Any] = []
    to = transformers.PreTrainedModel.to

    def spy(self: Any, *arguments: Any, **names: Any) -> Any:
        devices.append(names.get("device"))
        return to(self, *arguments, **names)

    monkeypatch.setattr(transformers.PreTrainedModel, "to", spy)
    load_model(Bundle.open(tiny_model_bundle), settings(device="cpu:0"))
    assert devices == [torch.device("cpu:0")]
