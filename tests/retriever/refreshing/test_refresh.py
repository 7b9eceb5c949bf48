"""A refresh step by step: stopped anywhere it goes on where it was, and what others see is done once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import retriever.refreshing.refresh as module
from models.bundles.bundle import Bundle
from models.catalogue import Catalogue, CatalogueItem
from retriever.refreshing.judging import CanaryBounds
from retriever.refreshing.refresh import MISSED, Refresh, Wanted
from retriever.refreshing.state import RefreshError, RefreshFolder, RefreshState
from streamer.deployments.pipelines import DeploymentError
from streamer.events.serving import Deployed, Pipeline, Serving
from streamer.interactions.hit_rates import BundleHitRates, HitRates
from streamer.settings import Settings, load_settings

STEPS = ["catalogue", "examples", "examples", "train", "evaluate", "deploy"]
WANTED = Wanted(since=1_000, until=11_000, canary=CanaryBounds(seconds=0, queries=10))


class Killed(BaseException):
    """As if the process had ended here."""


@dataclass
class World:
    """The commands' doings, and the record of what serves."""

    serving: Serving
    model_bundle: Path
    embeddings: NDArray[np.float32]
    asked: list[tuple[str, ...]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    killed_before: int | None = None
    killed_after: int | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    hits: dict[str, tuple[int, int]] = field(default_factory=dict)
    worse: bool = False

    def command(self, arguments: Sequence[str | Path]) -> int:
        number = len(self.asked)
        self.asked.append(tuple(map(str, arguments)))
        if number == self.killed_before:
            raise Killed
        name, *rest = map(str, arguments)
        if not (status := self.statuses.get(name, 0)):
            getattr(self, f"_{name}")(rest)
        if number == self.killed_after:
            raise Killed
        return status

    def _catalogue(self, rest: list[str]) -> None:
        items = tuple(CatalogueItem(id=f"item-{row}", title="") for row in range(100))
        Catalogue(items=items, embeddings=self.embeddings[:100]).write(rest[0])

    def _examples(self, rest: list[str]) -> None:
        output = Path(rest[rest.index("--output") + 1])
        assert not output.exists()
        output.write_text('{"item": "item-1", "query": "one"}\n' * 3)

    def _fit(self, rest: list[str]) -> None:
        assert not Path(rest[rest.index("--bundle") + 1]).exists()
        self._train(rest)

    def _train(self, rest: list[str]) -> None:
        directory = Path(rest[rest.index("--bundle") + 1])
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.model_bundle, directory)

    def _evaluate(self, rest: list[str]) -> None:
        assert Path(rest[rest.index("--against") + 1]).is_dir()

    def _deploy(self, rest: list[str]) -> None:
        bundle = Bundle.open(rest[0]).id
        deployed = {one.bundle: one for one in self.serving.deployed} | {
            bundle: Deployed(bundle=bundle, codebook=self.serving.pipelines[0].codebook, since=1)
        }
        self._change(canary=bundle, share=0.05, deployed=tuple(deployed.values()))

    def _promote(self, rest: list[str]) -> None:
        self._change(bundle=rest[0], previous=self.serving.bundle, canary=None)

    def _rollback(self, rest: list[str]) -> None:
        assert not rest
        self._change(canary=None)

    def _change(self, **fields: object) -> None:
        changed = msgspec.structs.replace(self.serving, **fields)
        if changed != self.serving:
            self.seen.append(f"{changed.bundle[:4]} {changed.canary and changed.canary[:4]}")
        self.serving = changed

    def compared(self, *_: object, **__: object) -> str:
        if self.worse:
            raise DeploymentError("worse beyond chance")
        return "no worse"

    def rates(self, *_: object) -> HitRates:
        def of(bundle: str) -> BundleHitRates:
            hits, answered = self.hits.get(bundle, (0, 0))
            return BundleHitRates(bundle=bundle, answered=answered, interacted=hits, hits={"any": {10: hits}})

        return HitRates(since=0, until=1, bundles=tuple(map(of, self.hits)), interactions=0, unmatched=0)


@pytest.fixture
def world(
    tiny_bundle: Path,
    tiny_model_bundle: Path,
    tiny_embeddings: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
) -> World:
    """A bundle without a model serves; training gives one with a model."""
    serving = Bundle.open(settings.bundle)
    codebook = serving.manifest.codebook_id
    record = Serving(
        bundle=serving.id,
        deployed=(Deployed(bundle=serving.id, codebook=codebook, since=1),),
        pipelines=(Pipeline(codebook=codebook, bundle=serving.id, since=1),),
    )
    made = World(record, tiny_model_bundle, tiny_embeddings)
    new = Bundle.open(tiny_model_bundle).id
    made.hits = {serving.id: (300, 1_000), new: (30, 100)}
    monkeypatch.setattr(module, "find_serving", lambda _: made.serving)
    monkeypatch.setattr(module, "served_settings", lambda own: own)
    monkeypatch.setattr(module, "hit_rates", made.rates)
    monkeypatch.setattr(module, "compared", made.compared)
    return made


@pytest.fixture
def settings(tiny_bundle: Path, tmp_path: Path) -> Settings:
    return load_settings(bundle=tiny_bundle, bundles=tmp_path / "bundles", index=tmp_path / "index")


