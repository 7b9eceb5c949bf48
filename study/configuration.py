"""What one part of the study is: records that say everything that decides a result, and their hash.

What must hold: equal records have equal keys on every machine, and a field that is added later with a default changes no
key, so that results are never computed twice.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.sids.head_tokens import all_tokens, no_tokens, top_k, top_p
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.training.losses import Loss
from study.datasets import DatasetName, Part

Heads = Literal["none", "top-k", "top-p", "all"]
HEAD_SHARE: Final = 0.1  # a test item is a head item if its layer-2 token is among this share of the most crowded ones


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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
                found[field.name] = value.said() if isinstance(value, _Record) else value
        return found


class CodebookChoice(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """Codebooks of a set's items. ``method`` "planted": those that a synthetic set was made from; ``co_occurrence``:
    weight of the items' co-occurrence vectors beside their text embedding (0: text alone); ``start``: whether the
    layers' k-means start from the same items.
    """

    dataset: DatasetName
    method: Literal["k-means", "rq-vae", "planted"] = "k-means"
    layers: int = 3
    size: int = 256
    seed: int = 0
    co_occurrence: float = 0.0
    start: Literal["shared", "independent"] = "shared"


class LayoutChoice(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """Which layer-2 tokens are left out: ``share`` of M for top-k, ``p`` for top-p."""

    heads: Heads = "none"
    share: float = 0.0
    p: float = 0.0

    @property
    def label(self) -> str:
        """As the tables name it."""
        match self.heads:
            case "none":
                return "full SIDs"
            case "all":
                return "without layer 2"
            case "top-k":
                return f"top@{self.share:.0%}"
            case "top-p":
                return f"top@p {self.p:g}"

    def layout(self, codebook_id: str, census: npt.NDArray[np.int64]) -> Layout:
        """The layout for a census (L, M)."""
        layers, size = census.shape
        counts = census[HEAD_LAYER_INDEX]
        match self.heads:
            case "none":
                head_tokens = no_tokens()
            case "all":
                head_tokens = all_tokens(size)
            case "top-k":
                head_tokens = top_k(counts, max(1, round(self.share * size)))
            case "top-p":
                head_tokens = top_p(counts, self.p)
        return Layout(1, codebook_id, layers, size, head_tokens)


class RunChoice(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """One model: what it was trained on and how. ``exchanged``: layers 1 and 2 of the codes swapped (paper table 1);
    ``arrivals``: a tenth of the items came after training; ``part``: what is measured.
    """

    codebook: CodebookChoice
    layout: LayoutChoice = LayoutChoice()
    exchanged: bool = False
    arrivals: bool = False
    architecture: Literal["llama", "qwen", "baichuan"] = "llama"
    hidden_size: int = 128
    model_layers: int = 4
    heads: int = 4
    epochs: float = 6.0
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    loss: Loss = "cross-entropy"
    gamma: float | None = None
    layer2_dropout: float = 0.0
    max_history: int = 20
    query_codes: bool = False
    seed: int = 0
    part: Part = "test"
    cases: int = 5_000

    def __post_init__(self) -> None:
        if self.exchanged and self.layout.heads != "none":
            raise SidstreamError("exchanged layers are measured with full SIDs: leave the layout at none")
