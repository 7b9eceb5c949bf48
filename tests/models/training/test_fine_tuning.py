"""Fine-tuning: what the model is shown, what the loss is over, that it learns, and that it repeats exactly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import SidstreamError
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.example_table import ExampleTable, TrainingBatch
from models.training.examples import TrainingExample, read_examples, write_examples

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from models.training.fine_tuning import (  # noqa: E402
    TrainingFailedError,
    TrainingSettings,
    _Budget,
    fine_tune,
    target_loss,
)

SIZE, ITEMS = 8, 12
CODES = np.random.default_rng(0).integers(SIZE, size=(ITEMS, 3)).astype(np.uint16)
LAYOUT = Layout(1, "codebook", 3, SIZE, (1, 4))
ROWS = {f"item-{row}": row for row in range(ITEMS)}
NAMES = [
    "anchor",
    "basket",
    "candle",
    "drum",
    "engine",
    "feather",
    "guitar",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
]
EXAMPLES = [
    TrainingExample(
        f"{NAMES[row]} please",
        user="ada" if row % 2 else None,
        history=("item-3", "gone", "item-1")[: row % 4],
        item=name,
    )
    for name, row in ROWS.items()
]


def prompt_builder() -> PromptBuilder:
    tokenizer = train_tokenizer([example.query for example in EXAMPLES], size=320)
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=4, layers=3, size=SIZE)
    return PromptBuilder(vocabulary, tokenizer, PromptSettings(max_history=2))


PROMPTS = prompt_builder()


def table(layout: Layout = LAYOUT) -> ExampleTable:
    return ExampleTable(EXAMPLES, PROMPTS, layout, ROWS, CODES)


def tensors(batch: TrainingBatch) -> dict[str, Any]:
    return {key: torch.from_numpy(array) for key, array in asdict(batch).items() if array is not None}


def without_padding(token_ids: Any) -> list[list[int]]:
    return [[token for token in row if token != PROMPTS.vocabulary.padding_id] for row in token_ids.tolist()]


@pytest.mark.parametrize(
    "layout", [LAYOUT, Layout(1, "codebook", 3, SIZE, ()), Layout(1, "codebook", 3, SIZE, tuple(range(8)))]
)
def test_a_training_sequence_is_the_serving_prompt_and_the_target_sid(layout: Layout) -> None:
    batch = table(layout).batch(np.arange(ITEMS), 0.0, np.random.default_rng(0))
    sids = layout.sid_tokens(CODES)
    for row, (sequence, example) in enumerate(zip(without_padding(batch.token_ids), EXAMPLES, strict=True)):
        history = [sids[ROWS[item]] for item in example.history if item in ROWS]
        prompt = PROMPTS.build(example.query, history, example.user)
        target = [PROMPTS.vocabulary.sid_base + token for token in sids[ROWS[example.item]] if token >= 0]
        assert sequence == prompt + target
        following = batch.following[row]
        assert following[following != -100].tolist() == target
        assert np.flatnonzero(following != -100).tolist() == list(range(len(prompt) - 1, len(sequence) - 1))


def test_layer_2_dropout_writes_each_sid_in_its_other_form_independently() -> None:
    examples = [TrainingExample("", history=("item-0", "item-1"), item="item-2")] * 4000
    both = ExampleTable(examples, PROMPTS, LAYOUT, ROWS, CODES)
    batch = both.batch(np.arange(4000), 0.25, np.random.default_rng(1))
    middle = PROMPTS.vocabulary.layer_range(1)
    forms = np.zeros((4000, 3), dtype=bool)  # whether each of the three SIDs has its layer-2 token
    first = PROMPTS.vocabulary.layer_range(0)
    for row, sequence in enumerate(batch.token_ids.tolist()):
        starts = [at for at, token in enumerate(sequence) if token in first]
        forms[row] = [sequence[at + 1] in middle for at in starts]
    is_head = LAYOUT.is_head[CODES[:3, 1]]
    np.testing.assert_allclose(forms.mean(axis=0), np.where(is_head, 0.25, 0.75), atol=0.03)
    np.testing.assert_allclose(np.corrcoef(forms.T), np.eye(3), atol=0.06)
    assert set((batch.following != -100).sum(axis=1).tolist()) == {2, 3}


def test_the_loss_is_that_of_transformers_on_the_target_tokens_alone() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=32, layers=2, heads=2)
    batch = tensors(table().batch(np.arange(ITEMS), 0.0, np.random.default_rng(0)))
    token_ids, labels = batch["token_ids"], torch.nn.functional.pad(batch["following"], (1, 0), value=-100)[:, :-1]
    mask = (token_ids != PROMPTS.vocabulary.padding_id).long()
    theirs = model(input_ids=token_ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(target_loss(model, batch), theirs, atol=1e-5, rtol=0)


def test_a_small_model_learns_its_examples_and_reports_progress() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=48, layers=2, heads=2)
    seen: list[tuple[int, int, float]] = []
    settings = TrainingSettings(max_steps=120, batch_size=12, learning_rate=5e-3, layer2_dropout=0.3, report_every=20)
    outcome = fine_tune(model, table(), settings, lambda step, total, loss: seen.append((step, total, loss)))
    assert [step for step, _, _ in seen] == [20, 40, 60, 80, 100, 120]
    assert seen[0][2] > 2 > 1 > outcome.loss == seen[-1][2]
    assert not model.training
    prompt = PROMPTS.build(EXAMPLES[4].query)
    with torch.inference_mode():
        best = int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    assert best == PROMPTS.vocabulary.sid_base + CODES[4, 0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """``[now, step]``: fine tuning's clock, which goes on by ``step`` seconds each time that it is read."""
    now = [0.0, 0.0]

    def monotonic() -> float:
        now[0] += now[1]
        return now[0]

    monkeypatch.setattr("models.training.fine_tuning.time.monotonic", monotonic)
    return now


