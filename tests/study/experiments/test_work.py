"""What ``--only`` names: every text names something, or is an error that says what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from models.errors import SidstreamError
from study.commands import study
from study.experiments import work
from study.experiments.plan import rows
from study.experiments.results import Results
from study.experiments.work import FIGURES, do_work, hourglass_choices, hourglass_label, names, row_label


@pytest.mark.parametrize("only", [["figure 7"], ["amazon_games", "tabel 2"], [""], ["table 2", "0123456789ab"]])
def test_text_that_names_nothing_is_an_error_that_says_what_there_is_and_forgets_nothing(
    tmp_path: Path, only: list[str]
) -> None:
    results = Results(tmp_path / "results", tmp_path)
    results.write_record("references", "planted", {"kept": 1})
    with pytest.raises(SidstreamError, match=r"nothing of the study is called .*chorus_icecat.*table 2.*figure 4"):
        do_work(results, only, 1, Console(quiet=True), again=True)
    assert results.record("references", "planted") == {"kept": 1}


def test_the_most_similar_label_is_offered(tmp_path: Path) -> None:
    with pytest.raises(SidstreamError, match="such as 'references planted'"):
        do_work(Results(tmp_path, tmp_path), ["reference plantet"], 1, Console(quiet=True))


def test_each_figure_of_the_paper_names_what_it_is_drawn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [hourglass_label(choice) for choice in hourglass_choices("planted")]
    runs = [row_label(row) for row in rows("planted")]
    for figure in FIGURES:
        named = [label for label in (*shapes, *runs, "references planted") if names(figure, label, "")]
        expected = [label for label in runs if " table 2 " in label] if figure == "figure 5" else shapes
        assert named == expected
    asked: list[object] = []
    monkeypatch.setattr(work, "shape_record", lambda choice, scratch: {"choice": choice.said()})
    monkeypatch.setattr(work, "run_all", lambda chosen, *_: asked.extend(chosen) or [])
    monkeypatch.setattr(work, "DATASETS", ("planted",))
    results = Results(tmp_path, tmp_path)
    do_work(results, ["figure 4"], 1, Console(quiet=True))
    assert all(results.record("hourglass", choice.key) for choice in hourglass_choices("planted"))
    assert asked == []


@pytest.mark.parametrize(
    "options",
    [{"quick": True, "only": ["table 2"]}, {"quick": True, "report": True}, {"report": True, "only": ["table 2"]}],
)
def test_options_that_would_be_passed_over_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SidstreamError, match="leave --only"):
        study(**options)  # type: ignore[arg-type]
