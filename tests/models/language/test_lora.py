"""LoRA: what learns and what stays, merged to a plain model, through a bundle, and on after a stop."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from models.bundles.building import FitSettings, fit_bundle, train_bundle  # noqa: E402
from models.bundles.bundle import BaseCheckpoint, Bundle  # noqa: E402
from models.bundles.first_model import ModelSettings  # noqa: E402
from models.bundles.model_of_bundle import load_language_model  # noqa: E402
from models.errors import SidstreamError  # noqa: E402
from models.examples.records import TrainingExample  # noqa: E402
from models.language.families import plain_model  # noqa: E402
from models.language.language_model import load_checkpoint  # noqa: E402
from models.language.lora import add_lora, merged  # noqa: E402
from models.language.prompts import PromptBuilder  # noqa: E402
from models.sids.layout import Layout  # noqa: E402
from models.training.checkpoints import Checkpoints  # noqa: E402
from models.training.example_table import ExampleTable  # noqa: E402
from models.training.fine_tuning import fine_tune  # noqa: E402
from models.training.losses import target_loss  # noqa: E402
from models.training.settings import TrainingSettings  # noqa: E402
from support.tiny_families import write_checkpoint  # noqa: E402

NAMES = [f"thing-{number}" for number in range(10)]
EXAMPLES = [TrainingExample(name, item=name) for name in NAMES]
CODES = np.random.default_rng(0).integers(4, size=(10, 3)).astype(np.uint16)
ROWS = {name: row for row, name in enumerate(NAMES)}


def loaded(path: Path) -> tuple[Any, PromptBuilder, ExampleTable]:
    model, tokenizer, vocabulary = load_checkpoint(path, user_buckets=0, layers=3, size=4)
    prompts = PromptBuilder(vocabulary, tokenizer)
    table = ExampleTable(EXAMPLES, prompts, Layout(1, "codebook", 3, 4, ()), ROWS, CODES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return add_lora(model, 4, vocabulary), prompts, table


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2", "cohere", "lfm2"])
def test_new_rows_and_updates_learn_old_rows_stay_and_merging_changes_no_score(family: str, tmp_path: Path) -> None:
    model, prompts, table = loaded(write_checkpoint(family, tmp_path / "checkpoint"))
    before = plain_model(model).get_input_embeddings()(torch.arange(prompts.vocabulary.total)).detach().clone()
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert 0 < trainable < 0.6 * sum(weight.numel() for weight in model.parameters())
    outcome = fine_tune(model, table, TrainingSettings(max_steps=40, batch_size=10, learning_rate=1e-2))
    assert outcome.loss < 5.5  # guessing is 5.75
    prompt = torch.tensor([prompts.build("thing-3")])
    with torch.inference_mode():
        scores = model(input_ids=prompt, use_cache=False).logits
    plain = merged(model)
    with torch.inference_mode():
        torch.testing.assert_close(plain(input_ids=prompt, use_cache=False).logits, scores, atol=1e-4, rtol=1e-3)
    after = plain.get_input_embeddings().weight.detach()
    fresh = prompts.vocabulary.text_size
    torch.testing.assert_close(after[:fresh], before[:fresh], atol=0, rtol=0)
    assert (after[fresh:] != before[fresh:]).any()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_checkpoint_trained_by_lora_is_a_plain_model_in_its_bundle(precision: Any, tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(len(NAMES), 8)).astype(np.float32)
    fitted = fit_bundle(embeddings, tmp_path / "bundle", FitSettings(size=4, iterations=3))
    checkpoint = write_checkpoint("llama", tmp_path / "checkpoint")
    train_bundle(
        fitted.bundle,
        EXAMPLES,
        NAMES,
        fitted.codes,
        ModelSettings(checkpoint=checkpoint),
        TrainingSettings(max_steps=60, batch_size=10, learning_rate=1e-2, lora=8, precision=precision),
    )
    bundle = Bundle.open(tmp_path / "bundle", need_model=True)
    record = bundle.manifest.language_model
    assert record is not None
    assert record.training["lora"] == 8
    [weights] = checkpoint.glob("*.safetensors")
    digest = hashlib.sha256(hashlib.sha256(weights.read_bytes()).digest()).hexdigest()[:16]
    assert record.base == BaseCheckpoint(str(checkpoint), digest, "llama")
    assert record.id != digest
    assert record.training["loss"] < 5.0
    assert not [name for name in bundle.manifest.files if "adapter" in name]
    model, prompts = load_language_model(bundle)
    assert model.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    losses = []
    for codes in (fitted.codes, np.roll(fitted.codes, 1, axis=0)):
        learnt = ExampleTable(EXAMPLES, prompts, bundle.layout, ROWS, codes)
        batch = learnt.batch(np.arange(len(NAMES)), 0.0, np.random.default_rng(0)).tensors()
        with torch.inference_mode():
            losses.append(float(target_loss(model, batch)))
    assert losses[0] < losses[1] - 0.1, "its own SIDs are likelier than another item's"


def test_seed_gives_the_first_updates_and_dropout_is_theirs(tmp_path: Path) -> None:
    path = write_checkpoint("llama", tmp_path / "checkpoint")

    def first(seed: int) -> Any:
        model, _, vocabulary = load_checkpoint(path, user_buckets=0, layers=3, size=4)
        model = add_lora(model, 4, vocabulary, dropout=0.3, seed=seed)
        assert model.peft_config["default"].lora_dropout == 0.3
        return torch.cat([part.detach().ravel() for name, part in model.named_parameters() if "lora_A" in name])

    torch.manual_seed(1)
    one = first(7)
    torch.manual_seed(2)
    assert torch.equal(first(7), one)
    assert not torch.equal(first(8), one)


def test_training_by_lora_goes_on_after_a_stop_to_the_same_weights(tmp_path: Path) -> None:
    path = write_checkpoint("llama", tmp_path / "checkpoint")
    settings = TrainingSettings(max_steps=12, batch_size=10, learning_rate=1e-2, lora=4)
    model, _, table = loaded(path)
    fine_tune(model, table, settings)
    expected = {name: weight.detach().clone() for name, weight in merged(model).named_parameters()}

    class Stop(Exception):
        pass

    def stop(now: Any) -> None:
        if now.step == 7:
            raise Stop

    clock = iter(range(0, 10**7, 1_000))
    checkpoints = Checkpoints(tmp_path / "kept", {}, clock=lambda: float(next(clock)))
    model, _, table = loaded(path)
    with pytest.raises(Stop):
        fine_tune(model, table, settings, stop, checkpoints)
    for _ in range(2):  # once to its end, once read from there
        model, _, table = loaded(path)
        outcome = fine_tune(model, table, settings, checkpoints=checkpoints)
        assert 0 < outcome.resumed_at <= 12
        for name, weight in merged(model).named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name], atol=0, rtol=0)


def test_adapter_alone_is_no_checkpoint_and_says_how_to_merge_it(tmp_path: Path) -> None:
    model, _, _ = loaded(write_checkpoint("llama", tmp_path / "checkpoint"))
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(SidstreamError, match="adapter is a peft adapter, not a whole model: merge it into its base"):
        load_checkpoint(tmp_path / "adapter", user_buckets=0, layers=3, size=4)


def test_lora_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(len(NAMES), 8)).astype(np.float32)
    fitted = fit_bundle(embeddings, tmp_path / "bundle", FitSettings(size=4, iterations=3))
    with pytest.raises(SidstreamError, match="give --checkpoint, or no --lora"):
        train_bundle(fitted.bundle, EXAMPLES, NAMES, fitted.codes, ModelSettings(), TrainingSettings(lora=4))
