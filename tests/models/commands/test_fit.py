"""`sidstream fit --method`: each method's bundle opens and encodes alike; options of the other method are refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.bundle import Bundle
from models.catalogue import Catalogue, CatalogueItem
from models.codebooks.codebook import Codebook, fit_residual_kmeans
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.rq_vae import RqVaeSettings
from models.errors import SidstreamError
from models.sids.census import count_tokens
from sidstream import app

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)


def test_rq_vae_bundle_opens_and_encodes_like_its_codebook(tmp_path: Path, embeddings: np.ndarray) -> None:
    np.save(tmp_path / "embeddings.npy", embeddings)
    choices = ["--method", "rq-vae", "--epochs", "3", "--latent", "5", "--size", "8", "--head", "top-k", "--k", "2"]
    answer = CliRunner().invoke(
        app, ["fit", str(tmp_path / "embeddings.npy"), "--bundle", str(tmp_path / "bundle"), *choices]
    )
    assert answer.exit_code == 0, answer.exception
    opened = Bundle.open(tmp_path / "bundle")
    codebook, encoder = Codebook.load(opened.codebook_path), OnnxEncoder(opened.encoder_path)
    assert codebook.codewords.shape == (3, 8, 5)
    assert opened.manifest.dimension == encoder.dimension == codebook.dimension == 12
    assert opened.manifest.codebook_id == encoder.codebook_id == codebook.id == opened.layout.codebook_id
    assert len(opened.layout.head_tokens) == 2
    codes = codebook.encode(embeddings)
    assert np.array_equal(np.array(opened.manifest.census), count_tokens(codes, 8))
    assert np.array_equal(encoder.encode(embeddings), codes)


def test_bundle_of_the_settings_file_is_what_fit_writes_and_train_opens(
    tmp_path: Path, embeddings: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sidstream.toml").write_text('bundle = "shop/own"\n')
    Catalogue([CatalogueItem(id=f"item-{row}", title="thing") for row in range(200)], embeddings).write(
        Path("catalogue")
    )
    answer = CliRunner().invoke(app, ["fit", "catalogue", "--size", "8"])
    assert answer.exit_code == 0, answer.exception
    assert Bundle.open(Path("shop/own")).layout.size == 8
    assert not Path(".sidstream").exists()
    refused = CliRunner().invoke(app, ["train", "catalogue", "--resume"])
    assert "shop/own" in str(refused.exception)


def test_co_occurrence_is_counted_in_the_catalogues_sequences_or_in_those_of_files(
    tmp_path: Path, embeddings: np.ndarray
) -> None:
    items = [CatalogueItem(id=f"item-{row}", title=f"thing {row}") for row in range(200)]
    walks = {f"user-{user}": tuple(f"item-{(user + 3 * step) % 200}" for step in range(5)) for user in range(40)}
    Catalogue(items, embeddings, sequences=walks).write(tmp_path / "with")
    Catalogue(items, embeddings).write(tmp_path / "without")
    histories = tmp_path / "histories.jsonl"
    histories.write_text(
        "".join(json.dumps({"user": user, "items": [*walk, "gone"]}) + "\n" for user, walk in walks.items())
    )
    found = []
    for name, options in (("with", []), ("without", ["--histories", str(histories)])):
        bundle = tmp_path / f"bundle-{name}"
        arguments = ["fit", str(tmp_path / name), "--bundle", str(bundle), "--size", "8", "--co-occurrence", "1"]
        answer = CliRunner().invoke(app, [*arguments, *options])
        assert answer.exit_code == 0, answer.exception
        manifest = Bundle.open(bundle).manifest
        assert manifest.codebook_input is not None
        assert manifest.dense is not None
        assert manifest.codebook_input.beside == manifest.dense.beside > 0
        found.append(manifest.codebook_id)
    assert found[0] == found[1]
    refused = CliRunner().invoke(
        app, ["fit", str(tmp_path / "without"), "--bundle", str(tmp_path / "other"), "--co-occurrence", "1"]
    )
    assert isinstance(refused.exception, SidstreamError)
    assert "give sequences or interactions with --histories" in str(refused.exception)


@pytest.mark.parametrize(("users", "weight"), [(200, 1.0), (10, None)])
def test_without_a_word_co_occurrence_counts_where_histories_name_half_of_the_items_and_says_so(
    tmp_path: Path, embeddings: np.ndarray, users: int, weight: float | None
) -> None:
    items = [CatalogueItem(id=f"item-{row}", title=f"thing {row}") for row in range(200)]
    walks = {f"user-{user}": tuple(f"item-{(user + 3 * step) % 200}" for step in range(5)) for user in range(users)}
    Catalogue(items, embeddings, sequences=walks).write(tmp_path / "shop")
    arguments = ["fit", str(tmp_path / "shop"), "--bundle", str(tmp_path / "bundle"), "--size", "8"]
    answer = CliRunner().invoke(app, arguments)
    record = Bundle.open(tmp_path / "bundle").manifest.codebook_input
    assert (None if record is None else record.weight) == weight
    said = " ".join(answer.output.split())
    named = len({item for walk in walks.values() for item in walk})
    assert f"{named} of 200 items stand with others in {users} histories: codes" in said
    assert ("(--co-occurrence 0: not)" in said) == (weight is not None)


@pytest.mark.parametrize("option", [["--co-occurrence", "1"], ["--histories", "x.jsonl"]])
def test_co_occurrence_without_item_ids_is_refused_with_what_to_give(
    tmp_path: Path, embeddings: np.ndarray, option: list[str]
) -> None:
    np.save(tmp_path / "embeddings.npy", embeddings)
    refused = CliRunner().invoke(
        app, ["fit", str(tmp_path / "embeddings.npy"), "--bundle", str(tmp_path / "bundle"), *option]
    )
    assert isinstance(refused.exception, SidstreamError)
    assert "give a folder with items.jsonl" in str(refused.exception)


def test_without_a_method_codebooks_are_fitted_by_k_means(tmp_path: Path, embeddings: np.ndarray) -> None:
    np.save(tmp_path / "embeddings.npy", embeddings)
    arguments = ["fit", str(tmp_path / "embeddings.npy"), "--bundle", str(tmp_path / "bundle"), "--size", "8"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    expected = fit_residual_kmeans(embeddings, layers=3, size=8, iterations=20, seed=0)
    assert Bundle.open(tmp_path / "bundle").manifest.codebook_id == expected.id


def test_fit_makes_a_dense_part_of_a_matrix_alone_and_of_a_catalogue_with_its_sequences(
    tmp_path: Path, embeddings: np.ndarray
) -> None:
    np.save(tmp_path / "embeddings.npy", embeddings)
    shop = tmp_path / "shop"
    shop.mkdir()
    np.save(shop / "items.npy", embeddings)
    items = [{"id": str(row), "title": f"product {row}"} for row in range(len(embeddings))]
    (shop / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    walks = [f"{user}\t" + " ".join(str(row % 200) for row in range(user, user + 4)) for user in range(50)]
    (shop / "sequences.tsv").write_text("user_id\titems\n" + "\n".join(walks) + "\n")
    for source, known, beside in ((tmp_path / "embeddings.npy", 0, 0), (shop, 200, 64)):
        answer = CliRunner().invoke(
            app, ["fit", str(source), "--bundle", str(tmp_path / "bundle"), "--size", "8", "--replace"]
        )
        assert answer.exit_code == 0, answer.exception
        dense = Bundle.open(tmp_path / "bundle").manifest.dense
        assert dense is not None
        assert (dense.known, dense.beside) == (known, beside)


def test_screen_is_an_option_and_a_screened_bundle_has_the_codes_of_its_codebook(
    tmp_path: Path, embeddings: np.ndarray
) -> None:
    path = save(tmp_path / "embeddings.npy", embeddings)
    told, fault = fit(path)
    assert fault is None
    assert OnnxEncoder(Bundle.open(tmp_path / "bundle").encoder_path).screen == "none"
    assert "--no-screen" not in told
    told, fault = fit(path, "--screen", "--replace")
    assert fault is None
    assert "the encoder screens codewords with 8-bit products (--no-screen: float32 alone)" in told
    opened = Bundle.open(tmp_path / "bundle")
    encoder = OnnxEncoder(opened.encoder_path)
    assert encoder.screen == "int8"
    assert np.array_equal(encoder.encode(embeddings), Codebook.load(opened.codebook_path).encode(embeddings))
    _, fault = fit(path, "--screen", "--replace", "--method", "rq-vae")
    assert isinstance(fault, SidstreamError)
    assert "leave --screen out" in str(fault)


def test_epochs_are_reported_as_iterations_of_the_first_layer(tmp_path: Path, embeddings: np.ndarray) -> None:
    reports: list[tuple[int, int]] = []
    settings = FitSettings(size=8, method="rq-vae", rq_vae=RqVaeSettings(hidden=(8,), latent=4, epochs=3))
    fit_bundle(
        embeddings,
        tmp_path / "bundle",
        settings,
        progress=lambda layer_index, iteration, _: reports.append((layer_index, iteration)),
    )
    assert reports == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["--method", "vq"], "--method 'vq' is unknown: choose one of k-means, rq-vae"),
        (["--method", "rq-vae", "--iterations", "3"], "--iterations is for --method k-means"),
        (["--epochs", "3"], "--epochs and --latent are for --method rq-vae"),
        (["--latent", "3"], "--epochs and --latent are for --method rq-vae"),
    ],
)
def test_choices_that_make_no_sense_are_refused(tmp_path: Path, choices: list[str], message: str) -> None:
    answer = CliRunner().invoke(app, ["fit", str(tmp_path), "--bundle", str(tmp_path / "bundle"), *choices])
    assert isinstance(answer.exception, SidstreamError)
    assert message in str(answer.exception)
    assert not (tmp_path / "bundle").exists()


def fit(path: Path, *options: str) -> tuple[str, BaseException | None]:
    bundle = path.parent / "bundle"
    answer = CliRunner().invoke(app, ["fit", str(path), "--bundle", str(bundle), "--size", "16", *options])
    return answer.stderr, answer.exception


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("method", ["k-means", "rq-vae"])
@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e20, "row 7 of the embeddings has the length .*e\\+20: .* scale the embeddings"),
        (1e38, "row 7 of the embeddings has the length"),
        (0.0, "the embeddings are all zero"),
        (1e-30, "have no row longer than"),
    ],
)
def test_finite_numbers_that_no_distance_can_be_made_of_are_refused_with_the_row(
    tmp_path: Path, embeddings: np.ndarray, method: str, scale: float, message: str
) -> None:
    scaled = embeddings.copy()
    if scale > 1:
        scaled[7] *= np.float32(scale / np.abs(scaled[7]).max())
    else:
        scaled *= np.float32(scale)
    epochs = ["--epochs", "1"] if method == "rq-vae" else []
    _, fault = fit(save(tmp_path / "some.npy", scaled), "--method", method, *epochs)
    assert isinstance(fault, SidstreamError)
    assert re.search(message, str(fault))
    assert not (tmp_path / "bundle").exists()


def test_codebook_that_one_outlier_collapsed_is_warned_of_with_the_row_and_what_to_do(
    tmp_path: Path, embeddings: np.ndarray
) -> None:
    embeddings = embeddings.copy()
    embeddings[31] *= 10_000
    with capture_logs() as logged:
        told, fault = fit(save(tmp_path / "some.npy", embeddings), "--method", "rq-vae", "--epochs", "3")
    assert fault is None
    text = " ".join(told.split())
    assert re.search(
        r"! the codebook collapsed in layer 1: 1\d of 16 codewords are dead, 100% of the items are on one", text
    )
    assert re.search(r"more than 10 times as long as the median, the longest is row 31 .* scale all to length 1", text)
    [event] = [event for event in logged if event["event"] == "codebook_collapsed"]
    assert (event["log_level"], "row 31" in event["cause"]) == ("warning", True)


def test_codebook_of_few_different_embeddings_is_warned_of(tmp_path: Path, embeddings: np.ndarray) -> None:
    told, fault = fit(save(tmp_path / "some.npy", np.repeat(embeddings[:5], 40, axis=0)))
    assert fault is None
    assert "have only 5 different values for 16 codewords" in " ".join(told.split())


def test_codebook_in_order_is_not_warned_of(tmp_path: Path, embeddings: np.ndarray) -> None:
    told, fault = fit(save(tmp_path / "some.npy", embeddings))
    assert fault is None
    assert "collapsed" not in told


def test_what_comes_next_can_be_copied_and_works_whatever_the_paths_look_like(tmp_path: Path) -> None:
    """Brackets are no markup, spaces are quoted, and no command is broken at 80 columns."""
    folder = tmp_path / ("a rather [bold]long[/] name of a folder " * 2).strip()
    random = np.random.default_rng(0)
    items = tuple(CatalogueItem(id=f"item-{number}", title=f"thing {number}") for number in range(40))
    Catalogue(items=items, embeddings=random.normal(size=(40, 8)).astype(np.float32)).write(folder)
    told, fault = fit(folder)
    assert fault is None
    [command] = [line.removeprefix("  next: ") for line in told.splitlines() if line.startswith("  next: ")]
    assert str(folder.parent / "bundle") in told
    small = ["--epochs", "0.1", "--hidden-size", "16", "--model-layers", "1"]
    answer = CliRunner().invoke(
        app, [*shlex.split(command)[1:], *small, "--max-history", "2", "--max-text-tokens", "5"]
    )
    assert answer.exit_code == 0, answer.exception
    record = Bundle.open(folder.parent / "bundle", need_model=True).manifest.language_model
    assert record is not None
    assert (record.prompt.max_history, record.prompt.max_text_tokens) == (2, 5)


def test_fit_of_embeddings_alone_says_what_training_needs(tmp_path: Path, embeddings: np.ndarray) -> None:
    path = save(tmp_path / "some.npy", embeddings)
    told, fault = fit(path)
    assert fault is None
    assert "put items.jsonl" in told
    assert f"next: sidstream train FOLDER --bundle {tmp_path / 'bundle'}" in told
    answer = CliRunner().invoke(app, ["train", str(path), "--bundle", str(tmp_path / "bundle")])
    assert isinstance(answer.exception, SidstreamError)
    assert "give a folder with items.jsonl and that file as items.npy" in str(answer.exception)
    assert (
        f"{folder_of(path, embeddings)}"
        in CliRunner()
        .invoke(app, ["fit", str(folder_of(path, embeddings)), "--bundle", str(tmp_path / "again"), "--size", "16"])
        .stderr
    )


def folder_of(path: Path, embeddings: np.ndarray) -> Path:
    """What the message asks for."""
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "items.npy")
    lines = [json.dumps({"item_id": number, "title": f"thing {number}"}) for number in range(len(embeddings))]
    (folder / "items.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("name", ["some.npz", "some.npy", "some.txt"])
def test_file_that_is_no_matrix_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    _, fault = fit(tmp_path / name)
    assert isinstance(fault, SidstreamError)
    assert "Git LFS pointer" in str(fault)


def test_without_a_terminal_the_progress_comes_in_lines(tmp_path: Path, embeddings: np.ndarray) -> None:
    told, _ = fit(save(tmp_path / "some.npy", embeddings), "--iterations", "3")
    assert re.search(r"layer 1: 3 of 3 iterations \(100%\), .* iterations/s, took \d+ s, mean squared error ", told)


def test_columns_of_a_matrix_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((4, 2), np.float32))
    arguments = ["fit", str(tmp_path / "rows.npy"), "--bundle", str(tmp_path / "bundle"), "--id", "sku"]
    answer = CliRunner().invoke(app, arguments)
    assert isinstance(answer.exception, SidstreamError)
    assert "holds embeddings alone, which have no columns to name" in str(answer.exception)


def test_table_gives_the_codebook_of_the_same_folder(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    embeddings = np.random.default_rng(4).normal(size=(200, 4)).astype(np.float32)
    items = tuple(CatalogueItem(id=f"i{row}", title=f"thing {row}") for row in range(200))
    Catalogue(items=items, embeddings=embeddings).write(tmp_path / "folder")
    columns = {"sku": [item.id for item in items], "name": [item.title for item in items], "vec": embeddings.tolist()}
    parquet.write_table(pyarrow.table(columns), tmp_path / "shop.parquet")
    named = ["--id", "sku", "--title", "name", "--embedding", "vec"]
    for source, bundle, more in ((tmp_path / "folder", "one", []), (tmp_path / "shop.parquet", "other", named)):
        arguments = ["fit", str(source), "--bundle", str(tmp_path / bundle), "--size", "8", "--iterations", "3", *more]
        answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
    one, other = Bundle.open(tmp_path / "one").manifest, Bundle.open(tmp_path / "other").manifest
    assert one.codebook_id == other.codebook_id


@pytest.mark.parametrize(
    ("choices", "left_out"),
    [
        (["--head", "top-k"], 1),
        (["--head", "top-k", "--k", "0"], 0),
        (["--head", "top-k", "--k", "3"], 3),
        (["--head", "top-p", "--p", "0"], 0),
        (["--head", "all"], 16),
    ],
)
def test_head_tokens_are_as_many_as_asked_and_a_tenth_only_without_a_word(
    tmp_path: Path, embeddings: np.ndarray, choices: list[str], left_out: int
) -> None:
    _, fault = fit(save(tmp_path / "some.npy", embeddings), *choices)
    assert fault is None
    assert len(Bundle.open(tmp_path / "bundle").layout.head_tokens) == left_out


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["--k", "3"], "--k is for --head top-k, and --head is none: give --head top-k, or leave --k out"),
        (["--k", "0", "--head", "all"], "--k is for --head top-k, and --head is all"),
        (["--p", "0.5"], "--p is for --head top-p, and --head is none: give --head top-p, or leave --p out"),
        (["--p", "0.3", "--head", "top-k"], "--p is for --head top-p, and --head is top-k"),
        (["--head", "top-k", "--k", "257"], "--k 257 is more than the 256 codewords of a layer"),
        (["--head", "most"], "--head 'most' is unknown"),
        (["--screen", "--method", "rq-vae"], "leave --screen out"),
    ],
)
def test_head_options_that_do_not_belong_together_are_refused_before_anything_is_read(
    tmp_path: Path, choices: list[str], message: str
) -> None:
    answer = CliRunner().invoke(app, ["fit", str(tmp_path / "none"), "--bundle", str(tmp_path / "bundle"), *choices])
    assert isinstance(answer.exception, SidstreamError)
    assert message in str(answer.exception)


def test_folder_of_a_catalogue_is_no_bundle_to_replace_and_stays_as_it_is(
    tmp_path: Path, embeddings: np.ndarray
) -> None:
    Catalogue([CatalogueItem(id=f"item-{row}", title="thing") for row in range(200)], embeddings).write(
        tmp_path / "shop"
    )
    before = sorted(path.name for path in (tmp_path / "shop").iterdir())
    answer = CliRunner().invoke(
        app, ["fit", str(tmp_path / "shop"), "--bundle", str(tmp_path / "shop"), "--size", "8", "--replace"]
    )
    assert isinstance(answer.exception, SidstreamError)
    assert "shop is not empty and holds no bundle" in str(answer.exception)
    assert sorted(path.name for path in (tmp_path / "shop").iterdir()) == before


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "is a file, not a directory"),
        ("file/below", "cannot be made: Not a directory"),
        ("blocked", "encoder.onnx is a directory, and a file is to be written"),
    ],
)
def test_place_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, place: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "blocked" / "encoder.onnx").mkdir(parents=True)
    answer = CliRunner().invoke(app, ["fit", str(tmp_path / "none"), "--bundle", str(tmp_path / place)])
    assert isinstance(answer.exception, SidstreamError)
    assert message in str(answer.exception)
