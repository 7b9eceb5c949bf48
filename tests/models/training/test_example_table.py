"""Alignment tasks as rows: what each reads and what it predicts, in the words of the prompts, and every example in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.examples.alignment import AlignmentExample, AlignmentSettings
from models.examples.records import TrainingData, TrainingExample
from models.language.instruction import parse_instruction
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.example_table import AlignmentTable
from models.training.tables import NOTHING_FOLLOWS, Batches, JoinedTable

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from models.training.losses import target_loss  # noqa: E402
from models.training.train_model import Alignment, training_table  # noqa: E402

SIZE, ITEMS = 8, 12
CODES = np.random.default_rng(5).integers(SIZE, size=(ITEMS, 3)).astype(np.uint16)
LAYOUT = Layout(1, "codebook", 3, SIZE, (int(CODES[1, 1]),))
ROWS = {f"item-{row}": row for row in range(ITEMS)}
TOKENIZER = train_tokenizer(["red trail shoes", "which item is called", "title:"] * 5, size=300)
VOCABULARY = SidVocabulary(text_size=TOKENIZER.size, user_buckets=4, layers=3, size=SIZE)
ENCODE = TOKENIZER.encode


def prompts(instruction: str = "") -> PromptBuilder:
    parts = parse_instruction(instruction) if instruction else ()
    return PromptBuilder(VOCABULARY, TOKENIZER, PromptSettings(max_text_tokens=4, instruction=parts))


def table(examples: list[AlignmentExample], *, targets: int, instruction: str = "") -> AlignmentTable:
    return AlignmentTable(examples, prompts(instruction), LAYOUT, ROWS, CODES, targets=targets, seed=0)


def read_and_predicted(batch: Any) -> tuple[list[int], list[int]]:
    """Of its only row: the tokens up to the first that is to be predicted, and those that are."""
    (following,) = batch.following
    wanted = following[following != NOTHING_FOLLOWS]
    first = int(np.flatnonzero(following != NOTHING_FOLLOWS)[0])
    assert batch.token_ids[0, first + 1 :].tolist() == wanted[:-1].tolist()
    return batch.token_ids[0, : first + 1].tolist(), wanted.tolist()


def sid(row: int) -> list[int]:
    tokens = VOCABULARY.token_ids(LAYOUT.sid_tokens(CODES[[row]]))[0]
    return [token for token in tokens.tolist() if token >= 0]


@pytest.mark.parametrize(
    ("task", "row", "read", "predicted"),
    [
        ("title-to-sid", 0, [*ENCODE("red shoes"), VOCABULARY.separator_id], sid(0)),
        ("attributes-to-sid", 1, [*ENCODE("red shoes"), VOCABULARY.separator_id], sid(1)),
        ("sid-to-title", 1, [*sid(1), *ENCODE(" title:")], ENCODE("red shoes")),
    ],
)
def test_bare_task_reads_one_and_predicts_the_other(task: Any, row: int, read: list[int], predicted: list[int]) -> None:
    assert len(sid(0)) == 3 > len(sid(1)) == 2
    batch = table([AlignmentExample(task, f"item-{row}", "red shoes")], targets=1).batch(
        np.array([0]), 0.0, np.random.default_rng(0)
    )
    assert read_and_predicted(batch) == ([VOCABULARY.begin_id, *read], predicted)


def test_task_beside_instructions_has_words_of_its_own() -> None:
    example = AlignmentExample("title-to-sid", "item-0", "red shoes")
    batch = table([example], targets=1, instruction="{user}{history}{query}").batch(
        np.array([0]), 0.0, np.random.default_rng(0)
    )
    words = [*ENCODE("Which item is called "), *ENCODE("red shoes"), *ENCODE("?")]
    assert read_and_predicted(batch) == ([VOCABULARY.begin_id, *words, VOCABULARY.separator_id], sid(0))


def test_every_example_is_learnt_in_time_where_a_pass_has_room_for_few() -> None:
    examples = [AlignmentExample("title-to-sid", f"item-{row}", "red") for row in range(ITEMS)]
    few = table(examples, targets=4)
    assert (len(few), few.targets) == (4, 4)
    seen: set[tuple[int, ...]] = set()
    for epoch in range(40):
        batch = few.batch(np.arange(4), 0.0, np.random.default_rng(epoch))
        seen |= {tuple(row[row != NOTHING_FOLLOWS].tolist()) for row in batch.following}
    assert seen == {tuple(sid(row)) for row in range(ITEMS)}
    many = table(examples, targets=3 * ITEMS)
    assert sorted(many._choices.ravel().tolist()) == sorted(list(range(ITEMS)) * 3)


def test_tasks_are_a_share_of_a_pass_and_never_in_one_batch_with_the_rest() -> None:
    data = TrainingData(examples=tuple(TrainingExample("red shoes", item=f"item-{row % ITEMS}") for row in range(60)))
    examples = [AlignmentExample("sid-to-title", item, "red trail shoes") for item in (*ROWS, "gone")]
    main = training_table(data, prompts(), LAYOUT, ROWS, CODES)
    both = Alignment(AlignmentSettings(("sid-to-title",), 0.25), examples).beside(main, prompts(), LAYOUT, ROWS, CODES)
    assert isinstance(both, JoinedTable)
    assert (both.targets, both.parts[-1].targets) == (80, 20)
    model = small_causal_lm(VOCABULARY, hidden_size=16, layers=1, heads=2)
    kinds = set()
    for batch in Batches(both, 20):
        batch.pop("share")
        assert torch.isfinite(target_loss(model, batch))
        kinds.add(bool((batch["following"] < VOCABULARY.text_size).logical_and(batch["following"] >= 0).any()))
    assert kinds == {True, False}
