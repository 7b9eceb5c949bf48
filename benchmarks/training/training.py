"""Training: whole histories against one example a target, and batches by length against batches as they come and against those of
transformers' own ``LengthGroupedSampler``, which has as many rows a step and not as many targets.

    python -m benchmarks training [--json PATH] [--quick]

Histories have the lengths of a shop's (2 to 50 items, 6.6 on average: amazon_games less its test items), the model is
`sidstream train`'s new one (128 wide, three layers, one thread). Both sides do whole steps of about as many targets (loss,
gradient, AdamW) in turns, and each figure is of processor time, so that waiting for a core that others use counts for nobody.
The loss of both is the same, target by target: `tests/models/training` holds that.
"""

# ruff: noqa: E402 (threads are set before the first import that reads them)
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from models.examples.records import TrainingData, TrainingExample
from models.language.language_model import small_causal_lm
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.example_table import ExampleTable
from models.training.losses import target_loss
from models.training.tables import Batches, JoinedTable, TrainingTable, cut
from models.training.train_model import training_table

ITEMS, USERS, WORDS, MAX_HISTORY, BATCH = 17_000, 4_000, 2_000, 20, 128
CODES = np.random.default_rng(0).integers(256, size=(ITEMS, 3)).astype(np.uint16)
ROWS = {str(row): row for row in range(ITEMS)}
LAYOUT = Layout(1, "codebook", 3, 256, ())


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps: for a first look")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = 8 if arguments.quick else 60
    results = []
    for name, share, bound in (("histories", 0.0, 2.0), ("histories, half of the items asked for by text", 0.5, 2.0)):
        examples = one_a_target(share)
        prompts = prompts_of(examples)
        joined = training_table(TrainingData(examples=examples), prompts, LAYOUT, ROWS, CODES)
        apart = ExampleTable(examples, prompts, LAYOUT, ROWS, CODES)
        whole, single = targets_a_second(prompts, [batches(joined), batches(apart)], steps)
        results.append(Result(name, whole, "targets/s", "one example a target", single, Target.ratio_at_least(bound)))
    examples = title_queries(40_000)
    prompts = prompts_of(examples)
    table = ExampleTable(examples, prompts, LAYOUT, ROWS, CODES)
    by_length, as_they_come = targets_a_second(prompts, [batches(table), unordered(table)], steps)
    results.append(
        Result(
            "40,000 title queries",
            by_length,
            "examples/s",
            "batches as they come",
            as_they_come,
            Target.ratio_at_least(1.2),
        )
    )
    for name, rows in (("histories", whole_histories()), ("title queries", table)):
        own, theirs = grouped(rows, cut(rows, BATCH, np.random.default_rng(0))), grouped(rows, by_transformers(rows))
        sampler = "LengthGroupedSampler"
        results.append(Result(f"{name}: padding", own.padding, "% of a pass", sampler, theirs.padding))
        results.append(Result(f"{name}: most targets of a step", own.most, "of the mean", sampler, theirs.most))
        results.append(Result(f"{name}: fewest targets of a step", own.fewest, "of the mean", sampler, theirs.fewest))
    return report("Training: 128 wide, three layers, one thread, processor time", results, arguments.json)


def words(random: np.random.Generator, count: int) -> str:
    """Words of a made-up language, the first ones the most frequent."""
    return " ".join(f"w{int(word)}" for word in np.minimum(random.zipf(1.3, size=count), WORDS))


def one_a_target(text_share: float) -> tuple[TrainingExample, ...]:
    random = np.random.default_rng(1)
    examples = []
    for user in range(USERS):
        walk = [str(item) for item in random.integers(ITEMS, size=min(50, 2 + int(random.geometric(0.18))))]
        for at in range(1, len(walk)):
            query = words(random, int(random.integers(1, 4))) if random.random() < text_share else ""
            examples.append(TrainingExample(query, str(user), tuple(walk[max(0, at - MAX_HISTORY) : at]), walk[at]))
    return tuple(examples)


def title_queries(count: int) -> tuple[TrainingExample, ...]:
    random = np.random.default_rng(2)
    return tuple(
        TrainingExample(words(random, int(random.integers(1, 12))), item=str(random.integers(ITEMS)))
        for _ in range(count)
    )


def prompts_of(examples: tuple[TrainingExample, ...]) -> PromptBuilder:
    texts = [example.query for example in examples if example.query]
    tokenizer = train_tokenizer(texts, size=3_000 if texts else 256)
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=0, layers=3, size=256)
    return PromptBuilder(vocabulary, tokenizer, PromptSettings(max_history=MAX_HISTORY))


Batch = tuple[dict[str, torch.Tensor], int]


def batches(table: TrainingTable) -> Iterator[Batch]:
    """Those of the product, without end, and how many targets each has."""
    loader = Batches(table, BATCH)
    targets = round(table.targets / len(loader))
    return ((batch, targets) for batch in chain.from_iterable(repeat(loader)))


def whole_histories() -> TrainingTable:
    examples = one_a_target(0.0)
    table = training_table(TrainingData(examples=examples), prompts_of(examples), LAYOUT, ROWS, CODES)
    return table.parts[0] if isinstance(table, JoinedTable) else table


@dataclass(frozen=True)
class Grouped:
    """Of a pass: the share of its tokens that is padding in per cent, and the most and fewest targets of a step."""

    padding: float
    most: float
    fewest: float


def grouped(table: TrainingTable, batches: list[npt.NDArray[np.intp]]) -> Grouped:
    targets = np.array([table.row_targets[rows].sum() for rows in batches])
    tokens = sum(len(rows) * int(table.lengths[rows].max()) for rows in batches)
    return Grouped(
        100 * (1 - float(table.lengths.sum()) / tokens),
        float(targets.max() / targets.mean()),
        float(targets.min() / targets.mean()),
    )


def by_transformers(table: TrainingTable) -> list[npt.NDArray[np.intp]]:
    """Rows of each step, as many as have about ``BATCH`` targets on average."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    size = round(BATCH * len(table) / table.targets)
    sampler = LengthGroupedSampler(size, lengths=table.lengths.tolist(), generator=torch.Generator().manual_seed(0))
    rows = np.array(list(sampler))
    return np.split(rows, range(size, len(rows) // size * size, size))


def unordered(table: ExampleTable) -> Iterator[Batch]:
    random = np.random.default_rng(3)
    while True:
        yield table.batch(random.integers(len(table), size=BATCH), 0.0, random).tensors(), BATCH


def targets_a_second(prompts: PromptBuilder, sides: list[Iterator[Batch]], steps: int) -> list[float]:
    """Of each side, in turns; building a batch is part of its step."""
    models: list[Any] = [small_causal_lm(prompts.vocabulary).train() for _ in sides]
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for model in models]
    seconds, targets = [0.0] * len(sides), [0] * len(sides)
    for step in range(steps + 3):
        for number, (side, model, optimiser) in enumerate(zip(sides, models, optimisers, strict=True)):
            since = time.process_time()
            batch, count = next(side)
            target_loss(model, batch).backward()
            optimiser.step()
            optimiser.zero_grad()
            if step >= 3:  # the first ones allocate
                seconds[number] += time.process_time() - since
                targets[number] += count
    return [count / second for count, second in zip(targets, seconds, strict=True)]


if __name__ == "__main__":
    raise SystemExit(main())
