"""Keys that stay where they are: those of which a move would take something away, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message

from models.bundles.bundle import Bundle
from models.bundles.manifest import BundleError
from models.bundles.store import BundleStore
from streamer.events.records import ITEM_UPDATE, ItemUpdate
from streamer.operations.key_verdicts import AttributesVerdicts, Stays, UpdateVerdicts, bundles_of_pipelines
from streamer.settings import Settings, load_settings
from support.deployed import serving

EMBEDDING = np.ones(8, dtype="<f4").tobytes()


def record(key: bytes, value: bytes | None, **headers: bytes) -> Message:
    stamp = (TIMESTAMP_CREATE_TIME, 1_700_000_000_000)
    return Message(topic="t", partition=0, offset=0, key=key, value=value, headers=[*headers.items()], timestamp=stamp)


def update(key: bytes, embedding: bytes = EMBEDDING, **fields: Any) -> Message:
    return record(key, ITEM_UPDATE.encode(ItemUpdate(embedding=embedding, title="an item", **fields)))


@pytest.fixture
def settings(tiny_bundle: Path, tmp_path: Path) -> Settings:
    return load_settings(bundle=tiny_bundle, bundles=tmp_path / "bundles")


@pytest.fixture(scope="module")
def bundle_of_model(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of another codebook, for embeddings of 4 numbers that are of the model ``small``."""
    from models.bundles.building import FitSettings, fit_bundle

    directory = tmp_path_factory.mktemp("small") / "bundle"
    embeddings = np.random.default_rng(5).normal(size=(100, 4)).astype(np.float32)
    fit_bundle(embeddings, directory, FitSettings(size=4, iterations=2), embedding_model="small")
    return Bundle.open(directory)


def test_updates_that_an_assigner_takes_and_deletions_move(settings: Settings) -> None:
    verdicts = UpdateVerdicts(settings, bundles_of_pipelines(settings, None))
    row = json.dumps({"embedding": [1.0] * 8}).encode()
    assert verdicts([update(b"a"), record(b"b", None), record(b"c", row)]) == {}
    assert verdicts([]) == {}


def test_updates_that_are_refused_or_passed_over_stay_each_for_its_reason(settings: Settings) -> None:
    verdicts = UpdateVerdicts(settings, bundles_of_pipelines(settings, None))
    stay = verdicts(
        [
            update(b"taken"),
            update(b"of another model", embedding_model="small"),
            update(b"too short", EMBEDDING[:4]),
            update(b"not finite", np.full(8, np.nan, dtype="<f4").tobytes()),
            record(b"no event", b"{"),
        ]
    )
    assert stay == {
        b"of another model": Stays.OTHER_MODEL,
        b"too short": Stays.REFUSED,
        b"not finite": Stays.REFUSED,
        b"no event": Stays.REFUSED,
    }


def test_update_moves_only_if_the_assigner_of_every_codebook_takes_it(
    settings: Settings, bundle_of_model: Bundle
) -> None:
    own = Bundle.open(settings.bundle)
    BundleStore(settings.bundles).add(bundle_of_model.directory)
    deployed = serving(own, bundle_of_model, suffixes=["", "-small"])
    bundles = bundles_of_pipelines(settings, deployed)
    assert [bundle.id for bundle in bundles] == [own.id, bundle_of_model.id]
    small = np.ones(4, dtype="<f4").tobytes()
    stay = UpdateVerdicts(settings, bundles)(
        [update(b"a"), update(b"b", small, embedding_model="small"), update(b"c", small), record(b"d", None)]
    )
    # What each passes over the other one takes; the update without a name is of no use to either.
    assert stay == {b"a": Stays.OTHER_MODEL, b"b": Stays.OTHER_MODEL, b"c": Stays.REFUSED}


def test_codebook_whose_bundle_is_not_on_this_machine_is_named(settings: Settings, bundle_of_model: Bundle) -> None:
    deployed = serving(Bundle.open(settings.bundle), bundle_of_model, suffixes=["", "-small"])
    with pytest.raises(BundleError, match=f"{bundle_of_model.id} is not in .*copy it there"):
        bundles_of_pipelines(settings, deployed)


def test_attributes_stay_with_their_item_and_those_that_cannot_be_used_move() -> None:
    items: set[bytes] = set()
    verdicts = AttributesVerdicts(items)
    records = [record(b"a", b'{"attributes": {}}'), record(b"b", b"{"), record(b"\xff", b"{}"), record(b"c", None)]
    assert verdicts(records) == {b"\xff": Stays.REFUSED}
    items.update([b"a", b"c"])
    assert verdicts(records) == {b"a": Stays.WITH_ITEM, b"c": Stays.WITH_ITEM, b"\xff": Stays.REFUSED}