def refresh(settings: Settings, world: World, work: Path, wanted: Wanted = WANTED) -> Refresh:
    return Refresh(settings, wanted, RefreshFolder(work), lambda _: None, world.command)


def test_refresh_trains_measures_deploys_and_promotes_a_bundle_that_is_no_worse(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    old, new = world.serving.bundle, Bundle.open(world.model_bundle).id
    assert refresh(settings, world, tmp_path / "work").run() == "promoted"
    assert [command[0] for command in world.asked] == [*STEPS, "promote"]
    assert (world.serving.bundle, world.serving.previous) == (new, old)
    learnt, measured = world.asked[1], world.asked[2]
    assert learnt[learnt.index("--until") + 1] == measured[measured.index("--since") + 1] == "1970-01-01T00:00:10.000Z"
    [ended] = (tmp_path / "work").iterdir()
    assert ended.name == "1970-01-01T00-00-11"
    assert not (ended / "catalogue").exists()
    kept = msgspec.json.decode((ended / "state.json").read_bytes(), type=RefreshState)
    assert kept.until == 11_000


@pytest.mark.parametrize("place", range(len(STEPS) + 1))
@pytest.mark.parametrize("when", ["killed_before", "killed_after"])
def test_refresh_that_is_killed_at_any_command_goes_on_and_others_see_each_change_once(
    settings: Settings, world: World, tmp_path: Path, place: int, when: str
) -> None:
    setattr(world, when, place)
    old, new = world.serving.bundle[:4], Bundle.open(world.model_bundle).id[:4]
    with pytest.raises(Killed):
        refresh(settings, world, tmp_path / "work").run()
    assert refresh(settings, world, tmp_path / "work").run() == "promoted"
    assert world.seen == [f"{old} {new}", f"{new} None"]
    assert len(world.asked) <= len(STEPS) + 3  # at the most one command, and its step, again


def test_missed_bound_of_the_evaluation_leaves_what_serves_as_it_is(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    world.statuses["evaluate"] = MISSED
    assert refresh(settings, world, tmp_path / "work").run() == "kept"
    assert not world.seen


def test_bundle_that_is_worse_beyond_chance_is_not_deployed_whatever_the_bounds_allow(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    world.worse = True
    assert refresh(settings, world, tmp_path / "work").run() == "kept"
    assert not world.seen


def test_canary_is_waited_for_over_several_calls_and_rolled_back_if_it_is_worse(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    old, new = world.serving.bundle, Bundle.open(world.model_bundle).id
    world.hits[new] = (1, 5)
    one = refresh(settings, world, tmp_path / "work")
    assert one.run() is None
    assert one.run() is None
    assert world.serving.canary == new
    world.hits[new] = (10, 200)
    assert one.run() == "rolled back"
    assert (world.serving.bundle, world.serving.canary) == (old, None)
    assert [command[0] for command in world.asked] == [*STEPS, "rollback"]


def test_step_that_fails_is_told_with_its_command_and_done_again_at_the_next_call(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    world.statuses["train"] = 1
    with pytest.raises(RefreshError, match=r"sidstream train .* status 1"):
        refresh(settings, world, tmp_path / "work").run()
    del world.statuses["train"]
    assert refresh(settings, world, tmp_path / "work").run() == "promoted"
    assert [command[0] for command in world.asked] == [*STEPS[:4], *STEPS[3:], "promote"]


def test_refresh_that_is_under_way_is_not_mixed_with_another_one(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    world.killed_before = 3
    with pytest.raises(Killed):
        refresh(settings, world, tmp_path / "work").run()
    with pytest.raises(RefreshError, match="--anew"):
        refresh(settings, world, tmp_path / "work", replace(WANTED, fit="never")).run()
    later = replace(WANTED, since=2_000, until=12_000)  # as cron asks an hour later
    assert refresh(settings, world, tmp_path / "work", later).run() == "promoted"


def test_refresh_stops_where_another_bundle_answers_than_it_began_from(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    world.killed_before = 3
    with pytest.raises(Killed):
        refresh(settings, world, tmp_path / "work").run()
    world.serving = msgspec.structs.replace(world.serving, bundle="0" * 16)
    with pytest.raises(RefreshError, match="0000000000000000 answers now"):
        refresh(settings, world, tmp_path / "work").run()


def test_codebook_that_is_to_be_fitted_again_keeps_its_shape(settings: Settings, world: World, tmp_path: Path) -> None:
    assert refresh(settings, world, tmp_path / "work", replace(WANTED, fit="always")).run() == "promoted"
    [fit] = [command for command in world.asked if command[0] == "fit"]
    assert fit[fit.index("--size") + 1] == "16"
    assert fit[fit.index("--layers") + 1] == "3"


def test_time_without_anything_to_measure_on_is_told(settings: Settings, world: World, tmp_path: Path) -> None:
    def nothing(arguments: Sequence[str | Path]) -> int:
        status = world.command(arguments)
        if arguments[0] == "examples" and len([one for one in world.asked if one[0] == "examples"]) == 2:
            Path(arguments[-1]).write_text("")
        return status

    with pytest.raises(RefreshError, match="3 examples to learn from and 0 to measure on"):
        Refresh(settings, WANTED, RefreshFolder(tmp_path / "work"), lambda _: None, nothing).run()
