"""From data to a trained model: what is unknown is counted, and what remains is in the table that shares most work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.errors import SidstreamError
from models.examples.records import TrainingData, TrainingExample, TrainingHistory
from models.language.instruction import parse_instruction
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.example_table import ExampleTable
from models.training.history_table import HistoryTable
from models.training.settings import TrainingSettings
from models.training.tables import JoinedTable, TrainingTable

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from models.training.losses import surprises  # noqa: E402
from models.training.train_model import known, train_model, training_table  # noqa: E402

SIZE, ITEMS = 8, 20
CODES = np.random.default_rng(5).integers(SIZE, size=(ITEMS, 3)).astype(np.uint16)
LAYOUT = Layout(1, "codebook", 3, SIZE, (1, 4))
ROWS = {f"item-{row}": row for row in range(ITEMS)}
WORDS = ["anchor", "basket", "candle", "drum kit", "engine oil", "feather pillow"]
TOKENIZER = train_tokenizer(WORDS * 3, size=300)
PROMPTS = PromptBuilder(
    SidVocabulary(text_size=TOKENIZER.size, user_buckets=4, layers=3, size=SIZE),
    TOKENIZER,
    PromptSettings(max_history=6, max_text_tokens=5),
)


def one_a_target() -> tuple[TrainingExample, ...]:
    random = np.random.default_rng(1)
    walks = [[f"item-{row}" for row in random.integers(ITEMS, size=length)] for length in (2, 4, 7, 6, 3)]
    return tuple(
        TrainingExample(
            query=WORDS[int(random.integers(6))] if random.random() < 0.5 else "",
            user=f"user-{number}",
            history=tuple(walk[:at]),
            item=walk[at],
        )
        for number, walk in enumerate(walks)
        for at in range(1, len(walk))
    )


def table(data: TrainingData) -> TrainingTable:
    return training_table(data, PROMPTS, LAYOUT, ROWS, CODES)


def losses(model: Any, part: TrainingTable) -> list[float]:
    batch = part.batch(np.arange(len(part)), 0.0, np.random.default_rng(0)).tensors()
    with torch.no_grad():
        found: list[float] = surprises(model, batch).tolist()
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen", "baichuan"])
def test_text_history_and_user_are_read_alike_in_a_whole_history_and_in_examples(architecture: Any) -> None:
    examples = (*one_a_target(), TrainingExample("drum", item="item-3"))
    joined = table(TrainingData(examples=examples))
    assert isinstance(joined, JoinedTable)
    assert [type(part) for part in joined.parts] == [HistoryTable, ExampleTable]
    assert [len(part) for part in joined.parts] == [4, 2]
    assert joined.targets == len(examples)
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=32, layers=2, heads=2, architecture=architecture)
    together = [loss for part in joined.parts for loss in losses(model, part)]
    apart = losses(model, ExampleTable(examples, PROMPTS, LAYOUT, ROWS, CODES))
    np.testing.assert_allclose(sorted(together), sorted(apart), atol=2e-6)


def test_what_is_unknown_is_left_out_and_counted() -> None:
    data = TrainingData(
        histories=(
            TrainingHistory(("item-1", "gone", "item-2", "item-3"), "ada"),
            TrainingHistory(("gone", "item-4", "item-5"), "bob", (None, "drum", "")),
            TrainingHistory(("item-6", "item-7")),
        ),
        examples=(
            TrainingExample("x", item="gone"),
            TrainingExample("x", history=("gone", "item-1"), item="item-2"),
        ),
    )
    found = known(data, ROWS)
    assert (found.examples, found.mentions) == (2, 2)
    assert [history.items for history in found.data.histories] == [
        ("item-1", "item-2", "item-3"),
        ("item-4", "item-5"),
        ("item-6", "item-7"),
    ]
    assert found.data.histories[1].queries == (None, "")
    assert found.data.examples == (
        TrainingExample("x", history=("item-1",), item="item-2"),
        TrainingExample("drum", user="bob", item="item-4"),
    )


def test_a_model_learns_both_and_says_what_was_skipped() -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=48, layers=2, heads=2)
    data = TrainingData(
        histories=(TrainingHistory(("item-1", "gone", "item-2", "item-3")),),
        examples=(TrainingExample("drum", item="item-4"), TrainingExample("anchor", item="gone")),
    )
    settings = TrainingSettings(max_steps=80, batch_size=4, learning_rate=5e-3)
    outcome = train_model(
        model, data, PROMPTS, LAYOUT, ROWS, CODES, settings, validation=TrainingData(examples=data.examples)
    )
    assert outcome.loss < 0.5
    assert (outcome.examples, outcome.rows, outcome.skipped, outcome.skipped_mentions) == (3, 2, 2, 0)
    assert outcome.validation is not None
    assert outcome.validation.targets == 1


@pytest.mark.parametrize(
    ("data", "validation", "what"),
    [
        (TrainingData(examples=(TrainingExample("x", item="gone"),)), None, "training"),
        (TrainingData((TrainingHistory(("item-1", "gone")),)), None, "training"),
        (TrainingData(examples=one_a_target()), TrainingData(examples=(TrainingExample("x", item="gone"),)), "validation"),
        (TrainingData(examples=one_a_target()), TrainingData(), "validation"),
    ],
)  # fmt: skip
def test_data_with_nothing_to_learn_are_refused_by_name(
    data: TrainingData, validation: TrainingData | None, what: str
) -> None:
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=16, layers=1, heads=1)
    with pytest.raises(SidstreamError, match=f"the {what} data have nothing to learn.*give data that belong"):
        train_model(model, data, PROMPTS, LAYOUT, ROWS, CODES, TrainingSettings(max_steps=1), validation=validation)


@pytest.mark.parametrize("instruction", ["", "[User {user}. ][Bought {history}. ][Asked {query}. ]Next?"])
def test_words_and_titles_are_read_alike_in_a_whole_history_and_in_examples(instruction: str) -> None:
    parts = parse_instruction(instruction) if instruction else ()
    settings = PromptSettings(max_history=6, max_text_tokens=5, history_text=2, instruction=parts)
    prompts = PromptBuilder(PROMPTS.vocabulary, TOKENIZER, settings)
    titles = {item: WORDS[row % 6] for item, row in ROWS.items() if row % 4}
    examples = (*one_a_target(), TrainingExample("drum", item="item-3"))
    joined = training_table(TrainingData(examples=examples), prompts, LAYOUT, ROWS, CODES, titles=titles)
    assert isinstance(joined, JoinedTable)
    model = small_causal_lm(PROMPTS.vocabulary, hidden_size=32, layers=2, heads=2)
    together = [loss for part in joined.parts for loss in losses(model, part)]
    title_ids = prompts.title_ids([titles.get(item, "") for item in ROWS])
    apart = losses(model, ExampleTable(examples, prompts, LAYOUT, ROWS, CODES, title_ids))
    np.testing.assert_allclose(sorted(together), sorted(apart), atol=2e-6)
    # A row of the table is what serving builds, with the target's SID behind it.
    for example, row in zip(
        examples, ExampleTable(examples, prompts, LAYOUT, ROWS, CODES, title_ids).rows, strict=True
    ):
        sids = CODES[[ROWS[item] for item in example.history]] + LAYOUT.layer_offsets
        served = prompts.build(example.query, sids, example.user, [titles.get(item, "") for item in example.history])
        assert row[row >= 0].tolist()[: len(served)] == served
        assert len(served) == (row >= 0).sum() - 3
