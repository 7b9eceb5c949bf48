"""`sidstream train`: its choices reach the manifest, and choices that make no sense are refused before anything runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundles.bundle import Bundle, checkpoint_directory
from models.catalogue import Catalogue, CatalogueItem
from models.directories import held_alone
from models.errors import SidstreamError
from support.tiny_families import write_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from sidstream import app

ROOT = Path(__file__).parents[3]


ITEMS = 40
SMALL = ["--hidden-size", "16", "--model-layers", "1"]


def invoke(*words: object) -> str:
    """What a command prints; whatever it raises."""
    answer = CliRunner().invoke(app, list(map(str, words)))
    if answer.exception is not None:
        raise answer.exception
    return " ".join(answer.output.split())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A catalogue folder of forty things without a sequence, and a bundle beside it."""
    embeddings = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
    items = tuple(CatalogueItem(id=f"item-{number}", title=f"thing {number}") for number in range(ITEMS))
    Catalogue(items=items, embeddings=embeddings).write(tmp_path / "catalogue")
    invoke("fit", tmp_path / "catalogue", "--bundle", tmp_path / "bundle", "--size", 8, "--iterations", 2)
    return tmp_path


def train(shop: Path, *options: object) -> str:
    return invoke("train", shop / "catalogue", "--bundle", shop / "bundle", *SMALL, *options)


def facts(shop: Path) -> dict[str, Any]:
    record = Bundle.open(shop / "bundle", need_model=True).manifest.language_model
    assert record is not None
    return record.training


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def walks(count: int, length: int = 6) -> list[dict[str, Any]]:
    return [
        {"user": f"user-{user}", "items": [f"item-{(user + 3 * step) % ITEMS}" for step in range(length)]}
        for user in range(count)
    ]


def test_loss_gamma_architecture_and_dropout_are_recorded(shop: Path) -> None:
    train(
        shop,
        "--epochs",
        1,
        "--loss",
        "focal",
        "--gamma",
        2,
        "--architecture",
        "baichuan",
        "--dropout",
        0.1,
    )
    found = facts(shop)
    assert (found["loss_function"], found["gamma"], found["architecture"]) == ("focal", 2.0, "baichuan")
    assert found["dropout"] == 0.1
    assert found["text_queries"] == found["examples"] > ITEMS
    assert found["validation"] is None


def test_sequences_interactions_and_queries_are_learnt_in_one_run(shop: Path) -> None:
    sequences = write(shop / "sequences.jsonl", *walks(5), {"user": "eve", "items": ["item-1", "gone", "item-2"]})
    clicks = [{"user": "zoe", "item": f"item-{number}", "time": 100 - number, "price": 3} for number in range(4)]
    interactions = write(shop / "clicks.jsonl", *clicks)
    queries = write(shop / "queries.jsonl", {"query": "thing 7", "item": "item-7"}, {"query": "x", "item": "gone"})
    given = [word for path in (sequences, interactions, queries) for word in ("--examples", path)]
    printed = train(shop, "--epochs", 2, *given)
    assert "of interactions: not read are its fields price" in printed
    assert "32 items to be generated in 7 histories and 2 single examples" in printed
    assert "2 examples name items that the catalogue does not have; skipped." in printed
    found = facts(shop)
    assert (found["examples"], found["rows"], found["skipped"], found["text_queries"]) == (30, 8, 2, 2)
    assert "training: 1 of" in printed
    assert f"training: {found['steps']} of {found['steps']} steps (100%)" in printed
    assert "examples/s, loss" in printed


def test_the_catalogues_own_sequences_are_learnt_as_whole_histories_with_text_and_without(shop: Path) -> None:
    read = Catalogue.read(shop / "catalogue")
    sequences = {row["user"]: tuple(row["items"]) for row in walks(12, length=15)}
    replace(read, sequences=sequences).write(shop / "catalogue")
    printed = train(shop, "--epochs", 1, "--per-item", 1, "--max-history", 6)
    found = facts(shop)
    assert found["examples"] == ITEMS + 12 * 14
    assert f"{ITEMS + 12 * 14} items to be generated in 12 histories and {ITEMS} single examples" in printed
    assert ITEMS < found["text_queries"] < ITEMS + 12 * 14
    assert found["rows"] < ITEMS + 12 * 5, "windows of seven items that overlap by half"


