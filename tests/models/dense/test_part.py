"""The dense part of a bundle: read back as written, refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.dense.mixture import MixtureWeights
from models.dense.part import UNMEASURED, DenseRecord, load_space, save_space
from models.dense.space import DenseSpace, fit_space, id_hashes
from models.errors import SidstreamError


def made(*, histories: bool) -> tuple[DenseSpace, DenseRecord, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((40, 6)).astype(np.float32)
    hashes = id_hashes(str(row).encode() for row in range(40))
    rows = [random.choice(40, size=4, replace=False).tolist() for _ in range(60)] if histories else []
    space, _ = fit_space(embeddings, hashes, rows)
    record = DenseRecord(version=1, file="dense.safetensors", dimension=6, known=40, beside=space.width - 6)
    return space, record, embeddings, hashes


@pytest.mark.parametrize("histories", [True, False])
def test_space_read_back_gives_the_same_vectors(tmp_path: Path, histories: bool) -> None:
    space, record, embeddings, hashes = made(histories=histories)
    save_space(space, tmp_path / "dense.safetensors")
    read = load_space(tmp_path / "dense.safetensors", record)
    np.testing.assert_array_equal(read.items(embeddings, hashes), space.items(embeddings, hashes))
    assert not read.is_new(hashes).any()
    assert read.is_new(id_hashes([b"another"])).all()


@pytest.mark.parametrize("changes", [{"known": 41}, {"dimension": 7}, {"beside": 5}, {"version": 2}])
def test_file_of_another_record_is_refused_with_what_to_do(tmp_path: Path, changes: dict[str, int]) -> None:
    space, record, _, _ = made(histories=True)
    save_space(space, tmp_path / "dense.safetensors")
    with pytest.raises(SidstreamError, match="train the bundle again"):
        load_space(tmp_path / "dense.safetensors", msgspec.structs.replace(record, **changes))


def test_weights_are_those_of_the_kind_of_query_and_without_a_model_the_dense_leg_alone() -> None:
    chosen = MixtureWeights(sharpness=29.0, share=0.55)
    record = DenseRecord(version=1, file="x", dimension=6, known=0, weights={"embedding": chosen})
    assert record.weights_of("embedding", has_model=True) == chosen
    assert record.weights_of("history", has_model=True) == UNMEASURED
    alone = record.weights_of("embedding", has_model=False)
    assert (alone.sharpness, alone.share, alone.share_of_new) == (29.0, 1.0, 1.0)
    assert msgspec.json.decode(msgspec.json.encode(record), type=DenseRecord) == record
