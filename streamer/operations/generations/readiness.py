"""Whether a deployed bundle may answer: it can, its index has caught up and is sound, and it was not measured to be worse.

What must hold: each refusal says what is missing and what to do. What would break is refused whatever is forced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from models.bundles.bundle import Bundle, BundleManifest
from models.bundles.store import BundleStore
from store.errors import IndexMissingError
from store.files.environment import writer_of
from store.reading.reader import IndexReader
from streamer.deployments.pipelines import DeploymentError, settings_of
from streamer.events.serving import Serving
from streamer.kafka.admin import describe, require
from streamer.kafka.read_to_end import end_reader
from streamer.operations.status import group_now, held_offsets, records_left
from streamer.operations.verify import examine
from streamer.settings import Settings

_LOOK_SECONDS: Final = 0.5
_READY_SECONDS: Final = 10.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pipeline is: records that were there when it was asked first and that its assigner, then its indexer, has still
    to read; items in its index; processes that run. ``done``: it has all of them.
    """

    updates: int
    codes: int
    items: int
    assigners: int
    indexer: bool
    done: bool


class CatchingUp:
    """Looks at one pipeline until it has what the topics held at the start of this object; updates that come since may wait."""

    def __init__(self, settings: Settings) -> None:
        """``settings``: of the pipeline."""
        topics = settings.topics
        require(settings.kafka, [topics.item_updates, topics.item_codes, topics.item_attributes])
        self._settings = settings
        self._updates = self._ends(topics.item_updates)
        self._attributes = self._ends(topics.item_attributes)
        self._codes: tuple[tuple[int, int], ...] | None = None  # known once the assigner has passed its ends

    def look(self) -> Progress:
        """Where it stands now. Raises as the broker's errors do."""
        settings, topics = self._settings, self._settings.topics
        group = settings.in_cluster(settings.assigner.group)
        committed, assigners = group_now(settings, group, topics.item_updates, len(self._updates))
        with closing(end_reader(settings, "deployments")) as consumer:
            positions = {partition: at.offset for partition, at in committed.items()}
            updates, _ = records_left(consumer, topics.item_updates, self._updates, positions)
            if not updates and self._codes is None:
                self._codes = self._ends(topics.item_codes)
            items, index = self._index()
            held = settings.indexer.partitions
            ends = held_offsets(self._codes or self._ends(topics.item_codes), held)
            codes, _ = records_left(consumer, topics.item_codes, ends, _of_topic(index, topics.item_codes))
            alone = held_offsets(self._attributes, held)
            codes += records_left(consumer, topics.item_attributes, alone, _of_topic(index, topics.item_attributes))[0]
        return Progress(
            updates=updates,
            codes=codes,
            items=items,
            assigners=assigners,
            indexer=writer_of(settings.index) is not None,
            done=self._codes is not None and not codes and index is not None,
        )

    def _ends(self, topic: str) -> tuple[tuple[int, int], ...]:
        [found] = describe(self._settings.kafka, [topic])
        return found.offsets

    def _index(self) -> tuple[int, Mapping[tuple[str, int], int] | None]:
        try:
            with IndexReader(self._settings.index) as reader, reader.snapshot() as snapshot:
                return snapshot.item_count, snapshot.position
        except IndexMissingError:
            return 0, None


def _of_topic(positions: Mapping[tuple[str, int], int] | None, topic: str) -> dict[int, int]:
    return {partition: offset for (name, partition), offset in (positions or {}).items() if name == topic}


def await_caught_up(
    settings: Settings, *, seconds: float | None, progress: Callable[[Progress], None] = lambda _progress: None
) -> None:
    """Return once the pipeline has caught up. ``settings``: its own; ``seconds``: None waits for as long as it takes.

    Raises:
        DeploymentError: not in time; it says how far it is, and which process does not run.
    """
    give_up = None if seconds is None else time.monotonic() + seconds
    catching_up = CatchingUp(settings)
    while True:
        now = catching_up.look()
        progress(now)
        if now.done:
            return
        if give_up is not None and time.monotonic() > give_up:
            raise DeploymentError(_not_caught_up(settings, now))
        time.sleep(_LOOK_SECONDS)


def _not_caught_up(settings: Settings, now: Progress) -> str:
    left = f"{now.updates:,} updates and {now.codes:,} codes are left"
    missing = [name for name, runs in (("assigner", now.assigners > 0), ("indexer", now.indexer)) if not runs]
    if missing:
        start = " and ".join(f"`SIDSTREAM_PIPELINE={settings.pipeline} sidstream {name}`" for name in missing)
        then = f"its {' and '.join(missing)} does not run: `sidstream up` starts it, or run {start}"
    else:
        then = "it goes on: `sidstream deployments` shows how far it is"
    return f"the pipeline of the codebook {settings.pipeline} has not caught up ({left}): {then}"


