"""Two processes train one model together: the same as one process alone, and the first alone writes and speaks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.catalogue import Catalogue, CatalogueItem
from support.patience import PATIENCE_SECONDS

pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.numpy")

ITEMS = 40
# Trains for two seconds of the first process's clock, a hundredth each time that it is read, and three in the other one's; prints
# what it has.
WITH_OTHER_CLOCKS = """
import hashlib, itertools
from models.training import fine_tuning, processes
class Clock:
    ticks = itertools.count()
    monotonic = classmethod(lambda clock: next(clock.ticks) * 0.01 * (1 + 2 * processes.rank()))
fine_tuning.time = Clock
import numpy as np
from models.language.language_model import small_causal_lm
from models.language.prompts import PromptBuilder, PromptSettings
from models.language.tokenizer import train_tokenizer
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from models.training.history_table import HistoryTable
from models.training.settings import TrainingSettings
vocabulary = SidVocabulary(text_size=256, user_buckets=0, layers=3, size=8)
codes = np.random.default_rng(0).integers(8, size=(30, 3)).astype(np.uint16)
histories = [[(start + 3 * step) % 30 for step in range(5)] for start in range(30)]
table = HistoryTable(histories, vocabulary, Layout(1, "codebook", 3, 8, ()), codes, max_history=4)
model = small_causal_lm(vocabulary, hidden_size=16, layers=1, heads=2)
settings = TrainingSettings(max_steps=100_000, batch_size=24, seconds=2.0)
outcome = fine_tuning.fine_tune(model, table, settings, validation=table)
weights = b"".join(part.detach().numpy().tobytes() for part in model.parameters())
print("learnt", outcome.steps, outcome.validation.times, hashlib.sha256(weights).hexdigest())
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    items = [CatalogueItem(id=f"item-{row}", title=f"thing {row}") for row in range(ITEMS)]
    walks = {f"user-{user}": tuple(f"item-{(user + 3 * step) % ITEMS}" for step in range(5)) for user in range(20)}
    Catalogue(items, random.standard_normal((ITEMS, 8)).astype(np.float32), sequences=walks).write(tmp_path / "shop")
    return tmp_path


def run(shop: Path, *arguments: str, processes: int = 1, program: str = "-m sidstream") -> list[str]:
    """What each process has said; all must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        environment: dict[str, Any] = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        if processes > 1:
            # As `accelerate launch` and `torchrun` set them.
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, *program.split(), *arguments]
        started.append(
            subprocess.Popen(
                command, cwd=shop, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    said = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    return said


def weights(bundle: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    model = json.loads((bundle / "manifest.json").read_text())["language_model"]
    return safetensors.load_file(bundle / model["directory"] / "model.safetensors"), model["training"]


def test_two_processes_learn_what_one_learns_and_the_first_alone_writes_and_speaks(shop: Path) -> None:
    small = ["--epochs", "3", "--hidden-size", "16", "--model-layers", "1", "--batch-size", "24", "--per-item", "1"]
    found = []
    run(shop, "fit", "shop", "--bundle", "fitted", "--size", "8")
    for processes in (1, 2):
        bundle = f"bundle-{processes}"
        shutil.copytree(shop / "fitted", shop / bundle)
        said = run(shop, "train", "shop", "--bundle", bundle, "--validation-share", "0.2", *small, processes=processes)
        assert "✓ model" in said[0]
        assert not any("✓" in other or "loss" in other for other in said[1:]), said[1:]
        found.append(weights(shop / bundle))
    (alone, facts), (together, facts_together) = found
    assert facts["steps"] == facts_together["steps"] > 10
    assert facts["loss"] == pytest.approx(facts_together["loss"], abs=1e-5)
    assert facts["validation"]["loss"] == pytest.approx(facts_together["validation"]["loss"], abs=1e-5)
    for name, tensor in alone.items():
        np.testing.assert_allclose(together[name], tensor, atol=1e-5)


def test_processes_whose_clocks_differ_take_the_same_steps_to_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(WITH_OTHER_CLOCKS)
    said = run(Path.cwd(), processes=2, program=str(script))
    learnt = [next(line for line in lines.splitlines() if line.startswith("learnt")).split() for lines in said]
    steps, validations = int(learnt[0][1]), int(learnt[0][2])
    assert 10 < steps < 100_000
    assert validations > 2
    assert learnt[1] == learnt[0]