def test_words_titles_and_tasks_reach_the_manifest(shop: Path) -> None:
    sequences = write(shop / "sequences.jsonl", *walks(5))
    own = ["--prompt", "instruction", "--instruction", "[Had {history}. ][Asked {query}. ]Next?", "--history-text", 3]
    tasks = ["--align", "title-to-sid", "--align", "sid-to-title", "--align-share", 0.5]
    printed = train(shop, "--epochs", 1, "--examples", sequences, *own, *tasks)
    assert "beside them 25 alignment tasks a pass: title-to-sid, sid-to-title" in printed
    record = Bundle.open(shop / "bundle", need_model=True).manifest.language_model
    assert record is not None
    assert record.prompt.history_text == 3
    assert [part.before for part in record.prompt.instruction] == ["Had ", "Asked ", "Next?"]
    assert record.training["alignment"] == {"tasks": ["title-to-sid", "sid-to-title"], "share": 0.5}
    assert record.training["examples"] == 2 * 25


def test_task_that_the_catalogue_has_no_text_for_is_refused_and_the_bundle_stays(shop: Path) -> None:
    with pytest.raises(SidstreamError, match="no item of the catalogue has brand, type or attributes"):
        train(shop, "--align", "attributes-to-sid")
    assert Bundle.open(shop / "bundle").manifest.language_model is None


def test_validation_ends_training_and_is_recorded_and_said(shop: Path) -> None:
    sequences = write(shop / "sequences.jsonl", *walks(20))
    other = [
        {"user": "x", "items": [f"item-{(7 * user + 11 * step) % ITEMS}" for step in range(5)]} for user in range(9)
    ]
    held = write(shop / "held.jsonl", *other)
    printed = train(
        shop, "--epochs", 300, "--examples", sequences, "--validation", held, "--early-stop", 2, "--learning-rate", 0.01
    )
    found = facts(shop)
    validation = found["validation"]
    assert validation["stopped_early"]
    assert found["steps"] < found["planned_steps"] == 300
    assert f"validation loss {validation['loss']:.3f} on 36 examples, the best of {validation['times']}" in printed
    assert f"stopped after {found['steps']} of 300 steps" in printed
    assert not checkpoint_directory(shop / "bundle").exists(), "nothing is left to go on with"
    printed = train(shop, "--epochs", 1, "--examples", sequences, "--validation-share", 0.2)
    assert "80 items to be generated in 16 histories; 20 to validate on" in printed


def test_streamed_examples_are_as_many_as_in_memory_and_go_on_from_the_tables_that_were_made(shop: Path) -> None:
    clicks = [
        {"user": f"u{user}", "item": f"item-{(user * time) % ITEMS}", "time": -time}
        for time in range(5)
        for user in range(9)
    ]
    queries = [{"query": f"thing {number}", "item": f"item-{number}", "price": 2} for number in range(ITEMS)]
    queries += [{"query": "x", "user": "user-1", "history": ["item-1", "gone"], "item": "item-7"}, {"item": "gone"}]
    files = [
        write(shop / "walks.jsonl", *walks(30)),
        write(shop / "clicks.jsonl", *clicks),
        write(shop / "queries.jsonl", *queries),
    ]
    given = ["--batch-size", 20, *(word for path in files for word in ("--examples", path))]
    train(shop, *given, "--epochs", 1)
    whole = facts(shop)
    printed = train(shop, *given, "--epochs", 400, "--stream", "--minutes", 0.02)
    assert "queries.jsonl, a file of examples: not read are its fields price" in printed
    assert "117 records in 1 parts in" in printed
    found = facts(shop)
    for name in ("examples", "rows", "skipped", "skipped_mentions", "text_queries"):
        assert found[name] == whole[name], name
    assert 0 < found["steps"] < found["planned_steps"] == 400 * whole["planned_steps"]
    tables = checkpoint_directory(shop / "bundle") / "tables" / "tables.json"
    made = tables.stat().st_mtime_ns
    train(shop, *given, "--epochs", 400, "--stream", "--minutes", 0.02)
    assert facts(shop)["resumed_at"] == found["steps"]
    assert tables.stat().st_mtime_ns == made
    with pytest.raises(SidstreamError, match=r"it is another one: training data .* records, streamed"):
        train(shop, *given, "--epochs", 400)
    printed = train(shop, *given, "--epochs", 1, "--stream", "--anew", "--validation-share", 0.2)
    validation = facts(shop)["validation"]
    assert f"; {validation['targets']} to validate on" in printed
    assert facts(shop)["examples"] + validation["targets"] == whole["examples"]
    assert not checkpoint_directory(shop / "bundle").exists()


