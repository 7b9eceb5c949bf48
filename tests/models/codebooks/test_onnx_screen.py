"""The int8 screen: the codes of float32 but for named ties, whatever batch an item comes in, on rows that are hard for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.codebooks.codebook import Codebook
from models.codebooks.dense_network import DenseNetwork
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.onnx_export import export_onnx
from models.codebooks.onnx_format import METADATA_PREFIX, EncoderError
from models.codebooks.onnx_screen import ScreenRanges, screen_ranges
from models.codebooks.screen_choice import chosen_screen, unsure_share

Made = tuple[Codebook, OnnxEncoder, OnnxEncoder]


def clustered(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Embeddings of length 1 about forty centres, with longer and shorter axes."""
    random = np.random.default_rng(seed)
    axes = random.gamma(2.0, 1.0, dimension)
    rows = random.standard_normal((40, dimension))[random.integers(0, 40, count)] * axes
    rows += 0.6 * axes * random.standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def fitted(rows: np.ndarray, size: int) -> Codebook:
    """Codewords that are items or means of two, layer by layer, as of a short k-means."""
    residual, layers = rows, []
    for layer_index in range(3):
        random = np.random.default_rng(layer_index)
        layers.append(0.5 * (residual[random.permutation(len(rows))[:size]] + residual[:size]))
        nearest = Codebook(np.stack([layers[-1]] * 3)).encode(residual)[:, 0]
        residual = residual - layers[-1][nearest]
    return Codebook(np.stack(layers).astype(np.float32))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    def build(codebook: Codebook, rows: np.ndarray, ranges: ScreenRanges | None = None, threads: int = 1) -> Made:
        directory = tmp_path_factory.mktemp("screen")
        export_onnx(codebook, directory / "exact.onnx")
        export_onnx(codebook, directory / "screened.onnx", ranges or screen_ranges(codebook, rows))
        return (
            codebook,
            OnnxEncoder(directory / "exact.onnx"),
            OnnxEncoder(directory / "screened.onnx", threads=threads),
        )

    return build


