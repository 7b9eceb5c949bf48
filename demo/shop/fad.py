"""The demo's fad: overnight, many copycat sellers list the same glow-in-the-dark dinosaur water bottle.

The base catalogue sells water bottles and has dinosaurs and things that glow, but never together. The fad's titles differ in
seller, size and colour only, so their embeddings nearly coincide: they crowd few codebook tokens. Ids begin with
``fad-``, so that the demo can delete them again.
"""

from __future__ import annotations

import itertools
import random
from typing import Final

from models.catalogue import CatalogueItem

FAD_TYPE: Final = "dinosaur water bottle"
FAD_QUERY: Final = "glow in the dark dinosaur water bottle"

# Copycat names as market places show them: two syllables from a hat, pronounceable and meaning nothing.
_SELLER_BEGINNINGS: Final = (
    "Dino",
    "Glo",
    "Zov",
    "Kidz",
    "Lumi",
    "Raxo",
    "Tiko",
    "Vobu",
    "Yoro",
    "Jura",
    "Mibo",
    "Pexi",
)
_SELLER_ENDINGS: Final = ("ko", "ria", "vex", "nest", "joy", "bop", "zu", "lando", "tix", "mee")
_SIZES: Final = ("500 ml", "350 ml", "400 ml", "750 ml")
_COLOURS: Final = ("green", "blue", "purple", "orange", "pink", "turquoise")
_TITLES: Final = (
    "{seller} glow-in-the-dark dinosaur water bottle for kids, {size}, {colour}",
    "{seller} glow-in-the-dark dinosaur water bottle, {size}, {colour}",
    "{seller} {size} glow-in-the-dark dinosaur water bottle for school, {colour}",
)
_MOST: Final = len(_SELLER_BEGINNINGS) * len(_SELLER_ENDINGS) * len(_SIZES) * len(_COLOURS) * len(_TITLES)


def fad_products(count: int, *, seed: int = 7) -> tuple[CatalogueItem, ...]:
    """``count`` near-identical products with different titles; the same seed gives the same ones in the same order.

    Raises ValueError beyond the number of combinations of seller, size, colour and wording (8,640).
    """
    if not 0 <= count <= _MOST:
        raise ValueError(f"a fad of {count} products was asked for; it can have 0 to {_MOST}")
    randomness = random.Random(seed)
    sellers = [beginning + ending for beginning in _SELLER_BEGINNINGS for ending in _SELLER_ENDINGS]
    combinations = list(itertools.product(_TITLES, sellers, _SIZES, _COLOURS))
    return tuple(
        CatalogueItem(
            id=f"fad-{number:05}",
            title=title.format(seller=seller, size=size, colour=colour),
            brand=seller,
            type=FAD_TYPE,
            description=f"A {colour} water bottle with a dinosaur that glows in the dark.",
            weight=round(min(randomness.paretovariate(1.2), 500.0), 2),
        )
        for number, (title, seller, size, colour) in enumerate(randomness.sample(combinations, count), start=1)
    )
