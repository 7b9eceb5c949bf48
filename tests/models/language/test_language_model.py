"""Language models: a new one, a local checkpoint grown by SID tokens, and both through a bundle; no pickle, no network."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundles.bundle import Bundle, add_language_model, staging_directory
from models.errors import SidstreamError
from models.examples.records import TrainingExample
from models.language.prompts import PromptSettings
from models.language.tokenizer import train_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from models.bundles.building import FitSettings, Fitted, fit_bundle, train_bundle  # noqa: E402
from models.bundles.first_model import ModelSettings  # noqa: E402
from models.bundles.model_of_bundle import load_language_model  # noqa: E402
from models.language.language_model import (  # noqa: E402
    ARCHITECTURES,
    Architecture,
    load_checkpoint,
    save_language_model,
    small_causal_lm,
)
from models.sids.vocabulary import SidVocabulary  # noqa: E402
from models.training.settings import TrainingFailedError, TrainingSettings  # noqa: E402

TEXTS = ["red shoes", "blue shoes", "green hat", "yellow coat"] * 25
IDS = [f"item-{row}" for row in range(100)]
EXAMPLES = [TrainingExample(text, item=item) for text, item in zip(TEXTS, IDS, strict=True)]


@pytest.fixture
def fitted(tmp_path: Path) -> Fitted:
    embeddings = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    return fit_bundle(embeddings, tmp_path / "bundle", FitSettings(size=8, iterations=3, head_method="top-k", k=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 checkpoint directory as its makers would publish it: configuration, safetensors, tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint")
    own = train_tokenizer(TEXTS, size=300)
    configuration = transformers.Qwen2Config(
        vocab_size=own.size + 20,  # real checkpoints have more rows than tokens
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(configuration).save_pretrained(path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=own._tokenizer, bos_token="!", eos_token="!").save_pretrained(
        path
    )
    return path


def logits(model: Any, prompt: list[int]) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([prompt])).logits[0]


def test_a_trained_model_comes_back_from_its_bundle(fitted: Fitted) -> None:
    settings = TrainingSettings(max_steps=3, batch_size=16, layer2_dropout=0.2)
    bundle, outcome = train_bundle(
        fitted.bundle, EXAMPLES, IDS, fitted.codes, ModelSettings(hidden_size=16, model_layers=1, heads=2), settings
    )
    assert (outcome.examples, outcome.steps, bundle.manifest.layer2_dropout) == (100, 3, 0.2)
    assert len(fitted.bundle.layout.head_tokens) == 2
    model, prompts = load_language_model(Bundle.open(bundle.directory, need_model=True))
    assert not model.training
    assert prompts.vocabulary.total == model.get_input_embeddings().weight.shape[0]
    assert torch.isfinite(logits(model, prompts.build("red shoes"))).all()


def test_a_local_checkpoint_is_fine_tuned_with_its_own_tokenizer(fitted: Fitted, checkpoint: Path) -> None:
    bundle, _ = train_bundle(
        fitted.bundle, EXAMPLES, IDS, fitted.codes, ModelSettings(checkpoint=checkpoint), TrainingSettings(max_steps=2)
    )
    model, prompts = load_language_model(bundle)
    assert isinstance(model, transformers.Qwen2ForCausalLM)
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert prompts.tokenizer.encode("red shoes") == theirs("red shoes", add_special_tokens=False)["input_ids"]
    assert prompts.build()[0] == theirs.bos_token_id


def test_a_checkpoint_keeps_its_text_rows_and_gains_one_row_a_new_token(checkpoint: Path) -> None:
    before = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).get_input_embeddings().weight
    model, tokenizer, vocabulary = load_checkpoint(checkpoint, user_buckets=5, layers=3, size=8)
    after = model.get_input_embeddings().weight
    assert (vocabulary.text_size, vocabulary.total) == (len(before), len(before) + 5 + 3 + 24)
    assert len(after) == model.get_output_embeddings().weight.shape[0] == vocabulary.total
    assert tokenizer.size <= vocabulary.text_size
    torch.testing.assert_close(after[: len(before)], before.float())


def test_a_checkpoint_without_safetensors_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SidstreamError, match="only safetensors"):
        load_checkpoint(tmp_path, user_buckets=0, layers=3, size=8)


def test_a_directory_that_is_not_there_or_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SidstreamError, match=r"there is no directory .*nothing"):
        load_checkpoint(tmp_path / "nothing", user_buckets=0, layers=3, size=8)
    with pytest.raises(SidstreamError, match="tokenizer"):
        load_checkpoint(tmp_path, user_buckets=0, layers=3, size=8)


def test_checkpoint_that_reads_more_than_text_is_refused_with_what_to_give(checkpoint: Path, tmp_path: Path) -> None:
    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    configuration = transformers.Gemma3Config(
        text_config=text | heads, vision_config=eyes | {"image_size": 28, "patch_size": 14}
    )
    transformers.Gemma3ForConditionalGeneration(configuration).save_pretrained(tmp_path)
    for file in checkpoint.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SidstreamError, match="reads more than text: save its language model by itself"):
        load_checkpoint(tmp_path, user_buckets=0, layers=3, size=8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoint_of_a_family_that_computes_a_scale_is_trained_in_float32(
    checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    size = {"vocab_size": 300, "hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**size, **heads))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    for file in checkpoint.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    grown, _, _ = load_checkpoint(tmp_path, user_buckets=0, layers=3, size=8)
    assert grown.dtype == torch.float32
    assert float(grown.model.embed_tokens.embed_scale) == pytest.approx(48**0.5, abs=1e-6)


def test_checkpoint_whose_model_would_be_another_when_it_is_read_again_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_dict = transformers.Qwen2Config.to_dict

    def with_other_norm(self: Any) -> dict[str, Any]:
        return to_dict(self) | {"rms_norm_eps": 0.5}

    monkeypatch.setattr(transformers.Qwen2Config, "to_dict", with_other_norm)
    with pytest.raises(SidstreamError, match=r"cannot be read again once SID tokens are added \(its scores differ by"):
        load_checkpoint(checkpoint, user_buckets=0, layers=3, size=8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_model_depends_on_its_seed_alone(architecture: Architecture) -> None:
    vocabulary = SidVocabulary(text_size=20, user_buckets=0, layers=3, size=4)
    one, same, other = (
        small_causal_lm(vocabulary, hidden_size=16, layers=1, heads=2, seed=seed, architecture=architecture)
        for seed in (1, 1, 2)
    )
    prompt = [vocabulary.begin_id, 3, vocabulary.separator_id]
    assert torch.equal(logits(one, prompt), logits(same, prompt))
    assert not torch.equal(logits(one, prompt), logits(other, prompt))


def test_architectures_differ_in_biases_and_tied_embeddings_as_their_originals_do() -> None:
    vocabulary = SidVocabulary(text_size=20, user_buckets=0, layers=3, size=4)
    models = {
        name: small_causal_lm(vocabulary, hidden_size=16, layers=1, heads=2, architecture=name)
        for name in ARCHITECTURES
    }
    biases = {name: sorted(key for key in model.state_dict() if key.endswith("bias")) for name, model in models.items()}
    projections = [f"model.layers.0.self_attn.{which}_proj.bias" for which in "kqv"]
    assert biases == {"llama": [], "qwen": projections, "baichuan": []}
    tied = {
        name: model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for name, model in models.items()
    }
    assert tied == {"llama": True, "qwen": True, "baichuan": False}


def test_an_unknown_architecture_is_refused() -> None:
    vocabulary = SidVocabulary(text_size=20, user_buckets=0, layers=3, size=4)
    with pytest.raises(SidstreamError, match="choose one of llama, qwen, baichuan"):
        small_causal_lm(vocabulary, architecture="gpt")  # type: ignore[arg-type]


def test_norm_head_rows_keep_length_1_in_training_and_are_saved_as_a_plain_model(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, size=300)
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=0, layers=3, size=4)
    model = small_causal_lm(vocabulary, hidden_size=16, layers=1, heads=2, architecture="baichuan")
    before = model.get_output_embeddings().weight.detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    prompt = torch.tensor([[vocabulary.begin_id, 3, vocabulary.separator_id, vocabulary.sid_base]])
    model(input_ids=prompt, labels=prompt).loss.backward()
    optimiser.step()
    after = model.get_output_embeddings().weight.detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(vocabulary.total))
    for name in ("once", "again"):  # saving leaves the model as it was, ready to train further
        save_language_model(model, tokenizer, tmp_path / name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", local_files_only=True)
    assert type(loaded) is transformers.LlamaForCausalLM
    assert type(loaded.lm_head) is torch.nn.Linear
    assert torch.equal(logits(loaded, prompt[0].tolist()), logits(model, prompt[0].tolist()))


@pytest.mark.parametrize("loss", ["focal", "mile"])
def test_the_manifest_says_which_loss_and_architecture_a_model_has(fitted: Fitted, loss: Any) -> None:
    bundle, _ = train_bundle(
        fitted.bundle,
        EXAMPLES,
        IDS,
        fitted.codes,
        ModelSettings(hidden_size=16, model_layers=1, heads=2, architecture="qwen"),
        TrainingSettings(max_steps=2, batch_size=16, loss=loss, gamma=1.5),
    )
    record = Bundle.open(bundle.directory).manifest.language_model
    assert record is not None
    facts = record.training
    assert (facts["loss_function"], facts["gamma"], facts["architecture"]) == (loss, 1.5, "qwen")


def test_code_of_a_checkpoint_never_runs(checkpoint: Path, tmp_path: Path) -> None:
    """Its configuration asks transformers to import classes from a file beside it, as remote code does."""
    directory = tmp_path / "evil"
    shutil.copytree(checkpoint, directory)
    ran = tmp_path / "ran"
    (directory / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    configuration = json.loads((directory / "config.json").read_text())
    classes = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    }
    for model_type in ("evil", configuration["model_type"]):
        changed = {**configuration, "model_type": model_type, "auto_map": classes}
        (directory / "config.json").write_text(json.dumps(changed))
        (directory / "tokenizer_config.json").write_text(json.dumps({"auto_map": classes, "tokenizer_class": "Evil"}))
        with contextlib.suppress(SidstreamError):  # a known model type is read with the library's own class
            model, _, _ = load_checkpoint(directory, user_buckets=0, layers=3, size=8)
            assert type(model).__module__.startswith("transformers.models.")
        assert not ran.exists()
        assert "evil" not in sys.modules


def test_pickle_under_the_name_of_safetensors_is_refused_unread(checkpoint: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "ran"), "w")

    directory = tmp_path / "evil"
    shutil.copytree(checkpoint, directory)
    [weights] = directory.glob("*.safetensors")
    weights.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SidstreamError, match="cannot read a causal language model"):
        load_checkpoint(directory, user_buckets=0, layers=3, size=8)
    assert not (tmp_path / "ran").exists()


def poisoned(checkpoint: Path, directory: Path, value: float = float("nan"), row: int = 0) -> Path:
    """A copy of a checkpoint with one other number in its embeddings."""
    shutil.copytree(checkpoint, directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.get_input_embeddings().weight[row, 0] = value
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_with_one_number_that_is_not_finite_is_refused_by_name_before_training(
    fitted: Fitted, checkpoint: Path, tmp_path: Path, value: float
) -> None:
    broken = ModelSettings(checkpoint=poisoned(checkpoint, tmp_path / "broken", value))
    before = files_of(fitted.bundle.directory)
    with pytest.raises(SidstreamError, match=r"checkpoint .*broken has NaN or infinite numbers in model.embed_tokens"):
        train_bundle(fitted.bundle, EXAMPLES, IDS, fitted.codes, broken, TrainingSettings(max_steps=2))
    assert files_of(fitted.bundle.directory) == before


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("rate", "why"), [(1e10, "is NaN or infinite"), (10.0, "guessing would give")], ids=["not finite", "diverged"]
)
def test_training_that_fails_leaves_the_bundle_with_the_model_that_it_had(
    fitted: Fitted, rate: float, why: str
) -> None:
    small = ModelSettings(hidden_size=16, model_layers=1, heads=2)
    bundle, _ = train_bundle(
        fitted.bundle, EXAMPLES, IDS, fitted.codes, small, TrainingSettings(max_steps=2, batch_size=16)
    )
    before = files_of(bundle.directory)
    settings = TrainingSettings(max_steps=30, batch_size=16, learning_rate=rate)
    with pytest.raises(TrainingFailedError, match=f"{why}.* train again with a learning rate smaller than"):
        train_bundle(bundle, EXAMPLES, IDS, fitted.codes, small, settings)
    assert files_of(bundle.directory) == before
    assert Bundle.open(bundle.directory, need_model=True).manifest == bundle.manifest


@pytest.mark.parametrize(("value", "why"), [(float("nan"), "infinite numbers in"), (1e38, "the scores of")])
def test_model_without_finite_weights_or_scores_is_refused_when_its_bundle_is_loaded(
    fitted: Fitted, value: float, why: str
) -> None:
    small = ModelSettings(hidden_size=16, model_layers=1, heads=2)
    bundle, _ = train_bundle(
        fitted.bundle, EXAMPLES, IDS, fitted.codes, small, TrainingSettings(max_steps=1, batch_size=16)
    )
    record = bundle.manifest.language_model
    assert record is not None
    model, prompts = load_language_model(bundle)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.fill_(value)
    with staging_directory(bundle) as staged:
        save_language_model(model, prompts.tokenizer, staged)
        bundle = add_language_model(bundle, staged, vocabulary=record.vocabulary, prompt=record.prompt)
    with pytest.raises(SidstreamError, match=f"{why}.*train it again with `sidstream train`"):
        load_language_model(bundle)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_hidden_layers": 1}, "the weights have model.layers.1.*does not ask for"),
        ({"num_hidden_layers": 3}, "the weights lack model.layers.2.*asks for"),
        ({"intermediate_size": 40}, "has the shape"),
        ({"vocab_size": 11}, "has the shape"),
    ],
    ids=["fewer layers", "more layers", "narrower", "another vocabulary"],
)
def test_configuration_that_does_not_belong_to_the_weights_is_refused_in_one_sentence(
    checkpoint: Path, tmp_path: Path, change: dict[str, int], why: str
) -> None:
    directory = tmp_path / "mixed"
    shutil.copytree(checkpoint, directory)
    configuration = json.loads((directory / "config.json").read_text())
    configuration.pop("layer_types", None)
    (directory / "config.json").write_text(json.dumps(configuration | change))
    with pytest.raises(SidstreamError, match=why) as refused:
        load_checkpoint(directory, user_buckets=0, layers=3, size=8)
    assert "\n" not in str(refused.value)


def test_checkpoint_of_too_few_positions_is_refused_before_training_and_trained_with_shorter_prompts(
    fitted: Fitted, checkpoint: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "short"
    shutil.copytree(checkpoint, directory)
    configuration = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(configuration | {"max_position_embeddings": 32}))
    settings = TrainingSettings(max_steps=1, batch_size=16)
    with pytest.raises(SidstreamError, match="reads 32: train with --max-history 4 --max-text 13, or") as told:
        train_bundle(fitted.bundle, EXAMPLES, IDS, fitted.codes, ModelSettings(checkpoint=directory), settings)
    assert "up to 60 tokens with its SID (10 items of history, 24 tokens of text)" in str(told.value)
    fits = ModelSettings(checkpoint=directory, prompt=PromptSettings(max_history=4, max_text_tokens=13))
    bundle, _ = train_bundle(fitted.bundle, EXAMPLES, IDS, fitted.codes, fits, settings)
    _, prompts = load_language_model(bundle)
    assert prompts.width + 3 == 31


def test_new_model_reads_as_many_positions_as_its_longest_prompt_has(fitted: Fitted) -> None:
    long = PromptSettings(max_text_tokens=260)
    small = ModelSettings(hidden_size=16, model_layers=1, heads=2, prompt=long)
    bundle, _ = train_bundle(
        fitted.bundle, EXAMPLES, IDS, fitted.codes, small, TrainingSettings(max_steps=1, batch_size=16)
    )
    model, prompts = load_language_model(bundle)
    assert model.config.max_position_embeddings == prompts.width + 3 > 256
