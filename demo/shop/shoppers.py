"""The demo's shoppers: what they bought in which order, and what a newcomer might ask.

A shopper has a project (a home office, a camping trip, a kitchen) and buys what goes with the last purchase, often of the same
brand or in the same colour: so histories say something about the next item.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from demo.shop.product_words import TYPE_OF
from models.catalogue import CatalogueItem

_SHORTEST_HISTORY: Final = 3
_LONGEST_HISTORY: Final = 9
_GOES_WITH_SHARE: Final = 0.75
_SAME_TYPE_SHARE: Final = 0.15  # the rest is a new project
_SAME_BRAND_SHARE: Final = 0.5
_SAME_COLOUR_SHARE: Final = 0.3


class DemonstrationQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A query to show: ``about`` says to a person what it stands for; ``expects`` are types that a good answer has."""

    text: str = ""
    history: tuple[str, ...] = ()
    user: str | None = None
    about: str
    expects: tuple[str, ...]


class _Shelves:
    """Items by type, by type and brand, and by type and colour, each with weights to draw by."""

    def __init__(self, items: Sequence[CatalogueItem]) -> None:
        self._shelves: dict[tuple[str, str], list[CatalogueItem]] = defaultdict(list)
        for item in items:
            for label in ("", f"brand {item.brand}", f"colour {colour_of(item)}"):
                self._shelves[item.type, label].append(item)

    def draw(
        self, kind: str, like: CatalogueItem | None, taken: set[str], randomness: random.Random
    ) -> CatalogueItem | None:
        label, chance = "", randomness.random()
        if like is not None and chance < _SAME_BRAND_SHARE:
            label = f"brand {like.brand}"
        elif like is not None and chance < _SAME_BRAND_SHARE + _SAME_COLOUR_SHARE and colour_of(like):
            label = f"colour {colour_of(like)}"
        for shelf in ((kind, label), (kind, "")):
            choices = [item for item in self._shelves.get(shelf, ()) if item.id not in taken]
            if choices:
                # The square root flattens the tail: histories made of ten best sellers would teach nothing.
                return randomness.choices(choices, [item.weight**0.5 for item in choices])[0]
        return None


def colour_of(item: CatalogueItem) -> str:
    """The colour at the end of a title of the demo's grammar, or an empty string.

    >>> colour_of(CatalogueItem(id="1", title="Alta kettle, 1 L, sage green", type="electric kettle"))
    'sage green'
    """
    last = item.title.rpartition(", ")[2]
    product = TYPE_OF.get(item.type)
    return last if product is not None and last in product.colours else ""


def shopper_histories(items: Sequence[CatalogueItem], shoppers: int, *, seed: int = 7) -> dict[str, tuple[str, ...]]:
    """Shopper → ids of 3 to 9 different items, oldest first. The last item is what the earlier ones should lead to."""
    randomness = random.Random(seed)
    shelves = _Shelves(items)
    types = sorted({item.type for item in items})
    stock = [sum(1 for item in items if item.type == kind) for kind in types]
    histories: dict[str, tuple[str, ...]] = {}
    for number in range(1, shoppers + 1):
        bought: list[CatalogueItem] = []
        kind = randomness.choices(types, stock)[0]
        for _ in range(randomness.randint(_SHORTEST_HISTORY, _LONGEST_HISTORY)):
            item = shelves.draw(kind, bought[-1] if bought else None, {old.id for old in bought}, randomness)
            if item is not None:
                bought.append(item)
            kind = _next_type(kind, types, stock, randomness)
        if len(bought) >= 2:
            histories[f"shopper-{number:05}"] = tuple(item.id for item in bought)
    return histories


def _next_type(kind: str, types: Sequence[str], stock: Sequence[int], randomness: random.Random) -> str:
    chance = randomness.random()
    companions = TYPE_OF[kind].goes_with if kind in TYPE_OF else ()
    if companions and chance < _GOES_WITH_SHARE:
        return randomness.choice(companions)
    if chance < _GOES_WITH_SHARE + _SAME_TYPE_SHARE:
        return kind
    return randomness.choices(types, stock)[0]


_TEXT_QUERIES: Final = (
    ("glass kettle with temperature control", "a product with a feature", ("electric kettle",)),
    ("noise cancelling headphones", "a type in a shopper's words", ("wireless headphones",)),
    ("insulated water bottle for hiking", "a type and a use", ("water bottle",)),
    ("walnut standing desk", "a material and a type", ("standing desk",)),
    ("fjellrast tent", "a brand and a type", ("tent",)),
    ("merino wool jumpers for women", "a plural", ("wool jumper",)),
    ("dinosaur puzzle for kids", "a theme", ("jigsaw puzzle", "soft toy")),
    ("dog bed large breeds washable", "words in no order", ("dog bed",)),
)
_PROJECTS: Final = (
    ("", "bought a standing desk and an office chair: what next?", ("standing desk", "office chair")),
    ("red light", "asks for light, having bought a tent and a sleeping bag", ("tent", "sleeping bag")),
)


def demonstration_queries(items: Sequence[CatalogueItem]) -> tuple[DemonstrationQuery, ...]:
    """Ten queries about a catalogue of the demo's grammar: eight of text, two with a history of its items."""
    best: Mapping[str, CatalogueItem] = {
        item.type: item for item in sorted(items, key=lambda item: (item.weight, item.id))
    }
    texts = [DemonstrationQuery(text=text, about=about, expects=expects) for text, about, expects in _TEXT_QUERIES]
    projects = []
    for text, about, types in _PROJECTS:
        history = tuple(best[kind].id for kind in types if kind in best)
        companions = dict.fromkeys(noun for kind in types for noun in TYPE_OF[kind].goes_with if noun not in types)
        expects = ("head torch",) if text else tuple(companions)
        projects.append(DemonstrationQuery(text=text, history=history, about=about, expects=expects))
    return (*texts, *projects)
