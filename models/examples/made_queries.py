"""Training examples from a catalogue's own text: queries as shoppers type them, and next items of their histories.

Only titles, brands, types, descriptions and histories are read, never judged queries: what is measured on those stays unseen.
Works for any catalogue; where an item has no usable type, the name of the thing is guessed from its title.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.catalogue import CatalogueItem
from models.examples.records import TrainingExample

MAXIMUM_HISTORY: Final = 10  # older purchases say little and make prompts long

_FUNCTION_WORDS: Final = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with", "&", "-", "/", "+", "|")
)
_IRREGULAR: Final = {
    "mouse": "mice",
    "knife": "knives",
    "shelf": "shelves",
    "battery": "batteries",
    "batteries": "battery",
}
# A unit without the figure before it says nothing about a product.
_UNITS: Final = frozenset(
    (
        "cm",
        "mm",
        "ml",
        "kg",
        "lb",
        "ft",
        "ghz",
        "mhz",
        "gb",
        "mb",
        "tb",
        "dpi",
        "mbit/s",
        "gbit/s",
        "pixels",
        "inch",
        "pc",
        "pcs",
    )
)
_PLURAL_SHARE: Final = 0.15
_SWAP_SHARE: Final = 0.15
_TERSE_SHARE: Final = 0.6  # most people leave function words out of a query
_EMPTY_QUERY_SHARE: Final = 0.5  # of examples with a history
_LONGEST_QUERY: Final = 12  # words
# Of the likelihood exp(λ · cosine) of an item given a query: about what fits judged queries best (chorus_icecat).
_SHARPNESS: Final = 30.0

_WORD: Final = re.compile(r"[^\s,;()\[\]\"“”|]+(?:,\d+)?")  # a comma before a digit is a decimal point: "1,00"
# Where the name of a thing ends and its features, sizes or colours begin.
_BREAK: Final = re.compile(r"\s*(?:,(?!\d)|[;()\[\]|])\s*|\s+(?:with|for|[-–—])\s+", re.IGNORECASE)


@dataclass(frozen=True)
class _Parts:
    """An item's text taken apart, lower case: ``before`` describes ``name``, ``extras`` are features, uses, sizes, colours."""

    brand: str
    model: str
    before: tuple[str, ...]
    name: str
    extras: tuple[str, ...]
    title: tuple[str, ...]
    description: tuple[str, ...]


def examples_from_catalogue(
    items: Sequence[CatalogueItem],
    *,
    per_item: int,
    seed: int,
    histories: Mapping[str, Sequence[str]] | None = None,
    per_history: int | None = None,
    longest_history: int = MAXIMUM_HISTORY,
) -> list[TrainingExample]:
    """``per_item`` query examples for every item (equal queries of one item are kept once), then the examples of the histories.

    A history (user → item ids, oldest first) gives one example for each item but the first, or ``per_history`` of them
    drawn at random: the (at most ``longest_history``) items before it, and an empty or short query. Ids that are not
    among ``items`` are left out. Hold back what you evaluate on: every item of a history becomes a target. Same
    arguments, same examples.
    """
    if per_item < 0:
        raise ValueError(f"per_item is {per_item}; it must be 0 or more")
    randomness = random.Random(seed)
    parts = {item.id: _take_apart(item) for item in items}
    examples: list[TrainingExample] = []
    for item in items:
        queries = dict.fromkeys(_query(parts[item.id], randomness) for _ in range(per_item))
        examples.extend(TrainingExample(query=query, item=item.id) for query in queries if query)
    for user, sequence in (histories or {}).items():
        known = [identity for identity in sequence if identity in parts]
        targets: Sequence[int] = range(1, len(known))
        if per_history is not None and per_history < len(targets):
            targets = sorted(randomness.sample(targets, per_history))
        for at in targets:
            has_text = randomness.random() >= _EMPTY_QUERY_SHARE
            examples.append(
                TrainingExample(
                    query=_short_query(parts[known[at]], randomness) if has_text else "",
                    user=user,
                    history=tuple(known[max(0, at - longest_history) : at]),
                    item=known[at],
                )
            )
    return examples


