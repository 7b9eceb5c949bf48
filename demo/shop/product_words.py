"""Reads ``product_words.toml``, the word lists of the demo's shop, into records; the file's head says what must hold in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec


class ProductType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One type of product and the words that may describe it; ``noun`` is also ``CatalogueItem.type``."""

    noun: str
    kinds: tuple[str, ...]
    features: tuple[str, ...]
    uses: tuple[str, ...]
    materials: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    size_last: bool = False
    colours: tuple[str, ...] = ()
    goes_with: tuple[str, ...] = ()


class Department(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One department: its brands and types, the most popular first."""

    name: str
    brands: tuple[str, ...]
    types: tuple[ProductType, ...]


class ProductWords(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of the word lists."""

    model_names: tuple[str, ...]
    departments: tuple[Department, ...]


WORDS: Final = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes(), type=ProductWords)
TYPE_OF: Final = {product.noun: product for department in WORDS.departments for product in department.types}
