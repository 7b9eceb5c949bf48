"""The steps of a refresh, in their order; each is a command of ``sidstream`` that a person could run.

What must hold: called again after it was killed anywhere, a refresh goes on where it was and never does anything twice that
others see; it ends with the new bundle promoted, or with the one that serves as it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from models.bundles.bundle import Bundle
from models.bundles.codebook_drift import DriftBounds, measure_drift
from models.bundles.new_layout import with_layout
from models.catalogue import Catalogue
from models.sids.layout import Layout
from models.tables.catalogues import read_catalogue
from retriever.refreshing.judging import CanaryBounds, judge
from retriever.refreshing.state import Outcome, RefreshError, RefreshFolder, RefreshState
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.deployments.pipelines import DeploymentError, bundle_path
from streamer.deployments.served import find_serving, served_settings
from streamer.interactions.hit_rates import hit_rates
from streamer.operations.generations.readiness import compared
from streamer.settings import Settings

MISSED: Final = 3  # the exit status of `sidstream evaluate` where a bound is missed
DEFAULT_BOUNDS: Final = ("recall@10-against:low>=-0.02",)
Command = Callable[[Sequence[str | Path]], int]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a refresh. ``since``, ``until``: milliseconds since the epoch; ``newest``: share of that time that is
    measured on; ``fit``: auto (where the codebook has drifted past ``drift``), always or never; ``catalogue``: a folder to learn
    from instead of what the topics hold; ``train`` and ``evaluate``: further options of those commands; ``bounds``: of the
    evaluation; ``share``: of the users, for the canary.
    """

    since: int
    until: int
    newest: float = 0.1
    fit: str = "auto"
    drift: DriftBounds = field(default_factory=DriftBounds)
    catalogue: Path | None = None
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    bounds: tuple[str, ...] = DEFAULT_BOUNDS
    share: float = 0.05
    canary: CanaryBounds = field(default_factory=CanaryBounds)

    def described(self) -> str:
        """In words, what a refresh that was stopped must be asked for again to go on; bounds of the canary may change."""
        return (
            f"fit {self.fit}, newest {self.newest:g}, catalogue {self.catalogue or 'of the topics'}, "
            f"train {' '.join(self.train) or 'as it is'}, evaluate {' '.join(self.evaluate) or 'as it is'}, "
            f"bounds {' '.join(self.bounds)}"
        )


