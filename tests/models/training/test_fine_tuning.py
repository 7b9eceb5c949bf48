"""Fine-tuning: what the model is shown, what the loss is over, that it learns, and that it repeats exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import SidstreamError
from models.examples.records import TrainingExample
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.checkpoints import Checkpoints
from models.training.example_table import ExampleTable
from models.training.history_table import HistoryTable
from models.training.tables import JoinedTable

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.families import plain_model  # noqa: E402
from models.language.language_model import small_causal_lm  # noqa: E402
from models.training.fine_tuning import _Budget, fine_tune  # noqa: E402
from models.training.losses import target_loss  # noqa: E402
from models.training.settings import TrainingFailedError, TrainingProgress, TrainingSettings  # noqa: E402

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
        history=("item-3", "item-5", "item-1")[: row % 4],
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


def without_padding(token_ids: Any) -> list[list[int]]:
    return [[token for token in row if token != PROMPTS.vocabulary.padding_id] for row in token_ids.tolist()]


@pytest.mark.parametrize(
    "layout", [LAYOUT, Layout(1, "codebook", 3, SIZE, ()), Layout(1, "codebook", 3, SIZE, tuple(range(8)))]
)
def test_a_training_sequence_is_the_serving_prompt_and_the_target_sid(layout: Layout) -> None:
    batch = table(layout).batch(np.arange(ITEMS), 0.0, np.random.default_rng(0))
    sids = layout.sid_tokens(CODES)
    for row, (sequence, example) in enumerate(zip(without_padding(batch.token_ids), EXAMPLES, strict=True)):
        history = [sids[ROWS[item]] for item in example.history]
        prompt = PROMPTS.build(example.query, history, example.user)
        target = [PROMPTS.vocabulary.sid_base + token for token in sids[ROWS[example.item]] if token >= 0]
        assert sequence == prompt + target[:-1], "the last one is predicted, never read"
        following = batch.following[row]
        assert following[following != -100].tolist() == target
        assert np.flatnonzero(following != -100).tolist() == list(range(len(prompt) - 1, len(sequence)))


def test_layer_2_dropout_writes_each_sid_in_its_other_form_independently() -> None:
    examples = [TrainingExample("", history=("item-0", "item-1"), item="item-2")] * 4000
    both = ExampleTable(examples, PROMPTS, LAYOUT, ROWS, CODES)
    batch = both.batch(np.arange(4000), 0.25, np.random.default_rng(1))
    middle = PROMPTS.vocabulary.layer_range(1)
    forms = np.zeros((4000, 3), dtype=bool)  # whether each of the three SIDs has its layer-2 token
    first = PROMPTS.vocabulary.layer_range(0)
    for row, sequence in enumerate(batch.token_ids.tolist()):
        starts = [at for at, token in enumerate(sequence) if token in first]
        forms[row] = [at + 1 < len(sequence) and sequence[at + 1] in middle for at in starts]
    is_head = LAYOUT.is_head[CODES[:3, 1]]
    np.testing.assert_allclose(forms.mean(axis=0), np.where(is_head, 0.25, 0.75), atol=0.03)
    np.testing.assert_allclose(np.corrcoef(forms.T), np.eye(3), atol=0.06)
    assert set((batch.following != -100).sum(axis=1).tolist()) == {2, 3}


def test_the_loss_is_that_of_transformers_on_the_target_tokens_alone() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=32, layers=2, heads=2)
    batch = table().batch(np.arange(ITEMS), 0.0, np.random.default_rng(0)).tensors()
    pad = torch.nn.functional.pad
    token_ids = pad(batch["token_ids"], (0, 1), value=PROMPTS.vocabulary.padding_id)
    labels = pad(batch["following"], (1, 0), value=-100)
    mask = (token_ids != PROMPTS.vocabulary.padding_id).long()
    theirs = model(input_ids=token_ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(target_loss(model, batch), theirs, atol=1e-5, rtol=0)


def test_a_small_model_learns_its_examples_and_reports_progress() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=48, layers=2, heads=2)
    seen: list[TrainingProgress] = []
    settings = TrainingSettings(max_steps=120, batch_size=12, learning_rate=5e-3, layer2_dropout=0.3, report_every=20)
    outcome = fine_tune(model, table(), settings, seen.append)
    assert [(now.step, now.steps) for now in seen] == [(step, 120) for step in range(1, 121)]
    assert seen[19].loss > 2 > 1 > outcome.loss == seen[-1].loss
    assert all(now.targets_per_second > 0 and now.validation_loss is None for now in seen)
    assert not model.training
    prompt = PROMPTS.build(EXAMPLES[4].query)
    with torch.inference_mode():
        best = int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    assert best == PROMPTS.vocabulary.sid_base + CODES[4, 0]


@dataclass(frozen=True)
class Asked:
    """How a loss was asked for: rows of the batch, whether in bfloat16, whether activations are computed again."""

    rows: int
    in_bf16: bool
    again: bool


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Each loss that training takes."""
    found: list[Asked] = []

    def spy(model: Any, batch: Any, *rest: Any) -> Any:
        dtypes: list[Any] = []
        plain = plain_model(model)
        layer = plain.model.layers[0].mlp.down_proj
        handle = layer.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        loss = target_loss(model, batch, *rest)
        handle.remove()
        found.append(Asked(len(batch["token_ids"]), dtypes == [torch.bfloat16], plain.is_gradient_checkpointing))
        return loss

    monkeypatch.setattr("models.training.fine_tuning.target_loss", spy)
    return found


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_step_in_parts_learns_the_same_model(loss: Any, asked: list[Asked]) -> None:
    weights = []
    for accumulate in (1, 3):
        model = small_causal_lm(PROMPTS.vocabulary, hidden_size=32, layers=2, heads=2)
        settings = TrainingSettings(
            max_steps=8, batch_size=12, learning_rate=1e-3, layer2_dropout=0.3, loss=loss, accumulate=accumulate
        )
        outcome = fine_tune(model, table(), settings)
        weights.append((outcome.loss, torch.cat([part.detach().ravel() for part in model.parameters()])))
    assert [one.rows for one in asked] == [12] * 8 + [4] * 24
    assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-5)
    torch.testing.assert_close(weights[0][1], weights[1][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("choice", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_bf16_and_gradient_checkpointing_learn_too(choice: dict[str, Any], asked: list[Asked]) -> None:
    losses = []
    for own in ({}, choice):
        model = small_causal_lm(PROMPTS.vocabulary, hidden_size=32, layers=2, heads=2)
        outcome = fine_tune(model, table(), TrainingSettings(max_steps=40, batch_size=12, learning_rate=5e-3, **own))
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        losses.append(outcome.loss)
    assert {(one.in_bf16, one.again) for one in asked[:40]} == {(False, False)}
    assert {(one.in_bf16, one.again) for one in asked[40:]} == {("precision" in choice, "precision" not in choice)}
    assert losses[1] == pytest.approx(losses[0], abs=0.0 if "gradient_checkpointing" in choice else 0.1)


def test_weight_decay_warm_up_and_learning_rate_are_those_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[dict[str, Any]] = []
    step = torch.optim.AdamW.step

    def spy(self: Any, *arguments: Any, **names: Any) -> Any:
        groups.append(dict(self.param_groups[0]))
        return step(self, *arguments, **names)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)
    settings = TrainingSettings(max_steps=10, batch_size=12, learning_rate=0.01, warm_up=0.5, weight_decay=0.25)
    fine_tune(model, table(), settings)
    assert {group["weight_decay"] for group in groups} == {0.25}
    rates = [group["lr"] for group in groups]
    np.testing.assert_allclose(rates[:6], [0.002, 0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_training_that_needs_more_memory_than_there_is_says_how_to_need_less() -> None:
    def out_of_memory(_: TrainingProgress) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0")

    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)
    with pytest.raises(
        SidstreamError, match=r"Tried to allocate 2\.00 GiB\.\. Need less by --accumulate 6, --gradient"
    ):
        fine_tune(model, table(), TrainingSettings(max_steps=3, accumulate=3, batch_size=6), out_of_memory)


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
    seen: list[TrainingProgress] = []
    settings = TrainingSettings(
        max_steps=1_000, batch_size=12, learning_rate=5e-3, report_every=20, seconds=250.0, layer2_dropout=0.3
    )
    outcome = fine_tune(model, table(), settings, seen.append)
    assert 20 < outcome.steps < 250
    assert outcome.planned_steps == 1_000
    assert outcome.loss < 1.0, "the learning rate has fallen by then, and the model has learnt its examples"
    assert not model.training
    assert seen[-1].step == seen[-1].steps == outcome.steps
    assert all(abs(now.steps - outcome.steps) <= 0.2 * outcome.steps for now in seen if now.step > 20), seen


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
    assert [_Budget(1, warm_up).learning_rate(0) for warm_up in (0.05, 0.9)] == [1.0, 1.0], "never above the highest"
    assert _Budget(10, 0.05).learning_rate(0) == 1.0
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


class Stopped(Exception):
    pass


def stop_at(step: int) -> Any:
    def stop(now: TrainingProgress) -> None:
        if now.step == step:
            raise Stopped

    return stop


class AfterEachStep(Checkpoints):
    """A checkpoint after every step, whatever it costs."""

    def is_due(self) -> bool:
        return super().is_due() or True


def histories_and_examples() -> JoinedTable:
    histories = [[row, (row + 1) % ITEMS, (row + 2) % ITEMS, (row + 5) % ITEMS][: 2 + row % 3] for row in range(ITEMS)]
    return JoinedTable([HistoryTable(histories, PROMPTS.vocabulary, LAYOUT, CODES, max_history=2), table()])


@pytest.mark.parametrize("architecture", ["llama", "qwen", "baichuan"])
def test_a_stopped_training_goes_on_to_the_same_weights_as_one_that_was_not(tmp_path: Path, architecture: Any) -> None:
    settings = TrainingSettings(epochs=4, batch_size=5, seed=1, layer2_dropout=0.3, dropout=0.2)
    data = histories_and_examples()

    def model() -> Any:
        return small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1, architecture=architecture)

    straight, resumed = model(), model()
    whole = fine_tune(straight, data, settings, validation=table())
    stops = (whole.steps // 4 + 1, whole.steps - 2)  # in the middle of an epoch, and near the end
    for stop in stops:
        with pytest.raises(Stopped):
            fine_tune(model(), data, settings, stop_at(stop), AfterEachStep(tmp_path, {}), validation=table())
    steps: list[int] = []
    outcome = fine_tune(
        resumed, data, settings, lambda now: steps.append(now.step), AfterEachStep(tmp_path, {}), validation=table()
    )
    assert steps == list(range(stops[1], whole.steps + 1)), "the step at whose end it was stopped had no checkpoint yet"
    assert outcome.resumed_at == stops[1] - 1
    assert (outcome.steps, outcome.loss) == (whole.steps, pytest.approx(whole.loss, rel=1e-5))
    assert outcome.validation is not None
    assert whole.validation is not None
    assert outcome.validation.times == whole.validation.times == 4
    assert outcome.validation.loss == pytest.approx(whole.validation.loss, rel=1e-5)
    # The same operations in the same order on the same numbers: equal to the last bit.
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_checkpoint_that_cannot_be_written_ends_training_with_what_to_do(tmp_path: Path) -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)
    (tmp_path / "checkpoint-7").write_text("in the way")
    with pytest.raises(SidstreamError, match=r"checkpoint after step 7 could not be written to .* make room there"):
        fine_tune(model, table(), TrainingSettings(max_steps=7, batch_size=5), checkpoints=Checkpoints(tmp_path, {}))


CHECKPOINT = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.parametrize(
    ("name", "begun_again"), [*((name, True) for name in CHECKPOINT), ("model.safetensors", False)]
)
def test_checkpoint_with_a_file_that_was_cut_is_refused_with_what_to_do(
    tmp_path: Path, name: str, begun_again: bool
) -> None:
    def model() -> Any:
        return small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)

    settings = TrainingSettings(max_steps=7, batch_size=5)
    if begun_again:
        with pytest.raises(Stopped):
            fine_tune(model(), table(), settings, stop_at(4), AfterEachStep(tmp_path, {}))
    else:
        fine_tune(model(), table(), settings, checkpoints=Checkpoints(tmp_path, {}))
    [path] = tmp_path.glob(f"checkpoint-*/{name}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SidstreamError, match=r"the checkpoint .*checkpoint-\d cannot be read .*begin anew with --anew"):
        fine_tune(model(), table(), settings, checkpoints=Checkpoints(tmp_path, {}))


def test_training_that_had_ended_is_read_from_its_last_checkpoint(tmp_path: Path) -> None:
    settings = TrainingSettings(max_steps=7, batch_size=5)

    def model() -> Any:
        return small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)

    first, again = model(), model()
    fine_tune(first, table(), settings, checkpoints=Checkpoints(tmp_path, {}))
    outcome = fine_tune(again, table(), settings, checkpoints=Checkpoints(tmp_path, {}))
    assert (outcome.steps, outcome.resumed_at) == (7, 7)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_training_whose_time_was_up_goes_on_with_the_steps_that_are_left(tmp_path: Path, clock: list[float]) -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)
    clock[1] = 1.0
    settings = TrainingSettings(max_steps=200, batch_size=5, seconds=150.0)
    first = fine_tune(model, table(), settings, checkpoints=Checkpoints(tmp_path, {}))
    assert first.steps < 200
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)
    second = fine_tune(
        model, table(), TrainingSettings(max_steps=200, batch_size=5), checkpoints=Checkpoints(tmp_path, {})
    )
    assert (second.resumed_at, second.steps) == (first.steps, 200)
    assert second.seconds > first.seconds


def test_validation_stops_training_that_gets_no_better_and_the_best_weights_are_kept() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=32, layers=1, heads=1)
    wrong = ExampleTable(  # the same questions, other answers: what is learnt makes it worse
        [TrainingExample(one.query, item=f"item-{(row + 5) % ITEMS}") for row, one in enumerate(EXAMPLES)],
        PROMPTS,
        LAYOUT,
        ROWS,
        CODES,
    )
    losses: list[float | None] = []
    settings = TrainingSettings(max_steps=400, batch_size=12, learning_rate=5e-3, patience=3)
    outcome = fine_tune(model, table(), settings, lambda now: losses.append(now.validation_loss), validation=wrong)
    found = outcome.validation
    assert found is not None
    assert found.stopped_early
    assert outcome.stopped_early
    assert outcome.steps < 400
    taken = [loss for loss in losses if loss is not None]
    assert found.loss == min(taken) < taken[-1]
    assert found.targets == ITEMS
    assert losses.index(found.loss) + 1 == found.step < outcome.steps
    batch = wrong.batch(np.arange(ITEMS), 0.0, np.random.default_rng(0)).tensors()
    assert float(target_loss(model, batch).detach()) == pytest.approx(found.loss, rel=1e-4)


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
