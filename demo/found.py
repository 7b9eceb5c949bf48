"""An act of the demo: products that the model has never seen are found, not only retrievable."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Final

from demo.stage import ARRIVAL_SECONDS, SHOWN_ITEMS, Stage
from models.catalogue import CatalogueItem
from models.terminal import shown
from streamer.client.publisher import ItemPublisher
from streamer.events.records import Answer, Query

_SAMPLE: Final = 60
_FIRST: Final = 10
_JUST_PUBLISHED: Final = CatalogueItem(
    id="just-published", title="Aurora solar-powered travel kettle with compass lid, copper"
)


def show_found(stage: Stage) -> None:
    """Asks for a sample of latecomers, and of products that the model knows, by their own words."""
    shop = stage.shop
    stage.act(
        "Found, not only retrievable",
        f"a sample of the {len(shop.late):,} products that the model has never seen, and of those that it knows, each asked by "
        "its own words",
    )
    late, known = (_found_share(stage, part.items) for part in (shop.late, shop.known))
    stage.figures.found_late, stage.figures.found_known = late, known
    stage.say(
        f"Among the first {_FIRST}: [bold]{late:.0%}[/] of the latecomers, {known:.0%} of the products that the model knows."
    )
    if shop.embed is None:
        stage.say(
            "The queries had words alone: this folder has no embedding for them, so that the model answered by itself."
        )
        return
    _show_just_published(stage)


def _found_share(stage: Stage, items: Sequence[CatalogueItem]) -> float:
    chosen = random.Random(7).sample(list(items), min(_SAMPLE, len(items)))
    answers = stage.client.ask_all(_queries(stage, [item.title for item in chosen]), timeout_seconds=ARRIVAL_SECONDS)
    found = [_names(answer, item.id) for answer, item in zip(answers, chosen, strict=True)]
    return sum(found) / len(found)


def _names(answer: Answer, item_id: str) -> bool:
    return any(item.item_id == item_id for item in answer.items)


def _queries(stage: Stage, texts: Sequence[str], limit: int = _FIRST) -> list[Query]:
    if stage.shop.embed is None:
        return [Query(text=text, limit=limit) for text in texts]
    vectors = stage.shop.embed(texts)
    return [
        Query(text=text, embedding=vector.astype("<f4").tobytes(), limit=limit)
        for text, vector in zip(texts, vectors, strict=True)
    ]


def _show_just_published(stage: Stage) -> None:
    """A product that did not exist a second ago."""
    item, embed = _JUST_PUBLISHED, stage.shop.embed
    assert embed is not None
    with ItemPublisher(stage.settings) as publisher:
        started = time.monotonic()
        publisher.update(item.id, embed([item.title])[0], title=item.title)
        publisher.flush()
        stage.live[item.id] = item.title
        stage.wait(lambda: stage.holds(item.id, item.title), ARRIVAL_SECONDS, "the new product did not arrive")
    words = "travel kettle with compass"
    (answer,) = stage.client.ask_all(_queries(stage, [words], SHOWN_ITEMS), timeout_seconds=ARRIVAL_SECONDS)
    seconds = time.monotonic() - started
    stage.say(f"“{shown(item.title)}” is published, and somebody asks for a “{shown(words)}”:")
    stage.show(answer)
    legs = {one.item_id: one.found_by for one in answer.items}
    if item.id in legs:
        stage.say(
            f"Found {1000 * seconds:,.0f} ms after it was published, by {shown(str(legs[item.id]))}: the model never heard of it."
        )
    else:
        stage.say(f"[red]Not found[/] {1000 * seconds:,.0f} ms after it was published.")