def test_training_stops_when_its_time_is_up_with_what_it_has_and_says_how_far_it_came(clock: list[float]) -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=48, layers=2, heads=2)
    clock[1] = 1.0
    seen: list[tuple[int, int]] = []
    settings = TrainingSettings(
        max_steps=1_000, batch_size=12, learning_rate=5e-3, report_every=20, seconds=250.0, layer2_dropout=0.3
    )
    outcome = fine_tune(model, table(), settings, lambda step, total, loss: seen.append((step, total)))
    assert 20 < outcome.steps < 250
    assert outcome.planned_steps == 1_000
    assert outcome.loss < 1.0, "the learning rate has fallen by then, and the model has learnt its examples"
    assert not model.training
    assert seen[-1][0] == outcome.steps
    assert all(abs(total - outcome.steps) <= 0.2 * outcome.steps for step, total in seen if step > 20), seen


def test_training_whose_steps_fit_into_its_time_does_them_all() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)
    outcome = fine_tune(model, table(), TrainingSettings(max_steps=10, batch_size=12, seconds=1e6))
    assert (outcome.steps, outcome.planned_steps) == (10, 10)


def test_learning_rate_rises_and_then_falls_to_nothing_by_the_end_of_the_time_or_of_the_steps(
    clock: list[float],
) -> None:
    by_steps = _Budget(100, 0.1, seconds=1e6)
    rates = [by_steps.learning_rate(step) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-6)
    assert _Budget(100, 1.0, seconds=1e6).learning_rate(100) == pytest.approx(1.0), "a warm-up to the end never falls"
    by_time = _Budget(100, 0.1, seconds=60.0)
    clock[0] += 60.0
    assert by_time.learning_rate(3) == pytest.approx(0.0)
    assert by_time.share(3) == 1.0


def test_time_that_is_not_positive_is_refused() -> None:
    with pytest.raises(SidstreamError, match="time of training must be positive"):
        TrainingSettings(seconds=0.0)


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    def weights(seed: int) -> Any:
        model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1, seed=seed)
        fine_tune(model, table(), TrainingSettings(epochs=2, batch_size=5, seed=seed, layer2_dropout=0.3))
        return model.get_input_embeddings().weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_stopped_training_goes_on_from_its_last_epoch_to_the_same_weights(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=4, batch_size=5, seed=1, layer2_dropout=0.3, report_every=1)

    class Stopped(Exception):
        pass

    def stop(step: int, total: int, loss: float) -> None:
        if step == 8:  # two epochs of three steps, and two steps that are lost
            raise Stopped

    def model() -> Any:
        return small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)

    straight, resumed = model(), model()
    fine_tune(straight, table(), settings)
    with pytest.raises(Stopped):
        fine_tune(model(), table(), settings, stop, checkpoints=tmp_path)
    steps: list[int] = []
    fine_tune(resumed, table(), settings, lambda step, total, loss: steps.append(step), checkpoints=tmp_path)
    assert steps[0] == 7
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_examples_of_unknown_items_are_skipped_and_all_unknown_is_an_error() -> None:
    some = ExampleTable([*EXAMPLES, TrainingExample("x", item="gone")], PROMPTS, LAYOUT, ROWS, CODES)
    assert (len(some), some.skipped) == (ITEMS, 1)
    with pytest.raises(SidstreamError, match="none of the 1 training examples"):
        ExampleTable([TrainingExample("x", item="gone")], PROMPTS, LAYOUT, ROWS, CODES)


def test_examples_survive_their_file_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    assert write_examples(path, EXAMPLES) == ITEMS
    assert list(read_examples(path)) == EXAMPLES
    path.write_bytes(path.read_bytes() + b'\n{"query": 3, "item": "x"}\n')
    with pytest.raises(SidstreamError, match=f"line {ITEMS + 2}"):
        list(read_examples(path))
    path.write_text('{"query": "shoes"}\n')
    with pytest.raises(SidstreamError, match="names no item"):
        list(read_examples(path))


@pytest.mark.parametrize("name", ["learning_rate", "epochs", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_no_numbers_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SidstreamError, match=f"{name} must be a number, not {value}"):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_learning_rate_of_nothing_is_refused(rate: float) -> None:
    with pytest.raises(SidstreamError, match="learning rate must be positive"):
        TrainingSettings(learning_rate=rate)


def test_loss_of_a_steep_gamma_that_is_not_finite_is_told_with_gamma() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=2)
    settings = TrainingSettings(max_steps=3, batch_size=5, loss="mile", gamma=1e6)
    with pytest.raises(TrainingFailedError, match=r"step 1 of 3 is NaN or infinite.* or a γ smaller than 1e"):
        fine_tune(model, table(), settings)
