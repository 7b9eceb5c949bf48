"""The benchmark of a card: refused without one, a report that names what it ran on, and a floor that counts what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks.retrieval import gpu  # noqa: E402
from models.language.language_model import small_causal_lm  # noqa: E402
from models.sids.vocabulary import SidVocabulary  # noqa: E402


def test_machine_without_a_card_is_told_so_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "--json", str(tmp_path / "gpu.json"), "--report", str(tmp_path / "gpu.md")])
    assert gpu.main() == gpu.NO_CARD
    assert "no CUDA device here, so nothing was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_small_version_measures_every_figure_and_says_that_it_was_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, document = tmp_path / "gpu.md", tmp_path / "gpu.json"
    arguments = ["gpu", "--device", "cpu", "--dtype", "float32", "--json", str(document), "--report", str(page)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(gpu, "AT_ONCE", (1, 3))
    assert gpu.main() == 0
    results = json.loads(document.read_text())["results"]
    against = ["floor", "copy a step", "fixed shape", "shared prompt", "cache a beam", "generate"]
    for queries in (1, 3):
        named = [result["name"] for result in results if f", {queries} at once: " in result["name"]]
        assert [end for end, name in zip(against, named, strict=True) if name.endswith(end)] == against
    assert all(result["value"] > 0 and result["baseline_value"] > 0 for result in results)
    written = page.read_text()
    assert "Not a card" in written
    assert "100.0% of the first ten SIDs" in written
    assert all(result["name"] in written for result in results)


def test_floor_counts_weights_once_a_pass_and_what_is_cached_before_it() -> None:
    vocabulary = SidVocabulary(text_size=50, user_buckets=0, layers=3, size=8)
    model = small_causal_lm(vocabulary, hidden_size=16, layers=2, heads=2)
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    token = 4 * 2 * 2 * 16  # keys and values of two layers
    assert gpu.floor_bytes(model, 3, 10, 5, 3) == 3 * weights + 3 * token * (10 + 10 + 5)


@pytest.mark.parametrize("device", ["nonsense", "meta", "cpu:x"])
def test_device_that_cannot_be_used_is_told_in_a_sentence_and_nothing_is_written(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "gpu.json"), "--report", str(tmp_path / "gpu.md")]
    monkeypatch.setattr("sys.argv", ["gpu", "--device", device, *files])
    assert gpu.main() == gpu.NO_CARD
    said = capsys.readouterr().err
    assert said.startswith(f"--device is {device!r}, which cannot be used here")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
