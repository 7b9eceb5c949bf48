"""Memory and time of training a model of 0.1 billion parameters on the processor: each way to need less of one or the other.

    python -m benchmarks training-memory [--json PATH] [--hidden-size 768] [--model-layers 12] [--targets 16]

A Llama with 32,000 text tokens and random weights takes a few steps of so many examples (prompts and SIDs of about 60 tokens),
one thread; each way runs in a process of its own. Seconds are of processor time, so that waiting for a core that others use
counts for nobody; the first step, which allocates, is left out. Peak memory has about 850 MiB of libraries in it.
"""

# ruff: noqa: E402 (threads are set before the first import that reads them)
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import time
from typing import Any, Final

import numpy as np

from benchmarks.common.own_process import in_process_of_its_own
from benchmarks.common.reporting import Result, benchmark_arguments, report

TEXT_TOKENS, ITEMS, MAX_HISTORY, STEPS = 32_000, 5_000, 15, 2
WAYS: Final[dict[str, dict[str, Any]]] = {
    "float32": {},
    "bf16": {"precision": "bf16"},
    "accumulate 4": {"accumulate": 4},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "accumulate 4, gradient checkpointing, bf16": {
        "accumulate": 4,
        "gradient_checkpointing": True,
        "precision": "bf16",
    },
    "LoRA 16": {"lora": 16},
    "LoRA 16, bf16": {"lora": 16, "precision": "bf16"},
}


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--model-layers", type=int, default=12)
    parser.add_argument("--targets", type=int, default=16, help="SIDs to be generated in a step")
    arguments = parser.parse_args()
    results: list[Result] = []
    plain: tuple[float, float] | None = None
    for name, way in WAYS.items():
        (seconds, parameters), peak = in_process_of_its_own(
            train, arguments.hidden_size, arguments.model_layers, arguments.targets, way
        )
        plain = plain or (peak, seconds)
        results.append(Result(f"{name}: peak memory", peak, "MiB", "float32", plain[0]))
        results.append(Result(f"{name}: processor time a step", seconds, "s", "float32", plain[1]))
    title = f"Training {parameters / 1e9:.2f} billion parameters, {arguments.targets} targets a step, one thread"
    return report(title, results, arguments.json)


def train(hidden_size: int, layers: int, targets: int, way: dict[str, Any]) -> tuple[float, int]:
    """Seconds of processor time a step, and the model's parameters."""
    import torch

    from models.examples.records import TrainingExample
    from models.language.language_model import small_causal_lm
    from models.language.lora import add_lora
    from models.language.prompts import PromptBuilder, PromptSettings
    from models.language.tokenizer import BYTES, train_tokenizer
    from models.sids.layout import Layout
    from models.sids.vocabulary import SidVocabulary
    from models.training.example_table import ExampleTable
    from models.training.fine_tuning import fine_tune
    from models.training.settings import TrainingProgress, TrainingSettings

    torch.set_num_threads(1)
    vocabulary = SidVocabulary(text_size=TEXT_TOKENS, user_buckets=0, layers=3, size=256)
    prompts = PromptBuilder(vocabulary, train_tokenizer((), size=BYTES), PromptSettings(max_history=MAX_HISTORY))
    model = small_causal_lm(
        vocabulary,
        hidden_size=hidden_size,
        layers=layers,
        heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    settings = TrainingSettings(max_steps=1 + STEPS, batch_size=targets, learning_rate=1e-4, **way)
    if settings.lora:
        if settings.precision == "bf16":  # as `sidstream train` does
            model = model.to(torch.bfloat16)
        model = add_lora(model, settings.lora, vocabulary)
    random = np.random.default_rng(0)
    codes = random.integers(256, size=(ITEMS, 3)).astype(np.uint16)
    examples = [
        TrainingExample("red shoes", history=tuple(map(str, items[1:])), item=str(items[0]))
        for items in random.integers(ITEMS, size=(8 * targets, MAX_HISTORY + 1)).tolist()
    ]
    rows = {str(row): row for row in range(ITEMS)}
    table = ExampleTable(examples, prompts, Layout(1, "codebook", 3, 256, ()), rows, codes)
    ends: list[float] = []

    def note(now: TrainingProgress) -> None:
        ends.append(time.process_time())

    fine_tune(model, table, settings, note)
    return (ends[-1] - ends[0]) / STEPS, parameters


if __name__ == "__main__":
    raise SystemExit(main())
