"""A whole evaluation with a tiny bundle: the product's own answers, the command's files and its exit status."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner

from models.bundles.bundle import Bundle
from models.bundles.dense_part import fit_dense_part
from models.catalogue import Catalogue, CatalogueItem, CatalogueQuery
from models.errors import SidstreamError
from models.examples.records import TrainingExample, write_examples
from retriever.client import Client
from retriever.commands import BOUND_MISSED
from retriever.evaluation.answers import as_query, live, offline, temporary_index
from retriever.evaluation.bounds import Bound
from retriever.evaluation.cases import EvaluationError
from retriever.evaluation.evaluation import PRODUCT
from retriever.evaluation.session import Options, run_evaluation
from retriever.evaluation.sources import SourceOptions, choose_cases
from sidstream import app
from streamer.events.records import Query
from streamer.settings import Settings, load_settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess

CASES = 40


@pytest.fixture(scope="module")
def catalogue(tiny_embeddings: NDArray[np.float32]) -> Catalogue:
    """300 items, some of them of a brand; 40 users whose last item is near the one before it."""
    random = np.random.default_rng(4)
    items = tuple(
        CatalogueItem(id=f"item-{row}", title=f"thing {row}", brand=("Acme", "Zeta", "")[row % 3], weight=1 + row % 5)
        for row in range(300)
    )
    sequences = {
        f"user {number}": tuple(f"item-{row}" for row in random.choice(250, size=6, replace=False))
        for number in range(CASES)
    }
    return Catalogue(items=items, embeddings=tiny_embeddings[:300], sequences=sequences)


@pytest.fixture
def folder(catalogue: Catalogue, tmp_path: Path) -> Path:
    renamed = {user.replace(" ", "-"): items for user, items in catalogue.sequences.items()}
    replace(catalogue, sequences=renamed).write(tmp_path / "shop")
    return tmp_path / "shop"


def quiet() -> Console:
    return Console(quiet=True)


def test_figures_are_those_of_the_retrievers_own_answers(catalogue: Catalogue, tiny_model_bundle: Path) -> None:
    settings = load_settings(bundle=tiny_model_bundle)
    options = Options(SourceOptions(leave_last_out=True), at=(5, 20), by=("brand",), resamples=200)
    found = run_evaluation(settings, catalogue, options, quiet())
    assert [system.name for system in found.systems] == [
        PRODUCT, "popularity", "co-occurrence", "neighbours", "co-occurrence and neighbours",
    ]  # fmt: skip
    asked = choose_cases(catalogue, options.sources).cases
    hits = {5: 0, 20: 0}
    weights = np.array([item.weight for item in catalogue.items])
    with temporary_index(settings, catalogue, weights) as index, offline(settings, index) as ask:
        ids = [item.id for item in catalogue.items]
        for case in asked:
            [answer] = ask([as_query(case, ids, 20, settings.retriever)])
            assert answer is not None
            listed = [item.item_id for item in answer.items]
            listed = [item for item in listed if item not in {ids[row] for row in case.history}]
            for k in hits:
                hits[k] += ids[case.relevant[0]] in listed[:k]
    assert hits[20] > 0
    product = found.systems[0]
    for k, count in hits.items():
        value, low, high = product.figures["all"][f"recall@{k}"]
        assert value == pytest.approx(count / CASES)
        assert low <= value <= high
    assert found.cases["all"] == sum(count for name, count in found.cases.items() if name.startswith("brand")) == CASES
    assert sum(found.cases.get(name, 0) for name in ("head", "tail", "new")) == CASES
    assert found.named()["recall@20"] == pytest.approx(hits[20] / CASES)
    popularity = found.systems[1].figures["all"]["recall@20"][0]
    assert found.named()["recall@20-popularity"] == pytest.approx(hits[20] / CASES - popularity)
    assert set(found.about) == {"model", "codebook", "layout"}
    assert (found.unanswered, found.found_by) == ({}, {"model": 1.0})


def test_a_bundle_without_a_model_is_measured_by_its_dense_leg_and_queries_bring_their_embeddings(
    catalogue: Catalogue, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    fit_dense_part(bundle, catalogue.embeddings[:250], [item.id for item in catalogue.items[:250]])
    random = np.random.default_rng(6)
    asked = random.choice(300, size=30, replace=False).tolist()
    near = catalogue.embeddings[asked] + random.normal(size=(30, 8)).astype(np.float32) * 0.05
    shop = replace(
        catalogue,
        sequences={},
        queries=tuple(CatalogueQuery(f"q{row}", f"thing like {row}") for row in asked),
        query_embeddings=near.astype(np.float32),
        qrels={f"q{row}": {f"item-{row}": 3} for row in asked},
    )
    settings = load_settings(bundle=bundle.directory)
    found = run_evaluation(settings, shop, Options(SourceOptions(judged=True), at=(5,), resamples=100), quiet())
    product, *references = found.systems
    assert product.figures["all"]["recall@5"][0] > 0.9
    assert found.found_by == {"dense": 1.0}
    neighbours = next(one for one in references if one.name == "neighbours")
    assert neighbours.figures["all"]["recall@5"][0] > 0.9
    alone = Options(SourceOptions(judged=True), at=(5,), resamples=100, send_embeddings=False)
    silent = run_evaluation(settings, shop, alone, quiet())
    assert silent.systems[0].unanswered == 1.0
    assert sum(silent.unanswered.values()) == 30


def test_a_case_without_anything_to_ask_is_unanswered_and_counted(
    catalogue: Catalogue, tiny_model_bundle: Path, tmp_path: Path
) -> None:
    examples = tmp_path / "test.jsonl"
    write_examples(examples, [TrainingExample(item="item-3"), TrainingExample(query="thing 4", item="item-4")])
    settings = load_settings(bundle=tiny_model_bundle)
    found = run_evaluation(settings, catalogue, Options(SourceOptions(examples=examples), resamples=100), quiet())
    assert found.unanswered == {"EmptyQuery": 1}
    assert found.systems[0].unanswered == 0.5


def test_what_is_wrong_is_said_before_a_model_is_loaded(catalogue: Catalogue, tmp_path: Path) -> None:
    settings = load_settings(bundle=tmp_path / "no bundle")
    sources = SourceOptions(leave_last_out=True)
    for options, said in (
        (Options(sources, bounds=(Bound.parse("recal@10>=.1"),)), "is recall@10 meant"),
        (Options(sources, bounds=(Bound.parse("recall@10/brand=Acme>=.1"),)), "no figure is called"),
        (Options(sources, by=("colour",)), "has the attribute 'colour'"),
        (Options(replace(sources, judged=True)), "different sources"),
        (Options(SourceOptions(validation=tmp_path)), "--validation goes with --examples"),
        (Options(SourceOptions(last_share=0.1)), "needs times"),
        (Options(SourceOptions(leave_last_out=True, after="3")), "different splits"),
    ):
        with pytest.raises(EvaluationError, match=said):
            run_evaluation(settings, catalogue, options, quiet())
    with pytest.raises(EvaluationError, match="nothing to evaluate on"):
        run_evaluation(settings, replace(catalogue, sequences={}), Options(SourceOptions()), quiet())
    new = tmp_path / "new.txt"
    new.write_text("elsewhere\n")
    with pytest.raises(EvaluationError, match="none of the 1 items"):
        run_evaluation(settings, catalogue, Options(sources, new_items=new), quiet())


def test_a_list_longer_than_an_answer_may_be_is_refused(catalogue: Catalogue, tiny_model_bundle: Path) -> None:
    settings = load_settings(bundle=tiny_model_bundle)
    with pytest.raises(EvaluationError, match=r"retriever.maximum_limit is 100"):
        run_evaluation(settings, catalogue, Options(SourceOptions(), at=(101,)), quiet())


def test_command_writes_table_json_and_page_and_ends_by_its_bounds(
    folder: Path, tiny_model_bundle: Path, tmp_path: Path
) -> None:
    arguments = [
        "evaluate",
        str(folder),
        "--bundle",
        str(tiny_model_bundle),
        "--at",
        "10",
        "--resamples",
        "100",
        "--by",
        "brand",
    ]
    written = ["--json", str(tmp_path / "out" / "result.json"), "--page", str(tmp_path / "out" / "page.html")]
    kept = CliRunner().invoke(app, [*arguments, *written, "--require", "recall@10>=0", "--require", "unanswered<=0"])
    assert kept.exit_code == 0, kept.output
    assert "40 cases: each history's last item" in kept.output
    assert "✓ unanswered<=0" in kept.output
    for name in ("popularity", "co-occurrence", "neighbours", "brand=Acme", "chosen on 40 validation cases"):
        assert name in kept.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["cases"]["all"] == CASES
    assert len(result["systems"][0]["figures"]["all"]["recall@10"]) == 3
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 3
    assert "<script" not in page
    missed = CliRunner().invoke(app, [*arguments, "--require", "recall@10>=.999", "--require", "recall@10>=0"])
    assert missed.exit_code == BOUND_MISSED
    assert "✗ recall@10>=.999: recall@10 is 0." in missed.output
    assert "✓ recall@10>=0" in missed.output


def test_split_that_was_written_gives_the_cases_of_the_split(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    written = CliRunner().invoke(app, ["evaluate", str(folder), "--leave-last-out", "--write-split", str(parts)])
    assert written.exit_code == 0, written.output
    assert f"sidstream evaluate {parts / 'training'} --examples" in written.output
    training = Catalogue.read(parts / "training")
    sources = SourceOptions(examples=parts / "test.jsonl", validation=parts / "validation.jsonl")
    one, other = choose_cases(training, sources), choose_cases(catalogue, SourceOptions())
    assert [(case.history, case.relevant) for case in one.cases] == [
        (case.history, case.relevant) for case in other.cases
    ]
    assert len(one.validation) == CASES
    np.testing.assert_array_equal(one.training.popularity, other.training.popularity)


@pytest.mark.parametrize(
    "extra",
    [
        ["--weights", "price"],
        ["--live", "--index", "x"],
        ["--require", "recall@10"],
        ["--weights", "popularity", "--index", "x"],
        ["--seconds-a-query", "3"],
        ["--write-split", "x", "--judged"],
        ["--against", "x", "--live"],
        ["--against", "x", "--index", "y"],
        ["--least-rating", "3"],
        ["--training", "x"],
        ["--judged"],
    ],
)
def test_options_that_mean_nothing_are_refused(folder: Path, extra: list[str]) -> None:
    with pytest.raises(SidstreamError):
        CliRunner().invoke(app, ["evaluate", str(folder), *extra], catch_exceptions=False)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--json", "file/result.json"], "result.json cannot be written: Not a directory"),
        (["--page", "folder"], "folder is a directory, and a file is to be written"),
        (["--json", "one", "--page", "folder/../one"], "--json and --page both name"),
        (["--write-split", "file"], "file is a file, not a directory"),
        (["--write-split", "file/parts"], "parts cannot be made: Not a directory"),
        (["--write-split", "folder"], "folder is there and not empty"),
    ],
)
def test_place_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("folder", "mine").touch()
    with pytest.raises(SidstreamError, match=message):
        CliRunner().invoke(app, ["evaluate", "none", *extra], catch_exceptions=False)
    assert sorted(str(path) for path in Path().rglob("*")) == ["file", "folder", "folder/mine"]


def test_live_answers_are_those_of_the_same_index_offline(
    pipeline_settings: Settings, catalogue: Catalogue, tiny_model_bundle: Path, tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_model_bundle})
    weights = np.array([item.weight for item in catalogue.items])
    options = Options(SourceOptions(leave_last_out=True), at=(10,), resamples=100, most_cases=20)
    with temporary_index(settings, catalogue, weights) as index:
        settings = settings.model_copy(update={"index": index})
        offline_result = run_evaluation(settings, catalogue, replace(options, index=index), quiet())
        with Client(settings) as client, pytest.raises(EvaluationError, match="is a retriever running"):
            live(client, 0.2)([Query(text="is anybody there?")])
        with SidstreamProcess(settings, "retriever", tmp_path):
            alive = replace(options, live=True, seconds_a_query=PATIENCE_SECONDS)
            found = run_evaluation(settings, catalogue, alive, quiet())
    assert found.unanswered == {}
    assert found.systems == offline_result.systems
    assert found.about == offline_result.about


def test_another_bundle_is_asked_the_same_and_the_differences_are_paired(
    catalogue: Catalogue, tiny_bundle: Path, tiny_model_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model_bundle, other)
    settings = load_settings(bundle=tiny_model_bundle)
    options = Options(SourceOptions(leave_last_out=True), at=(10,), against=other, resamples=200)
    same = run_evaluation(settings, catalogue, options, quiet())
    assert same.named()["recall@10-against:low"] == same.named()["recall@10-against:high"] == 0  # of a copy

    without_model = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "dense"))
    fit_dense_part(without_model, catalogue.embeddings, [item.id for item in catalogue.items])
    alone = run_evaluation(
        load_settings(bundle=without_model.directory),
        catalogue,
        Options(SourceOptions(leave_last_out=True), at=(10,), resamples=200),
        quiet(),
    )
    held = run_evaluation(settings, catalogue, replace(options, against=without_model.directory), quiet())
    [against] = [system for system in held.systems if system.name == "against"]
    assert against.figures == alone.systems[0].figures
    assert without_model.manifest.codebook_id in against.settings
    difference = held.named()["recall@10"] - alone.named()["recall@10"]
    assert held.named()["recall@10-against"] == pytest.approx(difference)
