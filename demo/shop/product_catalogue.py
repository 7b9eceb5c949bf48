"""The demo's catalogue: thousands of plausible products made from word lists by a small grammar, with no download.

A catalogue is a pure function of its size and seed. Titles are unique, no word of substance comes twice in a title, and
departments, types, brands, features and popularity are long-tailed, as they are in a shop.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from demo.shop.product_words import WORDS, ProductType
from demo.shop.shoppers import demonstration_queries, shopper_histories
from demo.shop.text_embedding import DIMENSION, TextEmbedder
from models.catalogue import Catalogue, CatalogueItem, CatalogueQuery

DEFAULT_PRODUCTS: Final = 8_000
DEFAULT_SHOPPERS: Final = 2_000

# Exponents of the rank-frequency laws: the steeper, the longer the tail.
_DEPARTMENT_EXPONENT: Final = 0.5
_TYPE_EXPONENT: Final = 0.6
_BRAND_EXPONENT: Final = 0.9
_WORD_EXPONENT: Final = 0.5
_FAMILY_EXPONENT: Final = 1.1
_LARGEST_FAMILY: Final = 16
_POPULARITY_EXPONENT: Final = 1.2  # of the Pareto law of weights
_LARGEST_WEIGHT: Final = 500.0
_ATTEMPTS_PER_PRODUCT: Final = 200

_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class _Design:
    """One product before it is written down; a family shares all but size and colour."""

    department: str
    product: ProductType
    brand: str
    model: str
    style: int
    kind: str
    material: str
    feature: str
    second_feature: str
    use: str
    size: str
    colour: str


def zipf_choice(choices: Sequence[_Choice], exponent: float, randomness: random.Random) -> _Choice:
    """One of the choices, the r-th (from 1) with a probability in proportion to r ** -exponent."""
    weights = [rank**-exponent for rank in range(1, len(choices) + 1)]
    return randomness.choices(choices, weights)[0]


def product_catalogue(count: int = DEFAULT_PRODUCTS, *, seed: int = 7) -> tuple[CatalogueItem, ...]:
    """``count`` products in random order; ids such as ``camping-00042`` tell the department.

    Raises ValueError when the grammar cannot make that many different titles.
    """
    randomness = random.Random(seed)
    designs: dict[str, _Design] = {}
    attempts = 0
    while len(designs) < count:
        attempts += 1
        if attempts > _ATTEMPTS_PER_PRODUCT * count:
            raise ValueError(f"the grammar made {len(designs)} different titles, not {count}; ask for fewer products")
        for design in _family(randomness):
            title = _title(design)
            if len(designs) < count and not has_repeated_word(title):
                designs.setdefault(title, design)
    rows = list(designs.items())
    randomness.shuffle(rows)
    numbers = dict.fromkeys((department.name for department in WORDS.departments), 0)
    items = []
    for title, design in rows:
        department = design.department
        numbers[department] += 1
        weight = min(randomness.paretovariate(_POPULARITY_EXPONENT), _LARGEST_WEIGHT)
        items.append(
            CatalogueItem(
                id=f"{department.replace(' ', '-')}-{numbers[department]:05}",
                title=title,
                brand=design.brand,
                type=design.product.noun,
                description=_description(design),
                weight=round(weight, 2),
            )
        )
    return tuple(items)


def demo_catalogue(
    count: int = DEFAULT_PRODUCTS, *, shoppers: int = DEFAULT_SHOPPERS, seed: int = 7, dimension: int = DIMENSION
) -> Catalogue:
    """The whole shop: products, embeddings of their text, histories of shoppers, and the demonstration queries that have text."""
    items = product_catalogue(count, seed=seed)
    texts = [query.text for query in demonstration_queries(items) if query.text]
    embedder = TextEmbedder(dimension)
    return Catalogue(
        items=items,
        embeddings=embedder.embed_items(items),
        queries=tuple(CatalogueQuery(str(number), text) for number, text in enumerate(texts)),
        query_embeddings=embedder.embed(texts),
        sequences=shopper_histories(items, shoppers, seed=seed),
    )


def has_repeated_word(title: str) -> bool:
    """Whether a word of four letters or more comes twice, be it in the plural or as part of a compound.

    >>> has_repeated_word("cotton throw with cotton lining"), has_repeated_word("150 x 200 cm throw")
    (True, False)
    """
    stems = [word.removesuffix("s") for word in re.findall(r"[^\W\d_]{4,}", title.lower()) if word not in {"with"}]
    return len(stems) != len(set(stems))


def _family(randomness: random.Random) -> list[_Design]:
    """One model of one brand in a few of its sizes and colours: shops list them as products of their own."""
    department = zipf_choice(WORDS.departments, _DEPARTMENT_EXPONENT, randomness)
    product = zipf_choice(department.types, _TYPE_EXPONENT, randomness)

    def word(choices: Sequence[str]) -> str:
        return zipf_choice(choices, _WORD_EXPONENT, randomness) if choices else ""

    first = _Design(
        department=department.name,
        product=product,
        brand=zipf_choice(department.brands, _BRAND_EXPONENT, randomness),
        model=randomness.choice(WORDS.model_names),
        style=randomness.choices(range(len(_STYLES)), _STYLE_SHARES)[0],
        kind=word(product.kinds),
        material=word(product.materials),
        feature=word(product.features),
        second_feature=word(product.features),
        use=word(product.uses),
        size=word(product.sizes),
        colour=word(product.colours),
    )
    variants = zipf_choice(range(1, _LARGEST_FAMILY + 1), _FAMILY_EXPONENT, randomness)
    return [first] + [
        replace(first, size=word(product.sizes), colour=word(product.colours)) for _ in range(variants - 1)
    ]


# House styles of titles: what is left out where, as real shops differ. {size} is empty where the size comes last.
_STYLES: Final = (
    "{brand} {model} {size} {kind} {material} {noun} with {feature}",
    "{brand} {kind} {material} {noun} with {feature}{comma_size}",
    "{brand} {model} {size} {material} {noun} for {use}",
    "{brand} {kind} {noun} for {use} with {feature}{comma_size}",
    "{brand} {size} {kind} {material} {noun}",
)
_STYLE_SHARES: Final = (40, 20, 20, 10, 10)


def _title(design: _Design) -> str:
    size_last = design.product.size_last
    style = _STYLES[design.style]
    title = style.format(
        brand=design.brand,
        model=design.model,
        size="" if size_last else design.size,
        kind=design.kind,
        material=design.material,
        noun=design.product.noun,
        feature=design.feature,
        use=design.use,
        comma_size=f", {design.size}",
    )
    if size_last and "{comma_size}" not in style:
        title += f", {design.size}"
    if design.colour:
        title += f", {design.colour}"
    return " ".join(title.split())


def _description(design: _Design) -> str:
    words = " ".join(part for part in (design.kind, design.material, design.product.noun) if part)
    article = "An" if words[0].lower() in "aeiou" else "A"
    features = (
        design.feature if design.second_feature == design.feature else f"{design.feature} and {design.second_feature}"
    )
    return f"{article} {words} for {design.use}, with {features}."
