"""The encoder on ONNX Runtime: the reference's codes, near-ties named and counted, whatever batch an item comes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.codebooks.codebook import Codebook, fit_residual_kmeans
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.onnx_export import export_onnx
from models.codebooks.onnx_format import BLOCK_ROWS, INPUT_NAME, LARGEST_BLOCK, EncoderError
from models.codebooks.onnx_rows import ONE_ROW_COUNT

CATALOGUES = ("amazon_games", "chorus_icecat")
FIXED_ROWS = Path(__file__).parent / "fixtures" / "encoder_version1.onnx"  # of ``make_codebook()``


def make_codebook(layers: int = 3, size: int = 8, dimension: int = 6, seed: int = 0) -> Codebook:
    random = np.random.default_rng(seed)
    return Codebook(random.standard_normal((layers, size, dimension)).astype(np.float32))


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnnxEncoder]:
    def build(codebook: Codebook, threads: int = 1) -> OnnxEncoder:
        path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
        export_onnx(codebook, path)
        return OnnxEncoder(path, threads=threads)

    return build


@pytest.fixture(scope="module")
def real(shared_data: Path) -> dict[str, tuple[np.ndarray, Codebook]]:
    """Embeddings of each real catalogue and a codebook of 3 x 256 fitted on them."""
    faiss.omp_set_num_threads(1)  # OpenMP's waiting threads starve a busy two-core machine
    catalogues = {}
    for name in CATALOGUES:
        embeddings = np.load(shared_data / name / "items.minilm.f16.npy").astype(np.float32)
        catalogues[name] = (embeddings, fit_residual_kmeans(embeddings, layers=3, size=256, iterations=4))
    return catalogues


def near_ties(codebook: Codebook, embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[str]:
    """One line an item whose codes differ: the layer where they part and how near the two choices are in float64.

    Later layers of such an item are not compared: their residuals differ.
    """
    lines = []
    for item in np.flatnonzero((first != second).any(axis=1)):
        layer_index = int(np.argmax(first[item] != second[item]))
        residual = embeddings[item].astype(np.float64)
        for earlier in range(layer_index):
            residual -= codebook.codewords[earlier, first[item, earlier]].astype(np.float64)
        one, other = (
            float(
                ((residual - codebook.codewords[layer_index, codes[item, layer_index]].astype(np.float64)) ** 2).sum()
            )
            for codes in (first, second)
        )
        difference = abs(one - other) / max(one, other)
        lines.append(f"item {item}, layer index {layer_index}: squared distances {one!r} and {other!r}")
        assert difference < 1e-5, f"not a tie: {lines[-1]}"
    return lines


@pytest.mark.parametrize("name", CATALOGUES)
def test_codes_of_real_embeddings_equal_the_reference_except_counted_near_ties(
    name: str, real: dict[str, tuple[np.ndarray, Codebook]], encoder_of: Callable[..., OnnxEncoder]
) -> None:
    embeddings, codebook = real[name]
    codes = encoder_of(codebook).encode(embeddings)
    ties = near_ties(codebook, embeddings, codebook.encode(embeddings), codes)
    print(f"\n{name}: {len(ties)} near-ties in {len(embeddings)} items", *ties, sep="\n  ")
    assert len(ties) <= len(embeddings) // 1000
    assert codes.dtype == np.uint16
    assert codes.shape == (len(embeddings), 3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [8, 100, 256])
def test_item_has_the_same_codes_in_every_batch_and_at_every_position(
    size: int, threads: int, encoder_of: Callable[..., OnnxEncoder]
) -> None:
    """On the midpoint of two codewords the last bit of a score decides: any change of arithmetic would show."""
    codebook = make_codebook(size=size, dimension=384)
    encoder = encoder_of(codebook, threads)
    pairs = np.random.default_rng(1).integers(0, size, (1000, 2))
    midpoints = 0.5 * (codebook.codewords[0, pairs[:, 0]] + codebook.codewords[0, pairs[:, 1]])
    together = encoder.encode(midpoints)
    contested = near_ties(codebook, midpoints, codebook.encode(midpoints), together)
    print(f"\nsize {size}, threads {threads}: {len(contested)} of 1000 midpoints go another way in NumPy's arithmetic")
    assert contested, "midpoints decided alike by two arithmetics test nothing"
    for batch_rows in (*range(1, 71), 255, 256, 257, 511, 769):
        for start in (0, 1, 3, 230) if batch_rows > 2 else range(0, 1000, 13):
            alone = encoder.encode(midpoints[start : start + batch_rows])
            assert np.array_equal(alone, together[start : start + batch_rows]), (batch_rows, start)
    for shift in (1, 5, 63, 500):
        assert np.array_equal(encoder.encode(np.roll(midpoints, shift, axis=0)), np.roll(together, shift, axis=0))
    mates = np.random.default_rng(2).permutation(1000)
    assert np.array_equal(encoder.encode(midpoints[mates]), together[mates])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [8, 100, 300])
def test_score_of_an_item_has_the_same_bits_whatever_is_computed_with_it(
    size: int, threads: int, tmp_path: Path
) -> None:
    """Codes could agree by chance; rounding that agrees in every row does not."""
    export_onnx(make_codebook(size=size, dimension=384), tmp_path / "encoder.onnx")
    encoder = OnnxEncoder(tmp_path / "encoder.onnx", threads)
    rows = np.random.default_rng(4).standard_normal((600, 384)).astype(np.float32)
    session = encoder._session
    expected = session.run(["scores"], {INPUT_NAME: rows[:LARGEST_BLOCK]})[0]
    for count in encoder.row_counts:
        for start in range(0, LARGEST_BLOCK - count + 1, 29):
            block = slice(start, start + count)
            assert session.run(["scores"], {INPUT_NAME: rows[block]})[0].tobytes() == expected[block].tobytes()


def test_machine_whose_small_products_round_otherwise_gets_calls_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codebook = make_codebook(dimension=384)
    export_onnx(codebook, tmp_path / "encoder.onnx")
    embeddings = np.random.default_rng(5).standard_normal((150, 384)).astype(np.float32)
    expected = OnnxEncoder(tmp_path / "encoder.onnx").encode(embeddings)
    scores = OnnxEncoder._scores

    def other_sums(encoder: OnnxEncoder, rows: np.ndarray) -> np.ndarray:
        """As of a kernel for few rows that adds in another order."""
        found = scores(encoder, rows)
        return np.nextafter(found, np.float32(np.inf)) if len(rows) < 8 else found

    monkeypatch.setattr(OnnxEncoder, "_scores", other_sums)
    encoder = OnnxEncoder(tmp_path / "encoder.onnx")
    assert encoder.row_counts == ONE_ROW_COUNT
    calls: list[int] = []
    session = encoder._session

    class Counting:
        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            calls.append(len(inputs[INPUT_NAME]))
            return list(session.run(outputs, inputs))

    monkeypatch.setattr(encoder, "_session", Counting())
    assert np.array_equal(encoder.encode(embeddings), expected)
    assert np.array_equal(encoder.encode(embeddings[:1]), expected[:1])
    assert calls == [64, 64, 64, 64]


def test_graph_of_format_1_gives_the_codes_that_it_gave() -> None:
    codebook = make_codebook()
    encoder = OnnxEncoder(FIXED_ROWS)
    assert (encoder.codebook_id, encoder.row_counts) == (codebook.id, (64,))
    embeddings = np.random.default_rng(1).standard_normal((130, 6)).astype(np.float32)
    expected = codebook.encode(embeddings)
    for batch in (embeddings, embeddings[:1], embeddings[64:], embeddings[:65], embeddings[:0]):
        assert np.array_equal(encoder.encode(batch), codebook.encode(batch))
    assert np.array_equal(encoder.encode(embeddings)[77], expected[77])


def test_real_items_have_the_same_codes_alone_as_in_a_batch_of_a_thousand(
    real: dict[str, tuple[np.ndarray, Codebook]], encoder_of: Callable[..., OnnxEncoder]
) -> None:
    embeddings, codebook = real["chorus_icecat"]
    encoder = encoder_of(codebook)
    together = encoder.encode(embeddings[:1000])
    for batch_rows in (1, 7, 256):
        for start in range(0, 1000, 49):
            stop = min(start + batch_rows, 1000)
            assert np.array_equal(encoder.encode(embeddings[start:stop]), together[start:stop])


def test_equally_near_codewords_go_to_the_lowest_number(encoder_of: Callable[..., OnnxEncoder]) -> None:
    one = np.array([[9, 9], [1, 0], [-1, 0], [1, 0]], np.float32)
    encoder = encoder_of(Codebook(np.stack([one, one, one])))
    assert encoder.encode(np.array([[1, 0], [0, 0]], np.float32))[:, 0].tolist() == [1, 1]


def test_embedding_too_large_for_float32_has_codes_of_the_codebook(encoder_of: Callable[..., OnnxEncoder]) -> None:
    """Its scores overflow; what fills up the last group of codewords must not be chosen."""
    encoder = encoder_of(make_codebook(size=100))
    assert encoder.encode(np.full((3, 6), 3e38, np.float32)).max() < 100


@pytest.mark.parametrize(("layers", "size", "dimension"), [(3, 1, 1), (4, 5, 3), (5, 300, 33)])
def test_graph_of_any_shape_knows_its_codebook(
    layers: int, size: int, dimension: int, encoder_of: Callable[..., OnnxEncoder]
) -> None:
    codebook = make_codebook(layers, size, dimension)
    encoder = encoder_of(codebook)
    assert encoder.codebook_id == codebook.id
    assert (encoder.layers, encoder.size, encoder.dimension) == (layers, size, dimension)
    embeddings = np.random.default_rng(2).standard_normal((BLOCK_ROWS + 3, dimension)).astype(np.float32)
    near_ties(codebook, embeddings, codebook.encode(embeddings), encoder.encode(embeddings))
    assert encoder.encode(embeddings[:0]).shape == (0, layers)


def test_largest_codeword_number_survives_the_cast_to_uint16(encoder_of: Callable[..., OnnxEncoder]) -> None:
    one = np.zeros((65_536, 1), np.float32)
    one[-1] = 5
    encoder = encoder_of(Codebook(np.stack([one, one, one])))
    assert encoder.encode(np.array([[15]], np.float32)).tolist() == [[65_535, 65_535, 65_535]]


def test_embeddings_in_another_memory_order_give_the_same_codes(encoder_of: Callable[..., OnnxEncoder]) -> None:
    encoder = encoder_of(make_codebook())
    embeddings = np.random.default_rng(3).standard_normal((100, 6)).astype(np.float32)
    assert np.array_equal(encoder.encode(np.asfortranarray(embeddings)), encoder.encode(embeddings))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((2, 5), np.float32), r"shape \(2, 5\), but the codebook needs \(N, 6\)"),
        (np.zeros(6, np.float32), r"shape \(6,\)"),
        (np.zeros((2, 6), np.float16), "float32, not float16"),
        (np.array([[0] * 6, [0, 0, np.nan, 0, 0, 0]], np.float32), "row 1 .* NaN"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(
    embeddings: np.ndarray, message: str, encoder_of: Callable[..., OnnxEncoder]
) -> None:
    with pytest.raises(EncoderError, match=message):
        encoder_of(make_codebook()).encode(embeddings)


def test_same_codebook_exports_the_same_bytes(tmp_path: Path) -> None:
    export_onnx(make_codebook(), tmp_path / "a.onnx")
    export_onnx(make_codebook(), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"), full_check=True)


def test_missing_or_unreadable_graph_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    with pytest.raises(EncoderError, match=r"no encoder file .* `sidstream fit`"):
        OnnxEncoder(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(EncoderError, match=r"cannot load .* `sidstream fit`"):
        OnnxEncoder(path)


def test_graph_of_somebody_else_is_refused_with_what_to_do(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [64, 6])
    after = helper.make_tensor_value_info("codes", TensorProto.FLOAT, [64, 6])
    graph = helper.make_graph([helper.make_node("Abs", ["embeddings"], ["codes"])], "other", [value], [after])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    with pytest.raises(EncoderError, match=r"no metadata 'sidstream.format_version'.* `sidstream fit`"):
        OnnxEncoder(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codebook_id", None, "no metadata 'sidstream.codebook_id'"),
        ("size", None, "no metadata 'sidstream.size'"),
        ("layers", "three", "must be a positive number, not 'three'"),
        ("layers", "2", "2 layers of 8 codewords"),
        ("format_version", "3", "encoder format 3, but this sidstream reads 1 and 2; update sidstream"),
        ("format_version", "1", "no metadata 'sidstream.block_rows'"),
        ("dimension", "7", r"its metadata promise .*\['rows', 7\]"),
    ],
)
def test_graph_with_wrong_metadata_is_refused(tmp_path: Path, key: str, value: str | None, message: str) -> None:
    path = tmp_path / "encoder.onnx"
    export_onnx(make_codebook(), path)
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key != f"sidstream.{key}"}
    if value is not None:
        metadata[f"sidstream.{key}"] = value
    del model.metadata_props[:]
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    with pytest.raises(EncoderError, match=message):
        OnnxEncoder(path)


def test_graph_of_format_1_with_another_number_of_rows_than_it_says_is_refused(tmp_path: Path) -> None:
    model = onnx.load(FIXED_ROWS)
    next(entry for entry in model.metadata_props if entry.key == "sidstream.block_rows").value = "32"
    onnx.save(model, tmp_path / "encoder.onnx")
    with pytest.raises(EncoderError, match=r"its metadata promise .*\[32, 6\]"):
        OnnxEncoder(tmp_path / "encoder.onnx")


def test_no_threads_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="threads must be at least 1, not 0"):
        OnnxEncoder(tmp_path / "encoder.onnx", threads=0)
