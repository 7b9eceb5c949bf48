"""Whole histories as training rows: the same loss as one example a target, with the work shared."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from models.errors import SidstreamError
from models.examples.records import TrainingExample
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.example_table import ExampleTable
from models.training.history_table import HistoryTable
from models.training.tables import TrainingTable

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from models.training.fine_tuning import fine_tune  # noqa: E402
from models.training.losses import target_loss  # noqa: E402
from models.training.settings import TrainingSettings  # noqa: E402

LAYERS, SIZE, ITEMS, MAX_HISTORY = 4, 8, 30, 5
RANDOM = np.random.default_rng(3)
CODES = RANDOM.integers(SIZE, size=(ITEMS, LAYERS)).astype(np.uint16)
LAYOUT = Layout(1, "codebook", LAYERS, SIZE, (1, 4, 6))
HISTORIES = [RANDOM.integers(ITEMS, size=length).tolist() for length in (2, 6, 3, 1, 4, 5, 6, 2, 0, 3)]
USERS = [f"user-{number}" if number % 2 else None for number in range(len(HISTORIES))]
TOKENIZER = train_tokenizer(["anchor basket candle"], size=300)
VOCABULARY = SidVocabulary(text_size=TOKENIZER.size, user_buckets=4, layers=LAYERS, size=SIZE)
PROMPTS = PromptBuilder(VOCABULARY, TOKENIZER, PromptSettings(max_history=MAX_HISTORY))

HEADS = [PROMPTS.head(user, has_history=True) for user in USERS]


def histories(**changes: Any) -> HistoryTable:
    return HistoryTable(HISTORIES, VOCABULARY, LAYOUT, CODES, max_history=MAX_HISTORY, heads=HEADS, **changes)


def one_example_a_target() -> ExampleTable:
    examples = [
        TrainingExample(user=user, history=tuple(map(str, history[:at])), item=str(history[at]))
        for history, user in zip(HISTORIES, USERS, strict=True)
        for at in range(1, len(history))
    ]
    return ExampleTable(examples, PROMPTS, LAYOUT, {str(row): row for row in range(ITEMS)}, CODES)


def loss(model: Any, table: TrainingTable) -> Any:
    batch = table.batch(np.arange(len(table)), 0.0, np.random.default_rng(0))
    return target_loss(model, batch.tensors())


@pytest.mark.parametrize("architecture", ["llama", "qwen", "baichuan"])
def test_loss_and_gradient_are_those_of_one_example_a_target(architecture: Any) -> None:
    gradients = []
    losses = []
    for table in (histories(), one_example_a_target()):
        model = small_causal_lm(VOCABULARY, hidden_size=32, layers=2, heads=2, architecture=architecture)
        value = loss(model, table)
        value.backward()
        losses.append(value.detach())
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(losses[0], losses[1], atol=2e-6, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)
    assert histories().targets == one_example_a_target().targets


def test_each_item_but_the_first_is_a_target_once_and_has_half_a_window_before_it() -> None:
    long = list(range(30))
    table = HistoryTable([long], VOCABULARY, LAYOUT, CODES, max_history=6)
    seen: dict[int, int] = {}
    for window, is_target in zip(table._items.tolist(), table._is_target.tolist(), strict=True):
        items = [item for item in window if item >= 0]
        assert all(after == before + 1 for before, after in pairwise(items))
        for place in np.flatnonzero(is_target):
            assert items[place] not in seen
            seen[items[place]] = place
    assert sorted(seen) == long[1:]
    assert all(place >= min(item, 3) for item, place in seen.items())
    assert table.targets == 29


def test_layer_2_dropout_draws_trunk_and_targets_independently() -> None:
    table = HistoryTable([[0, 1]] * 3000, VOCABULARY, LAYOUT, CODES, max_history=2)
    batch = table.batch(np.arange(3000), 0.25, np.random.default_rng(1))
    middle = VOCABULARY.layer_range(1)
    in_trunk = ((batch.token_ids[:, :4] >= middle.start) & (batch.token_ids[:, :4] < middle.stop)).any(axis=1)
    as_target = ((batch.following >= middle.start) & (batch.following < middle.stop)).any(axis=1)
    for forms, item in ((in_trunk, 0), (as_target, 1)):
        assert forms.mean() == pytest.approx(0.25 if LAYOUT.is_head[CODES[item, 1]] else 0.75, abs=0.03)
    assert abs(np.corrcoef(in_trunk, as_target)[0, 1]) < 0.06


def test_a_model_learns_the_next_item_of_histories() -> None:
    cycles = [[(start + step) % 6 for step in range(5)] for start in range(6)] * 4
    table = HistoryTable(cycles, VOCABULARY, LAYOUT, CODES, max_history=5)
    model = small_causal_lm(VOCABULARY, hidden_size=32, layers=2, heads=2)
    outcome = fine_tune(model, table, TrainingSettings(max_steps=120, batch_size=12, learning_rate=5e-3))
    assert outcome.loss < 0.3
    assert outcome.examples == 24 * 4


def test_histories_without_a_target_are_left_out_and_none_at_all_is_refused() -> None:
    assert len(histories()) == len(HISTORIES) - 2
    with pytest.raises(SidstreamError, match="no history has two items"):
        HistoryTable([[1], []], VOCABULARY, LAYOUT, CODES, max_history=5)
    with pytest.raises(SidstreamError, match="max_history must be at least 2"):
        HistoryTable([[1, 2]], VOCABULARY, LAYOUT, CODES, max_history=1)
