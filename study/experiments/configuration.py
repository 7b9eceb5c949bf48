"""What one run of the study is: codebook, layout, model and training, as a record with a key."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.language.instruction import AlignmentTask
from models.sids.head_tokens import all_tokens, no_tokens, top_k, top_p
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.training.losses import Loss
from study.data.choices import CodebookChoice, Record
from study.data.datasets import Part

Heads = Literal["none", "top-k", "random", "top-p", "all"]
HEAD_SHARE: Final = 0.1  # a test item is a head item if its layer-2 token is among this share of the most crowded ones


class LayoutChoice(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Which layer-2 tokens are left out: ``share`` of M for top-k and random, ``p`` for top-p; ``draw``: which random ones."""

    heads: Heads = "none"
    share: float = 0.0
    p: float = 0.0
    draw: int = 0

    @property
    def label(self) -> str:
        """As the tables name it."""
        match self.heads:
            case "none":
                return "full SIDs"
            case "all":
                return "without layer 2"
            case "top-k":
                return f"top@{100 * self.share:g}%"
            case "random":
                return f"random@{100 * self.share:g}%"
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
            case "random":
                drawn = np.random.default_rng(self.draw).permutation(size)[: max(1, round(self.share * size))]
                head_tokens = tuple(np.sort(drawn).tolist())
            case "top-p":
                head_tokens = top_p(counts, self.p)
        return Layout(1, codebook_id, layers, size, head_tokens)


class RunChoice(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One model: what it was trained on and how. ``exchanged``: layers 1 and 2 of the codes swapped (paper table 1);
    ``arrivals``: a tenth of the items came after training; ``choosing``: so did a further tenth, to choose by; ``part``: what
    is measured. ``align``: alignment tasks beside the examples, ``align_share`` of a pass; ``history_text``: first tokens of
    titles behind SIDs; ``instruction``: whether prompts have words. ``user_buckets``: tokens that users are hashed into;
    ``made_queries``: whether half of the histories' items are asked for by a text made of their titles, and each item by some;
    ``codebooks``: by how many codebooks, of seeds one after the other, everything is learnt; ``neighbours``: among how many
    nearest items targets are drawn (``study.experiments.neighbour_targets``).
    """

    codebook: CodebookChoice
    layout: LayoutChoice = LayoutChoice()
    exchanged: bool = False
    arrivals: bool = False
    choosing: bool = False
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
    dropout: float = 0.0
    max_history: int = 20
    query_codes: bool = False
    align: tuple[AlignmentTask, ...] = ()
    align_share: float = 0.2
    history_text: int = 0
    instruction: bool = False
    user_buckets: int = 0
    made_queries: bool = False
    codebooks: int = 1
    neighbours: int = 0
    seed: int = 0
    part: Part = "test"
    cases: int = 5_000

    def __post_init__(self) -> None:
        if self.exchanged and self.layout.heads != "none":
            raise SidstreamError("exchanged layers are measured with full SIDs: leave the layout at none")
        others = self.layout.heads != "none" or self.exchanged or self.query_codes or self.align or self.history_text
        if self.codebooks > 1 and others:
            raise SidstreamError("several codebooks are measured with full SIDs alone: leave the other changes out")