def test_training_whose_time_was_up_goes_on_when_it_is_asked_again_and_not_with_anew(shop: Path) -> None:
    sequences = write(shop / "sequences.jsonl", *walks(40))
    long = ["--epochs", 400, "--examples", sequences, "--batch-size", 10]
    printed = train(shop, *long, "--minutes", 0.02)
    first = facts(shop)
    assert first["steps"] < first["planned_steps"] == 8_000
    assert "the time was up" in printed
    assert "the same command again goes on from there" in printed
    with pytest.raises(
        SidstreamError, match=r"it is another one: learning rate 0.003 there, 0.01 here.*--anew"
    ) as refused:
        train(shop, *long, "--learning-rate", 0.01)
    assert str(checkpoint_directory(shop / "bundle")) in str(refused.value)
    printed = train(shop, *long, "--minutes", 0.02)
    second = facts(shop)
    assert second["resumed_at"] == first["steps"] < second["steps"]
    assert f"goes on after step {first['steps']:,}" in printed
    assert "goes on after step" in train(shop, *long, "--minutes", 0.02, "--resume")
    train(shop, *long, "--minutes", 0.02, "--anew")
    assert facts(shop)["resumed_at"] == 0
    invoke("fit", shop / "catalogue", "--bundle", shop / "bundle", "--size", 8, "--replace")
    assert not checkpoint_directory(shop / "bundle").exists(), "of another codebook"
    with pytest.raises(SidstreamError, match=r"--resume, and there is no training to go on with: .*without --resume"):
        train(shop, *long, "--resume")


_TRAINING = """
import os
import signal
import sys
from pathlib import Path
import models.training.checkpoints as checkpoints
checkpoints._SHORTEST_PAUSE_SECONDS = checkpoints._PAUSES_A_WRITE = 0.0
written = checkpoints.Checkpoints.complete
def complete(self, mark):
    written(self, mark)
    if mark.step >= 7:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.Checkpoints.complete = complete
import sidstream
sidstream.app(sys.argv[1:])
"""


