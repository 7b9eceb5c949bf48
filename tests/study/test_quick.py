"""The study in small: it runs, what is certain of it shows, and nothing is computed twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from study.experiments.plan import scale
from study.experiments.results import Results
from study.experiments.run import FREE_BEAMS, OWN, run
from study.quick import quick_study
from study.report.report import write_report


@pytest.mark.long
def test_the_quick_study_shows_what_is_certain_and_its_report_is_rebuilt_from_its_records(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    holds = quick_study(console, 2, tmp_path)
    assert holds, console.export_text()
    page = (tmp_path / "README.md").read_text()
    assert "without layer 2" in page
    figures = [name for name in tmp_path.rglob("*.png") if f"({name.relative_to(tmp_path)})" in page]
    assert len(figures) >= 6
    again = tmp_path / "again"
    (again / "results").parent.mkdir()
    (tmp_path / "results").rename(again / "results")
    write_report(Results(again / "results", tmp_path), again, datasets=("tiny",))
    assert (again / "README.md").read_text() == page


def test_a_run_is_trained_once_and_only_what_is_missing_is_measured(tmp_path: Path) -> None:
    choice = msgspec.structs.replace(scale("tiny").base, epochs=1, cases=50, hidden_size=16)
    results = Results(tmp_path / "results", tmp_path / "scratch")
    done: list[str] = []
    first = run(choice, (OWN,), results, lambda what, share: done.append(what))
    assert {"training", "own"} <= set(done)
    done.clear()
    second = run(choice, (OWN, FREE_BEAMS), results, lambda what, share: done.append(what))
    assert done == ["free beams"]
    assert second.measured["own"] == first.measured["own"]
    assert set(second.measured["free beams"]) == {"1", "2", "5", "10", "20", "30", "40", "50"}
    done.clear()
    assert run(choice, (OWN,), results, lambda *_: done.append("x")) == second
    assert not done