def drawn_from_neighbours(
    examples: Sequence[TrainingExample],
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    nearest: NDArray[np.int64],
    item_ids: Sequence[str],
    *,
    seed: int,
) -> list[TrainingExample]:
    """The same queries, each leading to one of the items that are nearest to it instead of the one that it was made from: so
    near-identical products all learn the queries of each.

    ``queries``: (E, D), one an example, and ``items``: (N, D), in the order of ``item_ids``, rows of length 1; ``nearest``:
    (E, K) rows of ``items``. An item is drawn with a probability proportional to exp(30 · cosine). Same arguments, same examples.
    """
    scores = np.einsum("ed,ekd->ek", queries, items[nearest]).astype(np.float64)
    # The largest of log-probabilities with Gumbel noise is a draw (Gumbel 1954).
    noise = np.random.default_rng(seed).gumbel(size=scores.shape)
    chosen = np.argmax(_SHARPNESS * scores + noise, axis=1)
    rows = np.take_along_axis(nearest, chosen[:, None], axis=1)[:, 0]
    return [msgspec.structs.replace(example, item=item_ids[row]) for example, row in zip(examples, rows, strict=True)]


def example_queries(item: CatalogueItem, *, count: int, seed: int) -> list[str]:
    """``count`` different queries for one item, fewer if its text is too short for so many.

    >>> kettle = CatalogueItem(id="1", title="Alta 1.7 L glass kettle with a filter", brand="Alta", type="kettle")
    >>> all(query == query.lower() for query in example_queries(kettle, count=5, seed=1))
    True
    """
    randomness = random.Random(seed)
    parts = _take_apart(item)
    found = dict.fromkeys(_query(parts, randomness) for _ in range(8 * count))
    return list(found)[:count]


def _take_apart(item: CatalogueItem) -> _Parts:
    brand = item.brand.lower().strip()
    # Function words inside a name stay ("salt and pepper mill"); a query may drop them later.
    title = item.title.lower().replace("(s)", "").strip()
    rest = title.removeprefix(brand).strip(" ,-–|") if brand else title
    chunks = [chunk for chunk in _BREAK.split(rest) if chunk]
    head = _WORD.findall(chunks[0]) if chunks else []
    original = item.title.replace("(s)", "").strip()[-len(rest) :] if rest else ""
    name = _name_words(item.type, head, original)
    at = _position(head, name)
    if at is None:
        before, after = [word for word in head if word not in name], []
    else:
        before, after = head[:at], head[at + len(name) :]
    extras = [" ".join(_WORD.findall(chunk)) for chunk in chunks[1:]]
    if after:
        extras.append(" ".join(after))
    return _Parts(
        brand=brand,
        model=_model(head, name),
        before=tuple(word for word in before if not _is_figure(word) and word not in _FUNCTION_WORDS),
        name=" ".join(name),
        extras=tuple(extra for extra in extras if extra),
        title=tuple(_WORD.findall(title)),
        description=tuple(_WORD.findall(item.description.lower().replace(".", " "))) if item.description else (),
    )


def _is_figure(word: str) -> bool:
    return len(word) < 2 or word in _UNITS or any(letter.isdigit() for letter in word)


def _name_words(kind: str, head: Sequence[str], original: str) -> list[str]:
    """What the thing is called: its type if that is words, else the longest lower-case run of the title, else its last words."""
    if len(kind) > 2 and not any(letter.isdigit() for letter in kind):
        return _WORD.findall(kind.lower())
    best: list[str] = []
    run: list[str] = []
    for word in [*_WORD.findall(original), ""]:
        if word.isalpha() and word.islower() and len(word) > 2 and word not in _FUNCTION_WORDS:
            run.append(word)
            continue
        if len(run) > len(best):
            best = run
        run = []
    if best:
        return best[-3:]
    plain = [word for word in head if not _is_figure(word) and word not in _FUNCTION_WORDS]
    return plain[-2:] or list(head[-2:])


def _position(head: Sequence[str], name: Sequence[str]) -> int | None:
    for at in range(len(head) - len(name) + 1):
        if name and list(head[at : at + len(name)]) == list(name):
            return at
    return None


