"""An act of the demo: prices and stock come alone, and queries say what they will have."""

from __future__ import annotations

import zlib
from typing import Final

from demo.stage import ARRIVAL_SECONDS, SHOWN_ITEMS, DemoError, Stage
from models.terminal import shown
from retriever.client import Client
from streamer.client.publisher import ItemPublisher
from streamer.events.records import Answer

_AFFORDABLE: Final = 30.0
_IN_STOCK: Final = {"field": "in_stock", "eq": True}


def price_of(item_id: str) -> float:
    """A made-up price in euros, the same for the same id."""
    return 4.99 + zlib.crc32(item_id.encode()) % 96


def show_filters(stage: Stage) -> None:
    """One item sells out and is gone from the next answer; then "under 30 €, not what I own"."""
    ids = [item_id for item_id in stage.live if item_id not in stage.deleted]
    stage.act(
        "Filters", f"prices and stock of {len(ids):,} products, on a topic of their own: no embedding is sent again"
    )
    with ItemPublisher(stage.settings) as publisher:
        for item_id in ids:
            publisher.update_attributes(item_id, {"price": price_of(item_id), "in_stock": True})
    stage.wait(lambda: _with_attributes(stage) >= len(ids), ARRIVAL_SECONDS, "the prices did not arrive")
    _sell_out(stage)
    _affordable(stage)


def _with_attributes(stage: Stage) -> int:
    with stage.reader.snapshot() as snapshot:
        return snapshot.attribute_count


def _sell_out(stage: Stage) -> None:
    text = next((query.text for query in stage.shop.queries if query.text), "gift")
    before = _ask(stage.client, text, _IN_STOCK)
    if not before.items:
        raise DemoError(f"“{text}” in stock has no answer to go on with")
    stage.say(f"[bold]“{shown(text)}”[/], in stock:")
    stage.show(before)
    gone = before.items[0].item_id
    with ItemPublisher(stage.settings) as publisher:
        publisher.update_attributes(gone, {"price": price_of(gone), "in_stock": False})
    stage.wait(lambda: _sold_out(stage, gone), ARRIVAL_SECONDS, "the sale did not arrive")
    after = _ask(stage.client, text, _IN_STOCK)
    stage.say(f"The first one, {shown(stage.live[gone])}, sells out; the same query again:")
    stage.show(after)
    stage.figures.sold_out_in_answers += sum(item.item_id == gone for item in after.items)


def _sold_out(stage: Stage, item_id: str) -> bool:
    with stage.reader.snapshot() as snapshot:
        [item] = snapshot.find([item_id.encode()])
        attributes = None if item is None else snapshot.attributes([item.number])[0]
    return attributes is not None and attributes.get("in_stock") is False


def _affordable(stage: Stage) -> None:
    with_history = [query for query in stage.shop.queries if query.history]
    owned = with_history[0].history if with_history else tuple(list(stage.live)[:1])
    wanted = {"all": [_IN_STOCK, {"field": "price", "lte": _AFFORDABLE}]}
    answer = stage.client.ask("", history=owned, filter=wanted, limit=SHOWN_ITEMS)
    named = shown("; ".join(stage.live.get(item, item) for item in owned[-1:]))
    stage.say(f"Somebody who owns {named} and has {_AFFORDABLE:.0f} € left; not what is owned, in stock:")
    stage.show(answer)
    prices = [price_of(item.item_id) for item in answer.items]
    if any(price > _AFFORDABLE for price in prices) or {item.item_id for item in answer.items} & set(owned):
        raise DemoError("an answer named what its filter or its history excludes")
    if prices:
        stage.say(f"At {shown(', '.join(f'{price:.2f} €' for price in prices))}.")


def _ask(client: Client, text: str, wanted: dict[str, object]) -> Answer:
    return client.ask(text, filter=wanted, limit=SHOWN_ITEMS)
