"""The demo's last act: what was bought becomes a model that knows it, and takes over while queries are answered."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from demo.live_queries import LiveQueries
from demo.shop.shop import Fad
from demo.stage import ARRIVAL_SECONDS, Stage
from models.catalogue import CatalogueItem
from models.examples.made_queries import examples_from_catalogue
from models.terminal import shown
from retriever.refreshing.judging import CanaryBounds
from retriever.refreshing.refresh import Refresh, Wanted
from retriever.refreshing.state import RefreshFolder
from streamer.client.interactions import InteractionPublisher
from streamer.deployments.log import read_serving
from streamer.events.records import Query

_RETURNING: Final = 200  # products of the fad that are here to stay
_QUERIES_OF_NEW: Final = 5
_QUERIES_OF_KNOWN: Final = 1
_SAMPLE: Final = 60
_FIRST: Final = 10
_PERIOD_MS: Final = 10 * 60 * 1000  # in which all of it was done
TRAIN: Final = ("--epochs", "5", "--minutes", "0.75", "--learning-rate", "0.001", "--threads", "2")
EVALUATE: Final = ("--cases", "400", "--at", "10")
# The interval of so few cases reaches .04 to either side: the default bound would turn a refresh that is as good away by chance.
BOUNDS: Final = ("recall@10-against:low>=-0.05",)


def show_learning(stage: Stage, fad: Fad) -> None:
    """Shoppers buy what the model has never seen; a refresh learns from it, and the figures say what it changed."""
    stage.act(
        "The fad becomes normal, and the model learns it",
        "what shoppers bought → examples → training from the bundle that serves → evaluation → canary → promotion",
    )
    returning = fad.items[:_RETURNING]
    stage.publish(returning, fad.embeddings[:_RETURNING])
    for item in returning:
        stage.deleted.pop(item.id, None)
    stage.wait(lambda: stage.holds(returning[-1].id, returning[-1].title), ARRIVAL_SECONDS, "the fad did not come back")
    sent = _buy(stage, returning, fad.query)
    stage.say(
        f"{len(returning):,} of the fad are here to stay. {sent:,} interactions: shoppers search, and buy what the model has "
        "never seen, and what it knows."
    )
    sample = random.Random(8).sample([*stage.shop.late.items, *returning], _SAMPLE)
    before, was = _found(stage, sample), read_serving(stage.settings)
    started = time.monotonic()
    queries = [Query(text=query.text, history=query.history, limit=10) for query in stage.shop.queries]
    with LiveQueries(stage.settings, queries, lambda item, _: item in stage.live) as live:
        outcome = _refresh(stage)
        seconds = time.monotonic() - started
        stage.wait(lambda: _answers_by_new(stage, sample[0]), ARRIVAL_SECONDS, "the new bundle did not answer")
    after, now = _found(stage, sample), read_serving(stage.settings)
    figures = stage.figures
    figures.refresh_seconds, figures.refresh_outcome = seconds, str(outcome)
    figures.learnt_before, figures.learnt_after = before, after
    figures.refresh_queries, figures.refresh_unanswered = live.answered, live.unanswered
    figures.refresh_invalid = live.invalid_items
    if was is not None and now is not None:
        stage.say(
            f"Bundle {shown(was.bundle)} answered before, {shown(now.bundle)} answers now: {shown(str(outcome))}."
        )
    stage.say(
        f"By the model alone (words, no embedding) [bold]{after:.0%}[/] of what is new are among the first {_FIRST}, "
        f"{before:.0%} before; {live.answered:,} queries were answered meanwhile, {live.unanswered:,} not."
    )


def _buy(stage: Stage, returning: Sequence[CatalogueItem], asked: str) -> int:
    """Sends what shoppers searched for and bought, in any order within the last ten minutes; how many interactions."""
    bought = [
        (one.query, one.item)
        for one in examples_from_catalogue(stage.shop.late.items, per_item=_QUERIES_OF_NEW, seed=2)
    ]
    bought += [(asked, item.id) for item in returning]
    bought += [(item.title, item.id) for item in returning]
    # Asked anew: what the serving model was trained on would measure its memory.
    known = examples_from_catalogue(stage.shop.known.items, per_item=_QUERIES_OF_KNOWN, seed=5)
    bought += [(one.query, one.item) for one in known]
    drawn = random.Random(9)
    drawn.shuffle(bought)
    end = int(time.time() * 1000)
    with InteractionPublisher(stage.settings) as publisher:
        for number, (text, item) in enumerate(bought):
            at = end - _PERIOD_MS + number * _PERIOD_MS // len(bought)
            publisher.send(f"shopper-{number}", item, "purchase", text=text, at=at)
    return len(bought)


def _found(stage: Stage, items: Sequence[CatalogueItem]) -> float:
    """Share of items among the first ten answers to their own words, which the model alone answers."""
    queries = [Query(text=item.title, limit=_FIRST) for item in items]
    answers = stage.client.ask_all(queries, timeout_seconds=ARRIVAL_SECONDS)
    return sum(
        any(one.item_id == item.id for one in answer.items) for answer, item in zip(answers, items, strict=True)
    ) / len(items)


def _refresh(stage: Stage) -> str | None:
    """A whole refresh, as `sidstream refresh` does it; what its commands say goes into a log."""
    directory = stage.log_directory.parent
    now = int(time.time() * 1000)
    wanted = Wanted(
        since=now - 2 * _PERIOD_MS,
        until=now,
        newest=0.05,
        fit="never",
        train=TRAIN,
        evaluate=EVALUATE,
        bounds=BOUNDS,
        share=0.5,
        canary=CanaryBounds(seconds=0, queries=0),  # a story has no hour to wait
    )
    log = stage.log_directory / "refresh.log"

    def command(arguments: Sequence[str | Path]) -> int:
        environment = {**os.environ, "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": stage.settings.kafka.bootstrap_servers}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sidstream", *map(str, arguments)], env=environment, stdout=output, stderr=output
            )
            while process.poll() is None:
                stage.pipeline.attend()
                time.sleep(0.05)
        return process.returncode

    return Refresh(
        stage.settings,
        wanted,
        RefreshFolder(directory / "refresh"),
        lambda line: stage.say(f"• {shown(line)}"),
        command,
    ).run()


def _answers_by_new(stage: Stage, item: CatalogueItem) -> bool:
    """Whether an answer is by the bundle that serves now: a retriever loads it before it changes over."""
    serving = read_serving(stage.settings)
    [answer] = stage.client.ask_all([Query(text=item.title, limit=1)], timeout_seconds=ARRIVAL_SECONDS)
    return serving is not None and answer.bundle == serving.bundle