def _model(head: Sequence[str], name: Sequence[str]) -> str:
    """The model's name: a mixture of letters and digits, else the first word after the brand, if it is not the thing's name."""
    for word in head:
        if len(word) > 3 and any(letter.isdigit() for letter in word) and any(letter.isalpha() for letter in word):
            return word
    first = head[0] if head else ""
    return "" if first in name or _is_figure(first) else first


def _query(parts: _Parts, randomness: random.Random) -> str:
    """One query; the ways to ask are drawn in the shares of the table, those an item has no words for fall back to others."""
    way = randomness.choices(tuple(_SHARES), tuple(_SHARES.values()))[0]
    before, extra = _some(parts.before, 2, randomness), _one(parts.extras, randomness)
    first_words, stretch = parts.title[: randomness.randint(3, 5)], _stretch(parts.description, randomness)
    if way == "title" or (way == "description" and not stretch):
        return _as_typed((" ".join(parts.title),), randomness, inflect=False)
    if way in ("first words", "description"):
        return _as_typed((" ".join(first_words) if way == "first words" else stretch,), randomness, inflect=False)
    phrases = {
        "name": (parts.name,),
        "brand, name": (parts.brand, parts.name),
        "look, name": (before, parts.name),
        "name, extra": (parts.name, extra),
        "look, name, extra": (before, parts.name, extra),
        "brand, look, name": (parts.brand, before, parts.name),
        "model": (parts.brand, parts.model or parts.name),
    }[way]
    return _as_typed(phrases, randomness)


# How people ask, in per cent.
_SHARES: Final = {
    "name": 6, "brand, name": 12, "look, name": 20, "name, extra": 18, "look, name, extra": 14, "brand, look, name": 8,
    "model": 6, "first words": 5, "title": 5, "description": 6,
}  # fmt: skip


def _short_query(parts: _Parts, randomness: random.Random) -> str:
    return _as_typed((_some(parts.before, 1, randomness) if randomness.random() < 0.5 else "", parts.name), randomness)


def _as_typed(phrases: Sequence[str], randomness: random.Random, *, inflect: bool = True) -> str:
    """Makes a query of phrases: no word twice, function words mostly gone, now and then a plural or another order."""
    phrases = [phrase for phrase in phrases if phrase]
    if phrases and inflect and randomness.random() < _PLURAL_SHARE:
        phrases[-1] = _other_number(phrases[-1])
    if randomness.random() < _SWAP_SHARE:
        randomness.shuffle(phrases)
    words = list(dict.fromkeys(word for phrase in phrases for word in _WORD.findall(phrase)))[:_LONGEST_QUERY]
    if randomness.random() < _TERSE_SHARE or (words and words[-1] in _FUNCTION_WORDS):
        words = [word for word in words if word not in _FUNCTION_WORDS] or words
    return " ".join(words)


def _other_number(word: str) -> str:
    """The plural of a phrase in the singular, and the other way round; words that we cannot inflect stay."""
    last = word.rpartition(" ")[2]
    if last in _IRREGULAR:
        return word.removesuffix(last) + _IRREGULAR[last]
    if not last.isalpha() or len(last) < 4:
        return word
    if word.endswith(("ss", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("s"):
        return word.removesuffix("s")
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _one(phrases: Sequence[str], randomness: random.Random) -> str:
    return randomness.choice(phrases) if phrases else ""


def _some(words: Sequence[str], most: int, randomness: random.Random) -> str:
    """One to ``most`` of the words in their order, none if there are none."""
    if not words:
        return ""
    chosen = sorted(randomness.sample(range(len(words)), min(len(words), randomness.randint(1, most))))
    return " ".join(words[place] for place in chosen)


def _stretch(words: Sequence[str], randomness: random.Random) -> str:
    """Three to six neighbouring words, or nothing if there are fewer than three."""
    if len(words) < 3:
        return ""
    length = randomness.randint(3, min(6, len(words)))
    start = randomness.randint(0, len(words) - length)
    return " ".join(words[start : start + length])
