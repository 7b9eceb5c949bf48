"""Records that say everything that decides a result, and their hash.

What must hold: equal records have equal keys on every machine, and a field that is added later with a default changes no
key, so that results are never computed twice.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from study.data.datasets import DatasetName


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    @property
    def key(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of what is said, as JSON with sorted fields."""
        content = msgspec.json.encode([type(self).__name__, self.said()], order="sorted")
        return hashlib.sha256(content).hexdigest()[:12]

    def said(self) -> dict[str, Any]:
        """The fields that differ from their defaults. (``omit_defaults`` compares by identity: a record that went to
        another process would say more.)
        """
        found: dict[str, Any] = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                if field.type is float:
                    value = float(value)
                found[field.name] = value.said() if isinstance(value, Record) else value
        return found


class CodebookChoice(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Codebooks of a set's items. ``method`` "planted": those that a synthetic set was made from; ``co_occurrence``:
    weight of the items' co-occurrence vectors beside their text embedding (0: text alone); ``start``: whether the
    layers' k-means start from the same items; ``embeddings``: what is quantised, the set's own, those of towers trained on its
    training part (where that is histories, on queries made of its texts beside them or not), or in their place as many that are
    spread evenly or unevenly (paper § 3.2).
    """

    dataset: DatasetName
    method: Literal["k-means", "rq-vae", "planted"] = "k-means"
    layers: int = 3
    size: int = 256
    seed: int = 0
    co_occurrence: float = 0.0
    start: Literal["shared", "independent"] = "shared"
    embeddings: Literal["own", "towers", "towers and queries", "uniform", "skewed"] = "own"
