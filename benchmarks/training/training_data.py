"""Training data larger than memory: what `sidstream train --stream` holds as it divides, makes tables and takes its first steps.

    python -m benchmarks training-data [--json PATH] [--examples 20000000] [--directory DIR]

Examples of queries, users and histories are written as JSON lines (about 2.5 GB for 20 million, and twice that for parts and
tables), and each stage runs in a process of its own whose peak of resident memory the kernel counts. The bound is for any number
of examples; a twentieth of them is measured beside.
"""

# ruff: noqa: E402 (threads are set before the first import that reads them)
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from benchmarks.common.own_process import in_process_of_its_own
from benchmarks.common.reporting import Result, Target, benchmark_arguments, report

ITEMS, USERS, WORDS, MAX_HISTORY, BATCH, STEPS = 50_000, 2_000_000, 2_000, 10, 128, 20
BOUND_MIB: Final = 1_536


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--examples", type=int, default=2_000_000, help="how many; 20000000 takes half an hour or more")
    parser.add_argument("--directory", type=Path, help="where to write them (default: a temporary directory)")
    parser.add_argument(
        "--stages", type=int, choices=(1, 2, 3), default=3, help="how many of the three, from the first"
    )
    arguments = parser.parse_args()
    fewer = max(1_000, arguments.examples // 20)
    results = []
    with TemporaryDirectory(dir=arguments.directory) as directory:
        few = measured(Path(directory) / "few", fewer, arguments.stages)
        many = measured(Path(directory) / "many", arguments.examples, arguments.stages)
    for stage, (seconds, peak) in many.items():
        bound = Target.value_at_most(BOUND_MIB)
        results.append(
            Result(f"{stage}: peak of resident memory", peak, "MiB", f"{fewer:,} examples", few[stage][1], bound)
        )
        results.append(Result(f"{stage}: processor time", seconds, "s", f"{fewer:,} examples", few[stage][0]))
    return report(f"Training data: {arguments.examples:,} examples, streamed", results, arguments.json)


def measured(directory: Path, count: int, stages: int) -> dict[str, tuple[float, float]]:
    """Seconds of processor time and peak MiB of each stage, the tables of the one before on the disk."""
    directory.mkdir()
    write_examples(directory / "examples.jsonl", count)
    every = (("dividing", divide), ("making tables", make_tables), ("first steps", first_steps))
    found = {}
    for name, stage in every[:stages]:
        found[name] = in_process_of_its_own(timed, stage, directory)
        print(f"{count:,} examples, {name}: {found[name][0]:,.1f} s, {found[name][1]:,.0f} MiB", flush=True)
    return found


def timed(stage: Callable[[Path], Any], directory: Path) -> float:
    began = time.process_time()
    stage(directory)
    return time.process_time() - began


def write_examples(path: Path, count: int) -> None:
    random = np.random.default_rng(0)
    with path.open("w") as file:
        for start in range(0, count, 10_000):
            rows = min(10_000, count - start)
            words = np.minimum(random.zipf(1.3, size=(rows, 4)), WORDS).tolist()
            users = random.integers(USERS, size=rows).tolist()
            items = random.integers(ITEMS, size=(rows, 6)).tolist()
            lengths = random.integers(6, size=rows).tolist()
            for (a, b, c, d), user, chosen, length in zip(words, users, items, lengths, strict=True):
                history = ", ".join([f'"item-{item}"' for item in chosen[:length]])
                file.write(
                    f'{{"query": "w{a} w{b} w{c} w{d}", "user": "user-{user}", "history": [{history}], '
                    f'"item": "item-{chosen[5]}"}}\n'
                )


def divide(directory: Path) -> Any:
    from models.examples.streamed import divided

    return divided([directory / "examples.jsonl"], directory / "parts", held_share=0.02, fewest_held_of=5_000)


def make_tables(directory: Path) -> Any:
    """The loader's table, and the prompts."""
    from models.language.prompts import PromptBuilder, PromptSettings
    from models.language.tokenizer import train_tokenizer
    from models.sids.layout import Layout
    from models.sids.vocabulary import SidVocabulary
    from models.training.train_model import streamed_table

    data = divide(directory)  # found on the disk
    tokenizer = train_tokenizer(list(data.texts()), size=3_000)
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=0, layers=3, size=256)
    prompts = PromptBuilder(vocabulary, tokenizer, PromptSettings(max_history=MAX_HISTORY))
    codes = np.random.default_rng(0).integers(256, size=(ITEMS, 3)).astype(np.uint16)
    rows = {f"item-{row}": row for row in range(ITEMS)}
    table, _, _ = streamed_table(data, prompts, Layout(1, "codebook", 3, 256, ()), rows, codes)
    return table, prompts


def first_steps(directory: Path) -> None:
    import torch

    from models.language.language_model import small_causal_lm
    from models.training.fine_tuning import fine_tune
    from models.training.settings import TrainingSettings

    torch.set_num_threads(1)
    table, prompts = make_tables(directory)  # found on the disk
    fine_tune(small_causal_lm(prompts.vocabulary), table, TrainingSettings(max_steps=STEPS, batch_size=BATCH))


if __name__ == "__main__":
    raise SystemExit(main())
