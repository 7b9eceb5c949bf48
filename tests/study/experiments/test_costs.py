"""What a query costs by each method: of one seed's models, or refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from models.errors import SidstreamError
from study.experiments import costs as room
from study.experiments.plan import Row, rows, scale
from study.experiments.results import Results
from study.experiments.run import OWN, run
from study.report import tables


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Two methods of table 2 on the tiny set, of two seeds."""
    base = msgspec.structs.replace(scale("tiny").base, epochs=0.2, cases=20, hidden_size=16, model_layers=1, heads=2)
    shorter = next(row.choice.layout for row in rows("tiny") if row.label == "without layer 2")
    found = [
        Row("table 2", label, msgspec.structs.replace(base, layout=layout, seed=seed), (OWN,))
        for seed in (0, 1)
        for label, layout in (("base", base.layout), ("without layer 2", shorter))
    ]
    monkeypatch.setattr(room, "rows", lambda _: found)
    return found


def test_models_of_the_one_seed_that_has_all_of_them_are_timed_and_the_page_says_their_ratio(
    small: list[Row], tmp_path: Path
) -> None:
    results = Results(tmp_path / "results", tmp_path)
    for row in (small[0], *small[2:]):  # of seed 0 one is missing
        run(row.choice, (), results, lambda *_: None)
    record = room.costs("tiny", results)
    assert record["seed"] == 1
    assert list(record["methods"]) == ["base", "without layer 2"]
    assert all(0 < times["processor"] < times["clock"] * 1.5 for times in record["methods"].values())
    results.write_record("costs", "tiny", record)
    page = tables.cost(results, "tiny")
    lines = page.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| base", "| without layer 2"], "in the order of table 2"
    assert lines[0].endswith("| 1.00 |")


def test_costs_without_all_models_of_a_seed_are_refused_with_what_to_run(small: list[Row], tmp_path: Path) -> None:
    results = Results(tmp_path / "results", tmp_path)
    run(small[0].choice, (), results, lambda *_: None)
    with pytest.raises(SidstreamError, match=r"no seed has all of table 2's .* run `sidstream study --again"):
        room.costs("tiny", results)
