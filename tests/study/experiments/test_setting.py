"""Levers of the study on the tiny set: each comes from its row of the plan, trains, is measured, and reads what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from models.errors import SidstreamError
from study.data.datasets import TOWERS, Space, TestCase, load
from study.data.own_towers import in_their_space, pairs_of
from study.experiments import setting as rooms
from study.experiments.configuration import LayoutChoice, RunChoice
from study.experiments.plan import rows, scale
from study.experiments.results import Results
from study.experiments.run import TOGETHER, run
from study.experiments.setting import setting

FITTED = msgspec.structs.replace(scale("tiny").base.codebook, method="k-means", size=16)
SMALL = msgspec.structs.replace(
    scale("tiny").base, codebook=FITTED, epochs=0.5, cases=40, hidden_size=16, model_layers=1, heads=2
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codebooks and towers of the tiny set, fitted once."""
    return tmp_path_factory.mktemp("scratch")


def in_small(label: str) -> tuple[RunChoice, Any]:
    """The row of this name on amazon_games, what it changes carried over to a small run, and what is measured of it."""
    row = next(row for row in rows("amazon_games") if row.section == "levers" and row.label == label)
    changes = {name: getattr(row.choice, name) for name in ("made_queries", "codebooks", "neighbours")}
    own = row.choice.codebook
    codebook = msgspec.structs.replace(FITTED, co_occurrence=own.co_occurrence, embeddings=own.embeddings)
    buckets = min(64, row.choice.user_buckets)
    return msgspec.structs.replace(SMALL, codebook=codebook, user_buckets=buckets, **changes), row.measurements


@pytest.mark.parametrize(
    "label",
    [
        "users beside the histories",
        "queries, users and histories together",
        "embeddings of our own towers",
        "… and co-occurrence beside them",
        "neighbours of taken items as targets too",
        "three codebooks a history, as many steps",
    ],
)
def test_lever_of_the_plan_trains_and_is_measured(label: str, tmp_path: Path, scratch: Path) -> None:
    choice, measurements = in_small(label)
    result = run(choice, measurements, Results(tmp_path, scratch), lambda *_: None)
    assert result.loss > 0
    recall = result.measured["own"]["all"]["item, own probability"]
    assert recall["cases"] == 40
    assert 0 < recall["50"] <= 1
    if choice.codebooks > 1:
        assert result.measured[TOGETHER.name]["recalls"].keys() == {
            "codebook 1",
            "codebook 2",
            "codebook 3",
            "together",
        }
        assert result.measured[TOGETHER.name]["recalls"]["codebook 1"]["10"] == pytest.approx(recall["10"], abs=0.03)


def test_users_stand_in_prompts_and_in_training_alike(scratch: Path) -> None:
    here = setting(in_small("queries, users and histories together")[0], scratch)
    case = here.data.cases[7]
    assert here.prompt(case, here.layout)[1] == here.vocabulary.user_id("7")
    data, _, rows_of = here.training_data()
    assert {example.user for example in data.examples if example.history} <= {
        str(n) for n in range(len(here.data.histories))
    }
    asked = [bool(example.query) for example in data.examples if example.history]
    assert 0.4 < np.mean(asked) < 0.6
    assert sum(not example.history for example in data.examples) > len(rows_of)
    last = {int(example.item) for example in data.examples if example.user == "7"}
    assert last <= set(here.data.histories[7][1:]), "neither the test item nor the one to choose by"


def test_each_codebook_has_a_range_of_its_own_and_every_history_is_seen_by_each(scratch: Path) -> None:
    here = setting(in_small("three codebooks a history, as many steps")[0], scratch)
    assert here.vocabulary.size == 3 * FITTED.size
    for number, codes in enumerate(here.views):
        assert codes.min() >= number * FITTED.size
        assert codes.max() < (number + 1) * FITTED.size
    assert (here.views[1] - FITTED.size != here.views[0]).any(), "fitted from another seed"
    data, codes, rows_of = here.training_data()
    assert len(data.histories) == 3 * len(here.data.histories)
    assert {codes[rows_of[item], 0] // FITTED.size for item in data.histories[-1].items} == {2}
    case = here.data.cases[0]
    tokens = np.array(here.prompt(case, here.layout, view=2)) - here.vocabulary.sid_base
    assert ((tokens % here.vocabulary.size)[1:-1] >= 2 * FITTED.size).all()


def test_several_codebooks_are_no_other_change_besides() -> None:
    with pytest.raises(SidstreamError, match="several codebooks are measured with full SIDs alone"):
        msgspec.structs.replace(SMALL, codebooks=2, layout=LayoutChoice(heads="all"))


@pytest.mark.parametrize("space", TOWERS)
def test_towers_learn_from_training_alone_and_are_trained_once(tmp_path: Path, space: Space) -> None:
    data = load("tiny", arrivals=True)
    pairs = pairs_of(data, space)
    assert not data.arrived[sorted({int(pair.item) for pair in pairs})].any()
    titles = {data.titles[item] for item in np.flatnonzero(~data.arrived)}
    of_histories = [pair for pair in pairs if pair.query in titles]
    assert len(of_histories) >= sum(len(history) - 1 for history in data.histories)
    assert (len(of_histories) < len(pairs)) == (space == "towers and queries")
    embedded = in_their_space(data, space, 0, tmp_path)
    assert embedded.embeddings.shape == (len(data.titles), 256)
    np.testing.assert_allclose(np.linalg.norm(embedded.embeddings, axis=1), 1, rtol=1e-5)
    [manifest] = tmp_path.glob("towers-*/manifest.json")
    written = manifest.stat().st_mtime_ns
    assert (in_their_space(data, space, 0, tmp_path).embeddings == embedded.embeddings).all()
    assert manifest.stat().st_mtime_ns == written


def test_set_of_queries_is_in_the_towers_space_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like chorus_icecat: training queries, judged queries with embeddings, no history; codes of the query in the prompt."""
    plain = load("tiny")
    data = replace(
        plain,
        histories=(),
        queries=tuple((f"the {title}", row) for row, title in enumerate(plain.titles)),
        cases=tuple(TestCase(case=2 * row, relevant=(row,), query=f"an {plain.titles[row]}") for row in range(30)),
        query_embeddings=np.ones((60, plain.embeddings.shape[1]), dtype=np.float32),
    )
    monkeypatch.setattr(rooms, "load", lambda *_, **__: data)
    codebook = msgspec.structs.replace(FITTED, embeddings="towers")
    choice = msgspec.structs.replace(SMALL, codebook=codebook, query_codes=True)
    here = setting(choice, tmp_path)
    asked = here.data.query_embeddings
    assert asked is not None
    assert asked.shape == (60, 256)
    case = here.data.cases[3]
    read = here.codebook.codebook.encode(asked[[case.case]])
    assert (
        here.vocabulary.token_ids(here.layout.sid_tokens(read)).ravel().tolist() == here.prompt(case, here.layout)[1:4]
    )
    row = next(
        row for row in rows("chorus_icecat") if row.choice.codebook.embeddings == "towers" and row.choice.query_codes
    )
    result = run(choice, row.measurements, Results(tmp_path / "results", tmp_path), lambda *_: None)
    assert result.measured["own"]["all"]["item, query, reconstructed"]["cases"] == 30
