"""The bundles of a retriever as the record ``serving`` has them: loaded beside what answers, exchanged, closed.

What must hold: what answers goes on until what follows it is ready to answer; a fault of what follows it is told and tried again,
and ends nothing. A user never gets a bundle that the record does not give them, but the one that they had while theirs is not
loaded (and main's, while the canary is not).
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from models.errors import SidstreamError
from retriever.answering.metrics import LOAD_FAILURES, show_bundles
from retriever.serving.answering import Answering, CurrentAnswering
from retriever.serving.index_progress import IndexGoal
from retriever.serving.loaded_bundle import LoadedBundle
from retriever.serving.loading import load_bundle
from retriever.serving.pace import Pace, short_turns
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.deployments.follow import ServingFollower
from streamer.deployments.pipelines import DeploymentError, bundle_path, codes_topic_of, index_of
from streamer.events.serving import Serving
from streamer.process.health import Health, Part
from streamer.settings import Settings

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.1
_START_RETRY_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0  # doubled with each attempt that fails
_LONGEST_RETRY_SECONDS: Final = 15.0


@dataclass(frozen=True)
class _Failure:
    """Why a bundle could not be loaded, after how many attempts, and when the next one is due (``time.monotonic``)."""

    reason: str
    attempts: int
    next_at: float


class BundlesOfRecord:
    """Loads what ``follower`` says, first with ``start``, then in a thread of its own: a context manager."""

    def __init__(self, settings: Settings, follower: ServingFollower, health: Health) -> None:
        """``settings``: as they were loaded, of no pipeline."""
        self._settings = settings
        self._follower = follower
        self._health = health
        self._loaded: dict[str, LoadedBundle] = {}
        self._failures: dict[str, _Failure] = {}
        self._goals: dict[str, IndexGoal] = {}
        self._number: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bundles", daemon=True)
        self._current: CurrentAnswering | None = None

    @property
    def current(self) -> CurrentAnswering:
        """What answers. After ``start`` alone."""
        assert self._current is not None, "nothing answers before the start"
        return self._current

    def start(self, stop: threading.Event) -> bool:
        """Loads what answers first; False if ``stop`` was set meanwhile.

        Without a record that is the settings' bundle over the settings' index, which may come later; any other fault of theirs is
        raised (``SidstreamError``). What a record names is waited for, whatever it lacks: it may come, or another record.
        """
        while not stop.is_set():
            serving = self._follower.current
            try:
                main = self._load_main(serving)
            except SidstreamError as error:
                if serving is None and not isinstance(error, IndexMissingError):
                    raise
                self._wait(serving, error, stop)
                continue
            self._loaded[main.id] = main
            self._health.set_ready(Part.INDEX)
            self._health.set_ready(Part.BUNDLE)
            self._current = CurrentAnswering(Answering(main, serving=serving))
            if serving is not None:
                self._load_missing(serving)
                self._exchange(serving)
            self._show(serving)
            return True
        return False

    def _load_main(self, serving: Serving | None) -> LoadedBundle:
        if serving is None:
            return load_bundle(self._settings.bundle, self._settings.index, self._settings)
        return self._load(serving, serving.bundle)

    def _wait(self, serving: Serving | None, error: SidstreamError, stop: threading.Event) -> None:
        self._health.set_ready(
            Part.START
        )  # an indexer may come much later; that is no reason to start this process anew
        self._health.progress()
        if isinstance(error, IndexMissingError):
            self._health.set_unready(Part.INDEX, str(error))
            log.info("waiting_for_index", reason=str(error))
        else:
            assert serving is not None
            LOAD_FAILURES.inc()
            self._health.set_unready(Part.BUNDLE, f"the bundle {serving.bundle} cannot be loaded: {error}")
            log.warning("bundle_not_loaded", bundle=serving.bundle, reason=str(error), next="it is tried again")
        stop.wait(_START_RETRY_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            serving = self._follower.current
            if serving is None:
                continue
            try:
                self._follow(serving)
            except Exception:  # what answers goes on, whatever it is
                log.exception("serving_not_followed", next="what answers goes on; it is tried again")
                self._stop.wait(_LONGEST_RETRY_SECONDS)

    def _follow(self, serving: Serving) -> None:
        if serving.number != self._number:
            self._number = serving.number
            self._failures.clear()
            self._goals.clear()
            self._exchange(serving)  # to what is loaded already, at once
        if self._load_missing(serving):
            self._exchange(serving)
        self._show(serving)

    def _load_missing(self, serving: Serving) -> bool:
        """Loads the first bundle of the record that is not loaded, if its turn has come; whether there is another one now."""
        for bundle in _named(serving):
            failure = self._failures.get(bundle)
            if self._is_loaded(serving, bundle) or (failure is not None and time.monotonic() < failure.next_at):
                continue
            started = time.monotonic()
            try:
                loaded = self._load(serving, bundle)
            except Exception as error:
                if not self._stop.is_set():
                    self._failed(bundle, error)
                return False
            self._failures.pop(bundle, None)
            if (before := self._loaded.get(bundle)) is not None:  # over another index
                self._exchange_from(before, loaded)
            self._loaded[bundle] = loaded
            log.info(
                "bundle_loaded", bundle=bundle, index=str(loaded.index), seconds=round(time.monotonic() - started, 2)
            )
            return True
        return False

    def _is_loaded(self, serving: Serving, bundle: str) -> bool:
        loaded, pipeline = self._loaded.get(bundle), serving.pipeline_of(bundle)
        return loaded is not None and pipeline is not None and loaded.index == index_of(self._settings, pipeline)

    def _load(self, serving: Serving, bundle: str) -> LoadedBundle:
        pipeline = serving.pipeline_of(bundle)
        if pipeline is None:
            raise DeploymentError(
                f"the bundle {bundle} is not deployed, or its codebook has no pipeline: deploy it again"
            )
        index = index_of(self._settings, pipeline)
        if self._current is not None and all(one.index != index for one in self._current.now.bundles):
            self._require_caught_up(index, codes_topic_of(self._settings, pipeline), bundle)
        path = bundle_path(self._settings, bundle)
        if self._current is None:
            return load_bundle(path, index, self._settings, wanted=bundle)
        with short_turns():
            return load_bundle(path, index, self._settings, wanted=bundle, pace=Pace(self._current, self._stop))

    def _require_caught_up(self, index: Path, topic: str, bundle: str) -> None:
        with IndexReader(index) as reader:
            if bundle not in self._goals:
                self._goals[bundle] = IndexGoal.now(self._settings, topic)
            self._goals[bundle].require(self._settings, reader)

    def _failed(self, bundle: str, error: Exception) -> None:
        LOAD_FAILURES.inc()
        reason = str(error) or type(error).__name__
        before = self._failures.get(bundle)
        attempts = 1 if before is None else before.attempts + 1
        seconds = min(_LONGEST_RETRY_SECONDS, _RETRY_SECONDS * 2 ** (attempts - 1))
        self._failures[bundle] = _Failure(reason, attempts, time.monotonic() + seconds)
        if before is None or before.reason != reason:
            log.warning(
                "bundle_not_loaded",
                bundle=bundle,
                reason=reason,
                answers=self.current.now.main.id,
                next="what answers goes on; it is tried again",
                exc_info=None if isinstance(error, SidstreamError) else error,
            )

    def _exchange(self, serving: Serving) -> None:
        """To the record, as far as its bundles are loaded; what nobody needs any more is closed."""
        if self._is_loaded(serving, serving.bundle):
            main, canary = self._loaded[serving.bundle], None
            if serving.canary is not None and serving.canary != main.id and self._is_loaded(serving, serving.canary):
                canary = self._loaded[serving.canary]
            now = self.current.now
            if (now.main, now.canary, now.serving) != (main, canary, serving):
                self.current.exchange(Answering(main, canary, serving))
                log.info(
                    "answers_by",
                    bundle=main.id,
                    canary=None if canary is None else canary.id,
                    share=None if canary is None else serving.share,
                    number=serving.number,
                )
        needed = {*_named(serving), *(one.id for one in self.current.now.bundles)}
        for bundle in self._loaded.keys() - needed:
            _let_go(self._loaded.pop(bundle))
            log.info("bundle_closed", bundle=bundle)

    def _exchange_from(self, before: LoadedBundle, loaded: LoadedBundle) -> None:
        """A bundle that answers from another index by now."""
        now = self.current.now
        main = loaded if now.main is before else now.main
        canary = loaded if now.canary is before else now.canary
        self.current.exchange(Answering(main, canary, now.serving))
        _let_go(before)

    def _show(self, serving: Serving | None) -> None:
        """Health and metrics: what answers, and what is awaited."""
        now = self.current.now
        awaited = [] if serving is None else [one for one in _named(serving) if not self._is_loaded(serving, one)]
        failed = [(bundle, self._failures[bundle]) for bundle in awaited if bundle in self._failures]
        if failed:
            bundle, failure = failed[0]
            self._health.set_unready(
                Part.BUNDLE,
                f"the bundle {bundle} is deployed and cannot be loaded here ({failure.attempts} attempts), so that "
                f"{now.main.id} answers: {failure.reason}",
            )
        else:
            self._health.set_ready(Part.BUNDLE)
        roles = dict.fromkeys(awaited, "awaited") | {now.main.id: "main"}
        if now.canary is not None:
            roles |= {now.canary.id: "canary"}
        show_bundles(roles, now.serving.share if now.serving is not None and now.canary is not None else 0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for loaded in self._loaded.values():
            loaded.close()
        self._loaded.clear()


def _let_go(bundle: LoadedBundle) -> None:
    """Closes it, and collects what it was: the collector comes rarely by itself, and a model is large."""
    bundle.close()
    gc.collect()


def _named(serving: Serving) -> Iterator[str]:
    """The bundles that a record has answer, main first."""
    yield serving.bundle
    if serving.canary is not None:
        yield serving.canary