def test_training_that_was_killed_goes_on_to_the_same_model_as_one_that_was_not(shop: Path) -> None:
    examples = [{"query": f"thing {number}", "item": f"item-{number}"} for number in range(ITEMS)]
    given = write(shop / "both.jsonl", *walks(30)), write(shop / "queries.jsonl", *examples)
    options = ["--epochs", 12, "--batch-size", 20, "--layer2-dropout", 0.3, "--threads", 1, "--validation-share", 0.1]
    options += [word for path in given for word in ("--examples", path)]
    shutil.copytree(shop / "bundle", shop / "straight")
    invoke("train", shop / "catalogue", "--bundle", shop / "straight", *SMALL, *options)
    command = ["train", shop / "catalogue", "--bundle", shop / "bundle", *SMALL, *options]
    killed = subprocess.run([sys.executable, "-c", _TRAINING, *map(str, command)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Bundle.open(shop / "bundle").manifest.language_model is None
    train(shop, *options)
    found = facts(shop)
    assert found["resumed_at"] >= 7
    assert found["steps"] == found["planned_steps"]
    assert not checkpoint_directory(shop / "bundle").exists()
    straight = Bundle.open(shop / "straight").manifest.model_id
    assert Bundle.open(shop / "bundle").manifest.model_id == straight, "the id is a digest of the weights"


def test_examples_may_bring_their_queries_embeddings_which_choose_the_mixture_and_make_codes(shop: Path) -> None:
    embeddings = Catalogue.read(shop / "catalogue").embeddings
    rows = [
        {"query": f"thing {row}", "item": f"item-{row}", "embedding": embeddings[row].tolist()} for row in range(ITEMS)
    ]
    examples, validation = write(shop / "examples.jsonl", *rows), write(shop / "held.jsonl", *rows[::3])
    given = ["--epochs", 1, "--examples", examples, "--validation", validation]
    train(shop, *given, "--query-codes")
    manifest = Bundle.open(shop / "bundle").manifest
    assert manifest.language_model is not None
    assert manifest.language_model.prompt.query_codes
    assert manifest.dense is not None
    assert manifest.dense.weights.keys() == {"embedding"}
    assert manifest.dense.figures["embedding"]["dense_alone"]["all"] == 1.0, "each query is its item's embedding"
    for other, message in (
        ({"query": "x", "item": "item-1", "embedding": [1.0]}, "embedding of 1 numbers, the bundle's items have"),
        ({"query": "x", "item": "item-1"}, "no query has an embedding"),
        ({"query": "x", "item": "item-1", "embedding": [0.0] * 8}, "line 1 is no training example"),
        ({"query": "x", "item": "item-1", "embedding": "AAAA"}, "line 1 is no training example"),
    ):
        path = write(shop / "other.jsonl", other)
        arguments = ["train", shop / "catalogue", "--bundle", shop / "bundle", "--examples", path, "--query-codes"]
        answer = CliRunner().invoke(app, list(map(str, arguments)))
        assert isinstance(answer.exception, SidstreamError)
        assert message in str(answer.exception)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["--loss", "hinge"], "choose one of cross-entropy, focal, mile"),
        (["--gamma", "2"], "cross-entropy has no gamma"),
        (["--architecture", "gpt"], "choose one of llama, qwen, baichuan"),
        (["--architecture", "qwen", "--checkpoint", "somewhere"], "give one of the two"),
        (["--neighbours", "5"], "name their directory with --embed"),
        (["--neighbours", "5", "--embed", "towers", "--examples", "e.jsonl"], "give one of them"),
        (["--stream"], "name them with --examples"),
        (["--stream", "--examples", "e.jsonl", "--query-codes"], "--query-codes needs all training data in memory"),
        (["--stream", "--examples", "e.jsonl", "--align", "title-to-sid"], "--align needs all training data in memory"),
        (["--resume", "--anew"], "--resume goes on with a training, and --anew begins from nothing: give one"),
        (["--logging-dir", "here"], "give --report-to tensorboard, or leave it out"),
        (["--report-to", "crystal-ball"], "transformers does not report to 'crystal-ball'"),
        (["--validation", "some", "--validation-share", "0.1"], "give one of them"),
        (["--align", "title"], "choose one of title-to-sid, sid-to-title, attributes-to-sid"),
        (["--align", "title-to-sid", "--align", "title-to-sid"], "each once"),
        (["--prompt", "chat"], "choose one of bare, instruction"),
        (["--instruction", "Find {query}"], "give both, or neither"),
        (["--prompt", "instruction", "--instruction", "{what}"], "use these"),
        (["--prompt", "instruction", "--instruction", " "], "--instruction is empty"),
        (["--history-text", "3", "--max-history", "0"], "let max_history be 1 or more"),
        (["--hidden-size", "12"], "a multiple of 8 wide, and 12 is none: give --hidden-size 16"),
        (
            ["--hidden-size", "64", "--checkpoint", "x"],
            "--hidden-size is of a new model, and --checkpoint brings its own",
        ),
        (["--model-layers", "2", "--checkpoint", "x"], "--model-layers is of a new model"),
        (["--align-share", "0.3"], "--align-share is of the tasks of --align: give one, or leave it out"),
        (["--early-stop", "2"], "--early-stop counts validations: give --validation"),
        (["--per-item", "2", "--examples", "e.jsonl"], "--per-item is of queries made of the catalogue"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choices: list[str], message: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["train", str(tmp_path), *choices])
    assert isinstance(answer.exception, SidstreamError)
    assert message in str(answer.exception)


def test_options_of_large_models_reach_training(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Seen(Exception):
        pass

    def spy(model: Any, data: Any, prompts: Any, layout: Any, rows: Any, codes: Any, settings: Any, **more: Any) -> Any:
        seen.update(model=model, prompts=prompts.settings, settings=settings, validation=more["validation"])
        raise Seen

    monkeypatch.setattr("models.bundles.building.train_model", spy)
    given = {
        "--lora": "r=4", "--precision": "bf16", "--accumulate": 3, "--weight-decay": 0.2, "--warm-up": 0.4, "--dropout": 0.1,
        "--max-history": 4, "--max-text": 7, "--early-stop": 2, "--validation-share": 0.2, "--batch-size": 24,
        "--learning-rate": 0.002, "--epochs": 5, "--minutes": 2, "--seed": 9,
    }  # fmt: skip
    words = [word for pair in given.items() for word in pair]
    checkpoint = write_checkpoint("llama", shop / "checkpoint")
    with pytest.raises(Seen):
        invoke(
            *("train", shop / "catalogue", "--bundle", shop / "bundle", "--checkpoint", checkpoint),
            *("--gradient-checkpointing", *words),
        )
    found = seen["settings"]
    assert (found.lora, found.precision, found.accumulate, found.gradient_checkpointing) == (4, "bf16", 3, True)
    assert (found.weight_decay, found.warm_up, found.dropout, found.patience) == (0.2, 0.4, 0.1, 2)
    assert (found.batch_size, found.learning_rate, found.epochs, found.seed) == (24, 0.002, 5, 9)
    assert 30 <= found.seconds <= 120
    assert (seen["prompts"].max_history, seen["prompts"].max_text_tokens) == (4, 7)
    assert seen["validation"].targets > 0
    lora = seen["model"].peft_config["default"]
    assert (lora.r, lora.lora_dropout) == (4, 0.1)


def test_checkpoint_with_too_few_positions_is_refused_with_what_it_reads(shop: Path) -> None:
    checkpoint = write_checkpoint("gpt2", shop / "checkpoint")
    longer = ["--max-history", 60, "--checkpoint", checkpoint]
    with pytest.raises(SidstreamError, match=r"a prompt has up to 2\d\d tokens .* reads 128: train with --max-history"):
        invoke("train", shop / "catalogue", "--bundle", shop / "bundle", *longer)


def test_checkpoint_that_is_not_there_is_refused_by_its_name(shop: Path) -> None:
    with pytest.raises(SidstreamError, match=r"there is no directory .*nowhere: --checkpoint is a local one"):
        invoke("train", shop / "catalogue", "--bundle", shop / "bundle", "--checkpoint", shop / "nowhere")


def test_bundle_that_another_training_has_is_neither_trained_nor_fitted_and_free_again_afterwards(shop: Path) -> None:
    with held_alone(shop / "bundle"):
        with pytest.raises(SidstreamError, match=r"another sidstream writes into .*bundle: wait until it has ended"):
            train(shop, "--epochs", 1)
        with pytest.raises(SidstreamError, match=r"another sidstream writes into .*bundle: wait until it has ended"):
            invoke("fit", shop / "catalogue", "--bundle", shop / "bundle", "--replace", "--size", 8)
    train(shop, "--epochs", 1)
    assert not checkpoint_directory(shop / "bundle").exists()


def test_checkpoints_that_have_no_place_are_refused_before_training(shop: Path) -> None:
    checkpoint_directory(shop / "bundle").write_text("in the way")
    with pytest.raises(SidstreamError, match=r"bundle\.training is a file, not a directory"):
        train(shop, "--epochs", 1)


@pytest.mark.parametrize("more", [[], ["--lora", 4, "--precision", "bf16"]], ids=["all weights", "LoRA in bfloat16"])
def test_checkpoint_that_looks_ahead_is_refused_and_the_bundle_stays(shop: Path, more: list[Any]) -> None:
    checkpoint = write_checkpoint("bert", shop / "checkpoint")
    with pytest.raises(SidstreamError, match="is no causal language model"):
        invoke("train", shop / "catalogue", "--bundle", shop / "bundle", "--checkpoint", checkpoint, *more)
    assert Bundle.open(shop / "bundle").manifest.language_model is None


def test_training_of_a_checkpoint_does_not_go_on_from_other_weights(shop: Path) -> None:
    checkpoint = write_checkpoint("llama", shop / "checkpoint")
    same = ["train", shop / "catalogue", "--bundle", shop / "bundle", "--checkpoint", checkpoint, "--epochs", 1]
    invoke(*same, "--minutes", 0.01, "--epochs", 1_000)
    shutil.rmtree(checkpoint)
    write_checkpoint("llama", checkpoint, seed=1)
    with pytest.raises(SidstreamError, match=r"base \w{16} there, \w{16} here"):
        invoke(*same, "--epochs", 1_000)


def test_launch_in_another_precision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(SidstreamError, match="accelerate was told the precision bf16, and training float32"):
        invoke("train", tmp_path)


@pytest.mark.parametrize("launched", ["FSDP", "DEEPSPEED"])
def test_launch_that_divides_the_weights_is_refused(
    launched: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{launched}", "true")
    with pytest.raises(SidstreamError, match=r"divides a model's weights among processes.*--gradient-checkpointing"):
        invoke("train", tmp_path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "is empty: a line is an example"),
        ([{"sku": "a"}], "line 1 has sku"),
        ([{"user": "ada", "items": ["gone", "lost"]}], "the validation data have nothing to learn"),
    ],
)
def test_validation_data_that_cannot_be_used_are_refused(shop: Path, records: list[Any], message: str) -> None:
    with pytest.raises(SidstreamError, match=message):
        train(shop, "--epochs", 1, "--validation", write(shop / "held.jsonl", *records))
    with pytest.raises(SidstreamError, match="leaves none to validate on: give another --validation-share"):
        train(shop, "--validation-share", 0.01, "--examples", write(shop / "few.jsonl", *walks(3)))
