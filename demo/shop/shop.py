"""What the demo's story needs of a catalogue: products known from the start, latecomers, training examples, queries, a fad.

The same story is told on a catalogue of our own making and on any catalogue folder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from demo.shop.fad import FAD_QUERY, fad_products
from demo.shop.product_catalogue import DEFAULT_PRODUCTS, demo_catalogue
from demo.shop.shoppers import DemonstrationQuery, demonstration_queries
from demo.shop.text_embedding import TextEmbedder
from models.catalogue import Catalogue, CatalogueItem
from models.examples.made_queries import examples_from_catalogue
from models.examples.records import TrainingExample

FAD_SIZE: Final = 1_000
_LATE_SHARE: Final = 8  # every eighth product arrives after the model was trained
_SHOWN_QUERIES: Final = 5
# Copies of one product differ by this much of its embedding's length, about as near-identical listings do.
_COPY_NOISE: Final = 0.12


@dataclass(frozen=True, eq=False)
class Fad:
    """Near-identical products that flood in: ``embeddings`` float32 (N, D), and a query that is about them."""

    name: str
    items: tuple[CatalogueItem, ...]
    embeddings: NDArray[np.float32]
    query: str


@dataclass(frozen=True, eq=False)
class Shop:
    """``known`` and ``late`` are catalogues of their own; ``fads`` are candidates, of which the story tells one."""

    name: str
    known: Catalogue
    late: Catalogue
    examples: tuple[TrainingExample, ...]
    queries: tuple[DemonstrationQuery, ...]
    fads: tuple[Fad, ...]
    embedding: str
    codebook_size: int
    epochs: float
    embed: Callable[[Sequence[str]], NDArray[np.float32]] | None = None
    """Texts → embeddings (N, D) in the space of the products', None where there is no way to make them."""

    @property
    def dimension(self) -> int:
        return self.known.dimension


def own_shop(products: int = DEFAULT_PRODUCTS, *, epochs: float = 3.5, fad_size: int = FAD_SIZE) -> Shop:
    """The catalogue of the demo's grammar. ``epochs``: passes of the training over its examples."""
    catalogue = demo_catalogue(products)
    known, late = _split(catalogue)
    flood = fad_products(fad_size)
    fad = Fad("glow-in-the-dark dinosaur water bottles", flood, TextEmbedder().embed_items(flood), FAD_QUERY)
    in_known = {item.id for item in known.items}
    queries = [query for query in demonstration_queries(catalogue.items) if in_known.issuperset(query.history)]
    with_history = [query for query in queries if query.history]
    of_text = [query for query in queries if not query.history]
    return Shop(
        name="a shop of our own making",
        known=known,
        late=late,
        examples=tuple(examples_from_catalogue(known.items, per_item=5, seed=1, histories=catalogue.sequences)),
        queries=tuple(of_text[: _SHOWN_QUERIES - len(with_history[:2])] + with_history[:2]),
        fads=(fad, *_copied_fads(known)),
        embedding="demo.shop.text_embedding: hashed words and letter n-grams, 128 numbers",
        codebook_size=64,
        epochs=epochs,
        embed=TextEmbedder().embed,
    )


def shop_of(directory: Path) -> Shop:
    """A catalogue folder laid out like ``chorus_icecat``; its judged queries are shown, never trained on."""
    catalogue = Catalogue.read(directory)
    known, late = _split(catalogue)
    judged = {query: max(ratings.values(), default=0) for query, ratings in catalogue.qrels.items()}
    texts = [query.text for query in catalogue.queries if judged.get(query.id, 0) >= 3]
    if len(texts) < _SHOWN_QUERIES:
        texts += [" ".join(item.title.split()[:4]) for item in known.items[:: max(1, len(known) // _SHOWN_QUERIES)]]
    shown = random.Random(4).sample(texts, _SHOWN_QUERIES)
    return Shop(
        name=directory.resolve().name,
        known=known,
        late=late,
        examples=tuple(
            examples_from_catalogue(known.items, per_item=4, seed=1, histories=catalogue.sequences, per_history=2)
        ),
        queries=tuple(DemonstrationQuery(text=text, about="a query of the folder", expects=()) for text in shown),
        fads=tuple(_copied_fads(known)),
        embedding=f"as in {directory.resolve().name}",
        codebook_size=128,
        epochs=4.0,
    )


def _split(catalogue: Catalogue) -> tuple[Catalogue, Catalogue]:
    """Every eighth product is late; so few enough histories lose an item."""
    rows = np.arange(len(catalogue))
    late = rows % _LATE_SHARE == _LATE_SHARE - 1

    def part(chosen: NDArray[np.intp]) -> Catalogue:
        return Catalogue(items=tuple(catalogue.items[row] for row in chosen), embeddings=catalogue.embeddings[chosen])

    return part(rows[~late]), part(rows[late])


def _copied_fads(known: Catalogue) -> list[Fad]:
    """Fads of copies of one product each: its embedding with a little noise, its title with an edition's number."""
    noise = np.random.default_rng(5)
    fads = []
    for row in random.Random(6).sample(range(len(known)), 12):
        model = known.items[row]
        vector = known.embeddings[row]
        scale = _COPY_NOISE * float(np.linalg.norm(vector)) / np.sqrt(len(vector))
        copies = vector + noise.normal(scale=scale, size=(FAD_SIZE, len(vector)))
        items = tuple(
            msgspec.structs.replace(model, id=f"fad-{number:05}", title=f"{model.title}, edition {number}")
            for number in range(1, FAD_SIZE + 1)
        )
        fads.append(Fad(f"copies of “{model.title}”", items, copies.astype(np.float32), model.title))
    return fads


def choose_fad(fads: Sequence[Fad], layer2: Sequence[NDArray[np.integer]], head_tokens: Sequence[int]) -> int:
    """The first fad whose fullest layer-2 token is not a head token yet; 0 if there is none.

    ``layer2``: the layer-2 codes of each fad's items.
    """
    for number, codes in enumerate(layer2):
        if int(np.bincount(codes).argmax()) not in head_tokens:
            return number
    return 0