def require_ready(
    settings: Settings,
    serving: Serving,
    bundle_id: str,
    *,
    evaluation: Path | None,
    force: bool,
    tell: Callable[[str], None],
) -> None:
    """Return if a deployed bundle may answer. ``tell`` hears what was checked, and what was passed over.

    Raises:
        DeploymentError: it is not deployed, or not ready; what to do.
        BundleError: it is not on this machine.
    """
    pipeline = serving.pipeline_of(bundle_id)
    if pipeline is None:
        raise DeploymentError(f"the bundle {bundle_id} is not deployed: `sidstream deploy {bundle_id}` comes first")
    bundle = BundleStore(settings.bundles).open(bundle_id)
    require_answers(bundle, settings)
    own = settings_of(settings, pipeline)
    _require_index(own, pipeline.codebook)
    if pipeline.codebook != serving.codebook_of(serving.bundle):
        if force:
            tell("not asked, by --force: whether its index has caught up and is sound")
        else:
            await_caught_up(own, seconds=_READY_SECONDS)
            found = examine(own.index)
            if found.faults:
                raise DeploymentError(
                    f"the index {own.index} is not sound: {found.faults[0]} Stop its indexer, `sidstream rebuild` it "
                    "(docs/runbook.md), then try again"
                )
            tell(f"its index has caught up and is sound: {found.items:,} items")
    if evaluation is None:
        tell("no --evaluation: whether it finds items as well as what answers now was not compared")
    else:
        store = BundleStore(settings.bundles)
        answering = store.open(serving.bundle).manifest if serving.bundle in store else None
        tell(compared(evaluation, bundle.manifest, answering, force=force))


def require_answers(bundle: Bundle, settings: Settings) -> None:
    """Raises ``DeploymentError`` for a bundle with nothing that could answer."""
    manifest = bundle.manifest
    if manifest.language_model is None and (manifest.dense is None or not settings.retriever.dense):
        raise DeploymentError(
            f"the bundle {bundle.id} has no language model and no dense part that would answer: `sidstream train` it, and "
            "deploy what comes of that; it has the same codebook, and its index is ready by then"
        )


def _require_index(settings: Settings, codebook: str) -> None:
    """Whoever answers from it must find it: not even forced without. Raises ``DeploymentError``."""
    try:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            found = snapshot.codebook_id
    except IndexMissingError as error:
        raise DeploymentError(
            f"there is no index of the codebook {codebook} in {settings.index} yet: its indexer does not run "
            f"(`sidstream up`, or `SIDSTREAM_PIPELINE={codebook} sidstream indexer`)"
        ) from error
    if found != codebook:
        raise DeploymentError(
            f"{settings.index} is an index of the codebook {found}, and not of {codebook}: move it away"
        )


class _System(msgspec.Struct):
    name: str
    differences: dict[str, dict[str, list[float | None]]] = {}
    settings: str = ""


class _Evaluation(msgspec.Struct):
    """What is read of the file that ``sidstream evaluate --json`` writes."""

    systems: list[_System]
    main: int
    about: dict[str, str]


_ALL: Final = "all"
_AGAINST: Final = "against"


def compared(path: Path, manifest: BundleManifest, answering: BundleManifest | None, *, force: bool) -> str:
    """What an evaluation of the bundle against the one that answers says, in words. ``answering``: None if it is not known.

    Raises:
        DeploymentError: it cannot be read, is of another bundle, or against another one, or the bundle is worse beyond chance.
    """
    command = "`sidstream evaluate … --bundle CANDIDATE --against SERVING --json FILE`"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Evaluation)
    except (OSError, msgspec.DecodeError) as error:
        raise DeploymentError(f"{path} is no evaluation ({error}): {command} writes one") from None
    if manifest.model_id is not None and found.about.get("model") != manifest.model_id:
        raise DeploymentError(
            f"{path} is an evaluation of the model {found.about.get('model')}, and this bundle has {manifest.model_id}: {command}"
        )
    other = next((one for one in found.systems if one.name == _AGAINST), None)
    name = f"recall@{found.main}"
    interval = None if other is None else other.differences.get(_ALL, {}).get(name)
    if other is None or interval is None or len(interval) != 3 or None in interval:
        raise DeploymentError(f"{path} does not compare with the bundle that answers: {command}")
    if answering is not None and answering.model_id is not None and f"model {answering.model_id}" not in other.settings:
        raise DeploymentError(
            f"{path} compares with {other.settings or 'another bundle'}, and the model {answering.model_id} answers: {command}"
        )
    difference, low, high = (float(end or 0) for end in interval)
    words = f"{name} differs from the other bundle's by {difference:+.4f} ({low:+.4f} to {high:+.4f})"
    if high < 0 and not force:
        raise DeploymentError(f"{words}: worse beyond chance. Train it further, or --force")
    return words + (": worse, and forced" if high < 0 else "")
