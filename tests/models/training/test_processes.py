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


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    items = [CatalogueItem(id=f"item-{row}", title=f"thing {row}") for row in range(ITEMS)]
    walks = {f"user-{user}": tuple(f"item-{(user + 3 * step) % ITEMS}" for step in range(5)) for user in range(20)}
    Catalogue(items, random.standard_normal((ITEMS, 8)).astype(np.float32), sequences=walks).write(tmp_path / "shop")
    return tmp_path


def run(shop: Path, *arguments: str, processes: int = 1) -> list[str]:
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
        command = [sys.executable, "-m", "sidstream", *arguments]
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
        assert all(not "".join(other.split()) or "sidstream" not in other for other in said[1:])
        found.append(weights(shop / bundle))
    (alone, facts), (together, facts_together) = found
    assert facts["steps"] == facts_together["steps"] > 10
    assert facts["loss"] == pytest.approx(facts_together["loss"], abs=1e-5)
    assert facts["validation"]["loss"] == pytest.approx(facts_together["validation"]["loss"], abs=1e-5)
    for name, tensor in alone.items():
        np.testing.assert_allclose(together[name], tensor, atol=1e-5)