def named_ties(codebook: Codebook, rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[str]:
    """One line an item whose codes differ; fails unless float32 cannot tell the two distances apart."""
    lines = []
    for item in np.flatnonzero((first != second).any(axis=1)):
        layer_index = int(np.argmax(first[item] != second[item]))
        residual = rows[item].astype(np.float64)
        for earlier in range(layer_index):
            residual -= codebook.codewords[earlier, first[item, earlier]]
        one, other = (
            float(((residual - codebook.codewords[layer_index, codes[item, layer_index]]) ** 2).sum())
            for codes in (first, second)
        )
        lines.append(f"item {item}, layer index {layer_index}: squared distances {one!r} and {other!r}")
        assert abs(one - other) < 2e-6 * float((rows[item].astype(np.float64) ** 2).sum()), f"no tie: {lines[-1]}"
    return lines


@pytest.mark.parametrize(("size", "dimension"), [(64, 32), (300, 100), (1024, 128)])
def test_screened_codes_are_those_of_float32_but_for_named_ties(
    size: int, dimension: int, make: Callable[..., Made]
) -> None:
    rows = clustered(4000, dimension)
    codebook, exact, screened = make(fitted(rows, size), rows)
    codes = screened.encode(rows)
    ties = named_ties(codebook, rows, exact.encode(rows), codes)
    print(f"\n{len(ties)} ties in {len(rows)} items", *ties, sep="\n  ")
    assert len(ties) <= 4
    assert codes.shape == (4000, 3)
    assert screened.unsure(rows).mean() < 0.02, "a screen that leaves everything to float32 proves nothing"


def test_midpoints_of_codewords_go_to_one_of_the_two(make: Callable[..., Made]) -> None:
    """Ties that int8 cannot see."""
    rows = clustered(2000, 64)
    codebook, exact, screened = make(fitted(rows, 200), rows)
    pairs = np.random.default_rng(1).integers(0, 200, (1000, 2))
    middle = 0.5 * (codebook.codewords[0, pairs[:, 0]] + codebook.codewords[0, pairs[:, 1]])
    named_ties(codebook, middle, exact.encode(middle), screened.encode(middle))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dimension", [100, 128])
def test_item_has_the_same_codes_in_every_batch_and_at_every_position(
    dimension: int, threads: int, make: Callable[..., Made]
) -> None:
    """Midpoints: the last bit of a score decides. Some rows are beyond the ranges and coded in float32."""
    rows = clustered(2000, dimension)
    codebook, _, screened = make(fitted(rows, 200), rows, threads=threads)
    pairs = np.random.default_rng(1).integers(0, 200, (1200, 2))
    middle = 0.5 * (codebook.codewords[0, pairs[:, 0]] + codebook.codewords[0, pairs[:, 1]])
    middle[::50] *= 20
    assert 0.01 < screened.unsure(middle).mean() < 0.5
    together = screened.encode(middle)
    for batch_rows in (*range(1, 71), 255, 256, 257, 1100):
        for start in (0, 1, 3, 50, 99) if batch_rows > 2 else range(0, 1000, 13):
            alone = screened.encode(middle[start : start + batch_rows])
            assert np.array_equal(alone, together[start : start + batch_rows]), (batch_rows, start)
    mates = np.random.default_rng(2).permutation(len(middle))
    assert np.array_equal(screened.encode(middle[mates]), together[mates])


def test_rows_beyond_the_ranges_are_coded_in_float32(make: Callable[..., Made]) -> None:
    rows = clustered(1000, 64)
    codebook, exact, screened = make(fitted(rows, 100), rows)
    long, spiked = 3 * rows[:300], rows[:300].copy()
    spiked[:, 7] += 2
    for beyond in (long, spiked, np.full((3, 64), 3e38, np.float32), np.float32(1e30) * rows[:5]):
        assert screened.unsure(beyond).all()
        assert np.array_equal(screened.encode(beyond), exact_branch_codes(screened, beyond))
    named_ties(codebook, spiked, exact.encode(spiked), screened.encode(spiked))


def exact_branch_codes(encoder: OnnxEncoder, rows: np.ndarray) -> np.ndarray:
    codes: np.ndarray = encoder._session.run(["codes"], {"embeddings": rows, "exact": np.array(True)})[0]
    return codes


def test_equal_codewords_go_to_the_lowest_number_and_are_not_compared(make: Callable[..., Made]) -> None:
    rows = clustered(500, 64)
    codewords = np.array(fitted(rows, 300).codewords)
    codewords[:, 100:] = codewords[:, 99:100]
    codewords[2, 50:] = 0
    _, exact, screened = make(Codebook(codewords), rows)
    codes = screened.encode(rows)
    assert np.array_equal(codes, exact.encode(rows))
    assert codes[:, :2].max() <= 99
    assert codes[:, 2].max() <= 50
    assert not screened.unsure(rows).any()


def test_codewords_that_int8_cannot_tell_apart_are_left_to_float32(make: Callable[..., Made]) -> None:
    rows = clustered(800, 64)
    random = np.random.default_rng(3)
    alike = (rows[:1] + 1e-4 * random.standard_normal((700, 64))).astype(np.float32)
    codebook, exact, screened = make(Codebook(np.stack([alike, alike, alike])), rows)
    assert screened.unsure(rows).mean() > 0.9
    named_ties(codebook, rows, exact.encode(rows), screened.encode(rows))


def test_empty_batch_and_one_item_have_codes(make: Callable[..., Made]) -> None:
    rows = clustered(300, 64)
    _, exact, screened = make(fitted(rows, 33), rows)
    assert screened.encode(rows[:0]).shape == (0, 3)
    assert np.array_equal(screened.encode(rows[5:6]), exact.encode(rows[5:6]))


def test_screen_shows_in_the_metadata_and_the_same_ranges_give_the_same_bytes(tmp_path: Path) -> None:
    rows = clustered(300, 32)
    codebook = fitted(rows, 20)
    for name in ("a", "b"):
        export_onnx(codebook, tmp_path / name, screen_ranges(codebook, rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert OnnxEncoder(tmp_path / "a").screen == "int8"
    onnx.checker.check_model(onnx.load(tmp_path / "a"))
    export_onnx(codebook, tmp_path / "c")
    assert OnnxEncoder(tmp_path / "c").screen == "none"
    assert OnnxEncoder(tmp_path / "c").unsure(rows).all()


def test_screen_of_another_kind_is_refused(tmp_path: Path) -> None:
    rows = clustered(300, 32)
    codebook = fitted(rows, 20)
    export_onnx(codebook, tmp_path / "a.onnx", screen_ranges(codebook, rows))
    model = onnx.load(tmp_path / "a.onnx")
    next(entry for entry in model.metadata_props if entry.key == f"{METADATA_PREFIX}screen").value = "int4"
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(EncoderError, match="screen 'int4', which this sidstream does not know: update sidstream"):
        OnnxEncoder(tmp_path / "a.onnx")


def test_codebook_with_an_encoder_is_not_screened(tmp_path: Path) -> None:
    square = DenseNetwork(((np.eye(4, dtype=np.float32), np.zeros(4, np.float32)),))
    codebook = Codebook(np.random.default_rng(0).standard_normal((3, 8, 4)).astype(np.float32), square, square)
    rows = np.ones((20, 4), np.float32)
    with pytest.raises(EncoderError, match="RQ-VAE"):
        export_onnx(codebook, tmp_path / "a.onnx", ScreenRanges((1, 1, 1), (1, 1, 1)))
    assert chosen_screen(codebook, rows, None) is None


def test_margins_hold_the_errors_that_int8_makes(make: Callable[..., Made]) -> None:
    """The bounds of the best score, given as ``scores``, lie above the score in float64 and near it."""
    rows = clustered(3000, 128)
    codebook, _, screened = make(fitted(rows, 500), rows)
    raised, codes = screened._session.run(["scores", "codes"], {"embeddings": rows, "exact": np.array(False)})
    chosen = codebook.codewords[0, codes[:, 0]].astype(np.float64)
    scores = (rows * chosen).sum(axis=1) - 0.5 * (chosen**2).sum(axis=1)
    sure = ~screened.unsure(rows)
    assert (raised[sure, 0] > scores[sure]).all()
    assert (raised[sure, 0] - scores[sure]).mean() < 0.05


class TestChoice:
    def test_small_codebooks_have_no_screen_by_themselves(self) -> None:
        rows = clustered(400, 128)
        assert chosen_screen(fitted(rows, 100), rows, None) is None
        assert chosen_screen(fitted(rows, 100), rows, True) is not None

    def test_large_ones_have_one_unless_it_is_refused(self) -> None:
        rows = clustered(4000, 128)
        codebook = fitted(rows, 1024)
        assert chosen_screen(codebook, rows, None) == screen_ranges(codebook, rows)
        assert chosen_screen(codebook, rows, False) is None
        assert unsure_share(codebook, screen_ranges(codebook, rows), rows) < 0.02

    def test_large_ones_whose_codewords_are_alike_have_none(self) -> None:
        rows = clustered(1500, 128)
        alike = (rows[:1] + 1e-4 * np.random.default_rng(3).standard_normal((1024, 128))).astype(np.float32)
        assert chosen_screen(Codebook(np.stack([alike, alike, alike])), rows, None) is None
