"""Validation: the loss that it takes, how often, and when training has had its chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.examples.records import TrainingExample
from models.language.prompts import PromptBuilder
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.example_table import ExampleTable
from models.training.history_table import HistoryTable

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from models.training.fine_tuning import fine_tune  # noqa: E402
from models.training.losses import surprises  # noqa: E402
from models.training.settings import TrainingSettings  # noqa: E402
from models.training.validation import MOST_TARGETS, Figures, Validation  # noqa: E402

SIZE = 8
CODES = np.random.default_rng(5).integers(SIZE, size=(20, 3)).astype(np.uint16)
TOKENIZER = train_tokenizer(["anchor basket"], size=300)
PROMPTS = PromptBuilder(SidVocabulary(text_size=TOKENIZER.size, user_buckets=0, layers=3, size=SIZE), TOKENIZER)


def table(count: int) -> ExampleTable:
    examples = [TrainingExample("anchor" * (row % 4), item=str(row % 20)) for row in range(count)]
    return ExampleTable(examples, PROMPTS, Layout(1, "c", 3, SIZE, (2,)), {str(row): row for row in range(20)}, CODES)


def test_the_loss_is_the_mean_over_all_tokens_and_changes_nothing() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1).train()
    rows = table(50)
    validation = Validation(rows, batch_size=7, steps_an_epoch=100, patience=2)
    state = torch.get_rng_state()
    found = validation.figures(model)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    with torch.no_grad():
        every = surprises(model, rows.batch(np.arange(50), 0.0, np.random.default_rng(0)).tensors())
    assert found.loss == pytest.approx(float(every.mean()), rel=1e-5)
    assert validation.targets == 50


def test_recall_at_1_is_that_of_greedy_decoding_for_examples_and_branches_alike() -> None:
    torch.manual_seed(3)
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1, seed=2)
    layout = Layout(1, "c", 3, SIZE, (2,))
    histories = [[row, (row + 3) % 20, (row + 7) % 20] for row in range(20)]
    whole = HistoryTable(histories, PROMPTS.vocabulary, layout, CODES, max_history=10)
    fine_tune(model, whole, TrainingSettings(max_steps=60, batch_size=20, learning_rate=1e-2))
    sids, hits = layout.sid_tokens(CODES), 0
    for history in histories:
        for at in (1, 2):
            prompt = PROMPTS.build("", sids[history[:at]])
            wanted = [PROMPTS.vocabulary.sid_base + token for token in sids[history[at]] if token >= 0]
            for _ in wanted:
                with torch.inference_mode():
                    prompt.append(int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax()))
            hits += prompt[-len(wanted) :] == wanted
    assert 0 < hits < 40
    found = Validation(whole, batch_size=7, steps_an_epoch=100, patience=2).figures(model)
    assert found.recall_at_1 == hits / 40


def test_large_validation_data_are_looked_at_in_part_and_seldom_enough() -> None:
    large = Validation(table(3 * MOST_TARGETS), batch_size=100, steps_an_epoch=1_000, patience=2)
    assert large.targets == pytest.approx(MOST_TARGETS, rel=0.03)
    assert large.every == 250, "four an epoch"
    assert Validation(table(1_000), batch_size=100, steps_an_epoch=20, patience=2).every == 30, "a tenth of the time"
    assert Validation(table(10), batch_size=100, steps_an_epoch=1, patience=2).every == 3


def test_patience_ends_after_so_many_that_were_no_better_and_begins_anew_with_a_better_one() -> None:
    validation = Validation(table(10), batch_size=5, steps_an_epoch=1, patience=2)
    seen = []
    for step, loss in enumerate([5.0, 4.0, 4.5, 3.0, 3.0, math.nan], start=1):
        seen.append((validation.take(Figures(loss, 0.1 * step), step), validation.out_of_patience))
    assert seen == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]
    outcome = validation.outcome(stopped_early=True)
    assert (outcome.loss, outcome.step, outcome.times, outcome.targets) == (3.0, 4, 6, 10)
    assert outcome.recall_at_1 == pytest.approx(0.4), "of the best one"


def test_its_state_goes_on_in_another_process() -> None:
    one = Validation(table(10), batch_size=5, steps_an_epoch=1, patience=2)
    one.take(Figures(3.0, 0.5), 1)
    one.take(Figures(4.0, 0.6), 2)
    other = Validation(table(10), batch_size=5, steps_an_epoch=1, patience=2)
    other.go_on_from(one.state())
    other.take(Figures(3.5, 0.6), 3)
    assert other.out_of_patience
    assert other.outcome(stopped_early=True).recall_at_1 == 0.5
    assert other.outcome(stopped_early=True).step == 1
    fresh = Validation(table(10), batch_size=5, steps_an_epoch=1, patience=2)
    other.go_on_from(fresh.state())
    assert other.take(Figures(9.0, 0.0), 1)
