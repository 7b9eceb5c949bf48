"""The bundle store: names lead to whole bundles, which stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.bundles.bundle import CODEBOOK_FILE, MANIFEST_FILE, Bundle
from models.bundles.manifest import BundleError
from models.bundles.store import BundleStore
from tests.models.bundles.test_bundle import make, with_model

pytest.importorskip("onnx")


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles")


def test_added_bundle_has_the_id_of_its_source_and_is_added_once(store: BundleStore, tmp_path: Path) -> None:
    source = with_model(make(tmp_path / "bundle"))
    added = store.add(source.directory)
    assert (added.id, store.ids()) == (source.id, (source.id,))
    assert added.directory == store.directory / source.id
    assert store.add(source.directory).id == added.id
    assert list(store.directory.iterdir()) == [added.directory]


def test_stored_bundle_stays_when_its_source_gets_a_new_model_or_codebook(store: BundleStore, tmp_path: Path) -> None:
    source = with_model(make(tmp_path / "bundle"))
    first = store.add(source.directory)
    second = store.add(with_model(source, b"others").directory)
    make(tmp_path / "bundle", seed=1, replace=True)
    assert store.ids() == tuple(sorted((first.id, second.id)))
    assert first.manifest.codebook_id == second.manifest.codebook_id
    for one in (first, second):
        assert store.open(one.id, need_model=True).manifest == one.manifest


def test_same_codebook_with_another_model_has_another_id(tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle")
    assert len({bundle.id, with_model(bundle).id, with_model(bundle, b"others").id}) == 3


def test_bundle_that_was_changed_in_the_store_is_refused(store: BundleStore, tmp_path: Path) -> None:
    added = store.add(make(tmp_path / "bundle").directory)
    manifest = added.directory / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(BundleError, match="changed in place"):
        store.open(added.id)


def test_damaged_source_leaves_the_store_as_it_was(store: BundleStore, tmp_path: Path) -> None:
    source = with_model(make(tmp_path / "bundle"))
    (next(source.model_directory.glob("*.safetensors"))).write_bytes(b"weightz")  # hashed where it is copied alone
    with pytest.raises(BundleError, match="SHA-256"):
        store.add(source.directory)
    assert list(store.directory.iterdir()) == []


def test_what_a_killed_process_left_is_no_bundle_and_goes(store: BundleStore, tmp_path: Path) -> None:
    (store.directory / ".going-1").mkdir(parents=True)
    (store.directory / ".coming-1").mkdir()  # another process may be in the middle of it
    (store.directory / ("0" * 16)).mkdir()  # no manifest
    assert store.ids() == ()
    added = store.add(make(tmp_path / "bundle").directory)
    assert store.ids() == (added.id,)
    assert not (store.directory / ".going-1").exists()
    assert (store.directory / ".coming-1").exists()


def test_bundle_is_found_by_directory_id_or_the_beginning_of_its_id(store: BundleStore, tmp_path: Path) -> None:
    first = store.add(make(tmp_path / "a").directory)
    for name in (str(tmp_path / "a"), first.id, first.id[:6]):
        assert store.find(name).id == first.id
    for name in ("", "zzzz", str(tmp_path / "nowhere")):
        with pytest.raises(BundleError, match=first.id):
            store.find(name)


def test_removed_bundle_is_gone_and_a_second_removal_says_so(store: BundleStore, tmp_path: Path) -> None:
    added = store.add(make(tmp_path / "bundle").directory)
    assert store.size(added.id) == sum(path.stat().st_size for path in Bundle.open(added.directory).directory.iterdir())
    assert store.remove(added.id)
    assert not store.remove(added.id)
    with pytest.raises(BundleError, match="copy it there"):
        store.open(added.id)
    assert CODEBOOK_FILE in added.manifest.files


@pytest.mark.parametrize("name", ["../bundle", "", "0123", "0123456789ABCDEF", "/etc", "0123456789abcdef/x"])
def test_what_is_no_id_never_becomes_a_path(name: str, store: BundleStore) -> None:
    with pytest.raises(BundleError, match="no id"):
        store.path(name)
