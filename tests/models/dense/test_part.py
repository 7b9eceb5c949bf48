"""The dense part of a bundle: read back as written, refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.dense.mixture import MixtureWeights
from models.dense.part import UNMEASURED, DenseRecord, load_space, save_space, space_facts
from models.dense.space import DenseSpace, fit_space, id_hashes
from models.errors import SidstreamError

FIXTURES = Path(__file__).parent / "fixtures"
# Written by the sidstream before kernel regression, and by the one before it kept what was taken together.
VERSIONS = ("version1", "version2")


def made(*, histories: bool) -> tuple[DenseSpace, DenseRecord, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((40, 6)).astype(np.float32)
    hashes = id_hashes(str(row).encode() for row in range(40))
    rows = [random.choice(40, size=4, replace=False).tolist() for _ in range(60)] if histories else []
    space, _ = fit_space(embeddings, hashes, rows, keep_pairs=True)
    regression = None if space.together is None else space.together.regression
    record = DenseRecord(
        version=3,
        file="dense.safetensors",
        dimension=6,
        known=40,
        beside=space.width - 6,
        landmarks=0 if regression is None or regression.landmarks is None else len(regression.landmarks),
        kernel_sharpness=0.0 if regression is None else regression.sharpness,
        pairs=0 if space.pairs is None else len(space.pairs.items),
    )
    return space, record, embeddings, hashes


@pytest.mark.parametrize("histories", [True, False])
def test_space_read_back_gives_the_same_vectors(tmp_path: Path, histories: bool) -> None:
    space, record, embeddings, hashes = made(histories=histories)
    save_space(space, tmp_path / "dense.safetensors")
    read = load_space(tmp_path / "dense.safetensors", record)
    np.testing.assert_array_equal(read.items(embeddings, hashes), space.items(embeddings, hashes))
    assert not read.is_new(hashes).any()
    assert read.is_new(id_hashes([b"another"])).all()
    assert (read.pairs is None) == (not histories)
    if read.pairs is not None and space.pairs is not None:
        for one, other in zip(read.pairs.neighbours(np.arange(5)), space.pairs.neighbours(np.arange(5)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_part_of_histories_that_repeat_one_item_is_read_back(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    space, _ = fit_space(
        embeddings, id_hashes(str(row).encode() for row in range(4)), [[1, 1], [2, 2]], keep_pairs=True
    )
    save_space(space, tmp_path / "dense.safetensors")
    read = load_space(tmp_path / "dense.safetensors", DenseRecord(**space_facts(space, "dense.safetensors")))
    assert read.pairs is None


@pytest.mark.parametrize("version", VERSIONS)
def test_part_written_by_an_older_version_is_read_and_gives_the_vectors_that_it_gave(version: str) -> None:
    record = msgspec.json.decode((FIXTURES / version / "record.json").read_bytes(), type=DenseRecord)
    space = load_space(FIXTURES / version / record.file, record)
    _, _, embeddings, hashes = made(histories=True)
    others = id_hashes(f"other {row}".encode() for row in range(3))
    found = np.concatenate((space.items(embeddings[:3], hashes[:3]), space.items(embeddings[:3], others)))
    np.testing.assert_allclose(found, np.loadtxt(FIXTURES / version / "vectors.txt"), atol=2e-6)
    assert space.pairs is None
    assert record.weights_of("history") == MixtureWeights(sharpness=11.0, share=0.65, boost_of_new=0.0)


@pytest.mark.parametrize(
    "changes", [{"known": 41}, {"dimension": 7}, {"beside": 5}, {"version": 4}, {"landmarks": 39}, {"pairs": 7}]
)
def test_file_of_another_record_is_refused_with_what_to_do(tmp_path: Path, changes: dict[str, int]) -> None:
    space, record, _, _ = made(histories=True)
    save_space(space, tmp_path / "dense.safetensors")
    with pytest.raises(SidstreamError, match="train the bundle again"):
        load_space(tmp_path / "dense.safetensors", msgspec.structs.replace(record, **changes))


def test_weights_are_those_of_the_kind_of_query_and_the_dense_leg_alone_lifts_nothing() -> None:
    chosen = MixtureWeights(sharpness=29.0, share=0.55, boost_of_new=0.3)
    record = DenseRecord(version=3, file="x", dimension=6, known=0, weights={"embedding": chosen})
    assert record.weights_of("embedding") == chosen
    assert record.weights_of("history") == UNMEASURED
    alone = chosen.dense_alone()
    assert (alone.sharpness, alone.share, alone.share_of_new, alone.boost_of_new) == (29.0, 1.0, 1.0, 0.0)
    assert msgspec.json.decode(msgspec.json.encode(record), type=DenseRecord) == record