def run_command(arguments: Sequence[str | Path]) -> int:
    """Runs ``sidstream`` with these arguments, its output where ours goes; its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "sidstream", *map(str, arguments)], check=False, env=os.environ
    ).returncode


class Refresh:
    """One refresh over ``folder``; ``run`` may be called again and again until it says how it ended."""

    def __init__(
        self, settings: Settings, wanted: Wanted, folder: RefreshFolder, tell: Tell, command: Command = run_command
    ) -> None:
        self._settings = settings
        self._wanted = wanted
        self._folder = folder
        self._tell = tell
        self._command = command

    def run(self) -> Outcome | None:
        """How it ended; None while its canary is waited for.

        Raises:
            RefreshError: a step has failed, or what serves has changed meanwhile.
        """
        state = self._folder.load() or self._begun()
        if state.asked != self._wanted.described():
            raise RefreshError(
                f"a refresh that was asked for otherwise is under way ({state.asked}): ask for the same, or begin with --anew"
            )
        for step, work in (
            ("catalogue", self._catalogue),
            ("examples", self._examples),
            ("codebook", self._codebook),
            ("train", self._train),
            ("evaluate", self._evaluate),
            ("deploy", self._deploy),
        ):
            if step in state.done or state.outcome is not None:
                continue
            if step != "deploy":
                self._require_same_serving(state)
            state = work(state)
            self._folder.save(state)
            self._tell(f"{step}: {state.done[step]}")
        if state.outcome is None:
            state = self._conclude(state)
        if state.outcome is not None:
            self._folder.end(state)
        return state.outcome

    def _begun(self) -> RefreshState:
        serving = find_serving(self._settings)
        bundle = Bundle.open(self._settings.bundle).id if serving is None else serving.bundle
        if serving is not None and serving.canary is not None:
            raise RefreshError(f"the bundle {serving.canary} is a canary already: promote it or roll it back first")
        wanted = self._wanted
        split = round(wanted.until - (wanted.until - wanted.since) * wanted.newest)
        state = RefreshState(
            asked=wanted.described(), since=wanted.since, split=split, until=wanted.until, serving=bundle
        )
        self._folder.save(state)
        return state

    def _require_same_serving(self, state: RefreshState) -> None:
        serving = find_serving(self._settings)
        if serving is not None and serving.bundle != state.serving:
            raise RefreshError(
                f"the bundle {serving.bundle} answers now, and this refresh began from {state.serving}: begin anew with --anew"
            )

    def _serving_directory(self, state: RefreshState) -> Path:
        return bundle_path(self._settings, state.serving)

    def _catalogue(self, state: RefreshState) -> RefreshState:
        if self._wanted.catalogue is not None:
            return state.with_done("catalogue", f"{self._wanted.catalogue}, as given")
        self._folder.clear(self._folder.catalogue)
        self._do("catalogue", self._folder.catalogue)
        return state.with_done("catalogue", f"{len(Catalogue.read(self._folder.catalogue)):,} items of the topics")

    def _examples(self, state: RefreshState) -> RefreshState:
        counts = []
        for path, since, until in (
            (self._folder.train, state.since, state.split),
            (self._folder.test, state.split, state.until),
        ):
            self._folder.clear(path)
            self._do("examples", "--since", _moment(since), "--until", _moment(until), "--output", path)
            with path.open("rb") as lines:
                counts.append(sum(1 for line in lines if line.strip()))
        learnt, measured = counts
        if not learnt or not measured:
            raise RefreshError(
                f"there are {learnt:,} examples to learn from and {measured:,} to measure on since {_moment(state.since)}: wait "
                "until more was done, or begin anew with an earlier --since or another --newest"
            )
        return state.with_done("examples", f"{learnt:,} to learn from, {measured:,} newer ones to measure on")

    def _codebook(self, state: RefreshState) -> RefreshState:
        """A bundle to train: the one that serves, under the layout that is live now; or one with a new codebook."""
        folder, wanted = self._folder, self._wanted
        folder.clear(folder.bundle)
        serving = Bundle.open(self._serving_directory(state))
        reasons = ["it was asked for"] if wanted.fit == "always" else []
        if wanted.fit == "auto":
            reasons = measure_drift(serving, read_catalogue(self._shop())).past(wanted.drift)
        if reasons:
            self._do("fit", self._shop(), "--bundle", folder.bundle, *_like(serving), "--histories", folder.train)
            return state.with_done("codebook", f"fitted again: {'; '.join(reasons)}")
        shutil.copytree(serving.directory, folder.bundle)
        layout = self._live_layout()
        if layout is None or layout.head_tokens == serving.layout.head_tokens:
            return state.with_done(
                "codebook", f"{serving.manifest.codebook_id} stays, layout {serving.layout.generation}"
            )
        with_layout(Bundle.open(folder.bundle), layout)
        return state.with_done(
            "codebook", f"{serving.manifest.codebook_id} stays, the model learns layout {layout.generation}"
        )

    def _live_layout(self) -> Layout | None:
        """Of the index of what serves on this machine; None without an index here."""
        try:
            with IndexReader(served_settings(self._settings).index) as reader, reader.snapshot() as snapshot:
                return snapshot.live_layout()
        except IndexMissingError:
            return None

    def _train(self, state: RefreshState) -> RefreshState:
        """Goes on where it was stopped: ``train`` keeps its checkpoints beside the bundle."""
        folder = self._folder
        options: list[str | Path] = ["--bundle", folder.bundle, "--examples", folder.train]
        if Bundle.open(self._serving_directory(state)).manifest.language_model is not None:
            options += ["--from", self._serving_directory(state)]
        self._do("train", self._shop(), *options, *self._wanted.train)
        candidate = Bundle.open(folder.bundle, need_model=True)
        return msgspec.structs.replace(state, candidate=candidate.id).with_done(
            "train", f"model {candidate.manifest.model_id}, bundle {candidate.id}"
        )

    def _evaluate(self, state: RefreshState) -> RefreshState:
        folder, wanted = self._folder, self._wanted
        arguments: list[str | Path] = ["evaluate", self._shop(), "--examples", folder.test, "--training", folder.train]
        arguments += [
            "--bundle",
            folder.bundle,
            "--against",
            self._serving_directory(state),
            "--json",
            folder.evaluation,
        ]
        arguments += [part for bound in wanted.bounds for part in ("--require", bound)]
        status = self._command([*arguments, *wanted.evaluate])
        if status == MISSED:
            said = f"a bound is missed ({' '.join(wanted.bounds)}): the bundle {state.serving} stays"
            return msgspec.structs.replace(state, outcome="kept").with_done("evaluate", said)
        if status:
            raise RefreshError(_failed(arguments, status))
        serving, candidate = Bundle.open(self._serving_directory(state)), Bundle.open(folder.bundle)
        try:
            said = compared(folder.evaluation, candidate.manifest, serving.manifest, force=False)
        except DeploymentError as error:  # as `deploy` would say
            return msgspec.structs.replace(state, outcome="kept").with_done("evaluate", str(error))
        return state.with_done("evaluate", f"all bounds are kept ({' '.join(wanted.bounds)}); {said}")

    def _deploy(self, state: RefreshState) -> RefreshState:
        share = ("--share", f"{self._wanted.share:.4%}")
        self._do("deploy", self._folder.bundle, *share, "--evaluation", self._folder.evaluation)
        now = time.time_ns() // 1_000_000
        said = f"the bundle {state.candidate} answers {self._wanted.share:.1%} of the users"
        return msgspec.structs.replace(state, deployed_at=now).with_done("deploy", said)

    def _conclude(self, state: RefreshState) -> RefreshState:
        assert state.candidate is not None
        assert state.deployed_at is not None
        serving = find_serving(self._settings)
        if serving is not None and serving.bundle == state.candidate:  # promoted, by us before we died, or by a person
            return self._ended(state, "promoted", "it answers everybody already")
        if serving is None or serving.canary != state.candidate:
            return self._ended(state, "rolled back", "somebody has taken the canary back")
        rates = hit_rates(self._settings, state.deployed_at)
        seconds = time.time() - state.deployed_at / 1000
        verdict, why = judge(rates.of(state.candidate), rates.of(state.serving), seconds, self._wanted.canary)
        if verdict == "wait":
            self._tell(f"canary: {why}; call again")
            return state
        if verdict == "promote":
            self._do("promote", state.candidate, "--evaluation", self._folder.evaluation)
            return self._ended(state, "promoted", why)
        self._do("rollback")
        return self._ended(state, "rolled back", why)

    def _ended(self, state: RefreshState, outcome: Outcome, why: str) -> RefreshState:
        self._tell(f"canary: {why}")
        return msgspec.structs.replace(state, outcome=outcome).with_done("canary", why)

    def _shop(self) -> Path:
        return self._folder.catalogue if self._wanted.catalogue is None else self._wanted.catalogue

    def _do(self, *arguments: str | Path) -> None:
        if status := self._command(arguments):
            raise RefreshError(_failed(arguments, status))


def _failed(arguments: Sequence[str | Path], status: int) -> str:
    return (
        f"`sidstream {' '.join(map(str, arguments))}` has ended with status {status}, and says above why: mend it and call "
        "`sidstream refresh` again, which goes on there"
    )


def _moment(at: int) -> str:
    """ISO 8601, as ``examples`` takes it."""
    from streamer.interactions.moments import written_moment

    return written_moment(at)


def _like(bundle: Bundle) -> list[str]:
    """Options of ``fit`` that make a codebook of the same shape, and a layout with as many head tokens."""
    manifest, heads = bundle.manifest, len(bundle.layout.head_tokens)
    options = ["--layers", str(manifest.layers), "--size", str(manifest.size)]
    if manifest.embedding_model is not None:
        options += ["--embedding-model", manifest.embedding_model]
    if manifest.embedding:
        options += ["--embedding-note", manifest.embedding]
    if heads == manifest.size:
        return [*options, "--head", "all"]
    return [*options, "--head", "top-k", "--k", str(heads)] if heads else options
