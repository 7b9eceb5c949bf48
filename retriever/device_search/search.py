"""Beam search where the model is: from the prompts to the chosen SIDs nothing comes back to the host.

What must hold: the answer is that of ``beam_search`` over the same tries, score for score up to the order in which a device adds.
That search says what a score is, and it takes over what this one does not cover: codebooks of more than three layers or so many
codewords that their topology is no bitmap, models that do not honour tree attention, batches of more filters than there are
tables. Whether a model's answers are the host's is measured before the first search.

Shapes depend on three numbers alone: queries and prompt length, padded to a few sizes, and beams. Each such *plan* has its
buffers, and on a CUDA device its graph. Nothing is decided twice: what is copied back are the candidates for the pool, and the
host's own ``Pool`` makes the answer of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import structlog
import torch

from models.sids.layout import PADDING, Layout
from models.sids.vocabulary import SidVocabulary
from retriever.device_search.choosing import bits_of, choose
from retriever.device_search.device_topology import DeviceTopology, Legal
from retriever.device_search.graph import Graph
from retriever.device_search.static_passes import StaticPasses
from retriever.search.beam_search import beam_search
from retriever.search.forward_passes import SharedPromptPasses, forward_passes, tolerance_of
from retriever.search.search_parts import (
    Normaliser,
    Pool,
    ScoredSid,
    Trie,
    Tries,
    check_arguments,
    log_probabilities_there,
)
from store.topology.bitmap_topology import BitmapTopology
from store.topology.layout_trie import LayoutTrie

logger = structlog.get_logger(__name__)

LENGTH_STEP: Final = 64  # prompts are padded to a multiple
_PLANS_KEPT: Final = 12
_LAYERS: Final = 3
_PROBE_ITEMS: Final = 64
_PROBE_BEAMS: Final = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """What a plan is made for. ``has_short``: whether SIDs may leave out their layer-2 token."""

    queries: int
    length: int
    beams: int
    normaliser: Normaliser
    has_short: bool


@dataclass(frozen=True, eq=False)
class Chosen:
    """Candidates for the pool, K a query. Of SIDs without layer 2, then of the others: place among beams × M, rising, and
    score, -∞ where there is none; ``first``: (B, K) layer-1 codewords of the beams; ``second``: (B, K) beam × M + codeword of the
    beams after layer 2; ``layer2``: (B, K, M) log-probabilities after the layer-1 tokens, empty without short SIDs.
    """

    short: torch.Tensor
    short_score: torch.Tensor
    full: torch.Tensor
    full_score: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    layer2: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in order."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)


class Plan:
    """The search of one shape: every step on the device."""

    def __init__(self, model: Any, vocabulary: SidVocabulary, topology: DeviceTopology, shape: Shape) -> None:
        self._vocabulary, self._topology, self.shape = vocabulary, topology, shape
        self._passes = StaticPasses(model, shape.queries, shape.length, shape.beams, _LAYERS - 1)
        # Apple's GPUs have no float64.
        self._sums = torch.float32 if model.device.type == "mps" else torch.float64

    def run(
        self,
        token_ids: torch.Tensor,
        real: torch.Tensor,
        after_first: torch.Tensor,
        table: torch.Tensor,
        prefixes: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Prompts (B, L) padded on the left and where they are real, and the fields of ``Legal``: the tensors of ``Chosen``."""
        size, beams, base = self._vocabulary.size, self.shape.beams, self._vocabulary.sid_base
        state = self._passes.start(token_ids, real)
        begins = bits_of(after_first, size).flatten(2).any(dim=2)
        first, score = choose(self._legal_scores(begins, self._after(state, 0, 1)[:, 0]), beams)

        parents = torch.zeros_like(first)
        after = self._after(self._passes.advance(self._fed(first, score, base), parents), 1, 3)
        below = after_first.gather(1, first[:, :, None, None].expand(-1, -1, *after_first.shape[2:]))
        each = score[:, :, None] + self._legal_scores(bits_of(below, size).flatten(2), after)
        short, short_score = choose(each[:, :, size:].flatten(1), beams)
        # Below the worst SID of a full pool nothing can reach it; a pool that is not full has -∞ among these scores.
        worst = short_score.min(dim=1).values[:, None]
        open_ = each[:, :, :size].flatten(1)
        second, score = choose(torch.where(open_ > worst, open_, -torch.inf), beams)

        parents, codeword = second // size, second % size
        state = self._passes.advance(self._fed(codeword, score, base + size), parents)
        prefix = first.gather(1, parents) * size + codeword
        legal = bits_of(self._below(prefix, table, prefixes, rows), size)
        each = score[:, :, None] + self._legal_scores(legal, self._after(state, 2, 3))
        full, full_score = choose(each.flatten(1), beams)
        layer2 = after[:, :, :size] if self.shape.has_short else after[:, :0, :0]
        return short, short_score, full, full_score, first, second, layer2

    def _after(self, state: torch.Tensor, first_layer: int, end_layer: int) -> torch.Tensor:
        return log_probabilities_there(
            self._passes, self._vocabulary, state, first_layer, end_layer, self.shape.normaliser
        )

    def _legal_scores(self, legal: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """A score that is no finite number chooses nothing."""
        return torch.where(legal & torch.isfinite(scores), scores.to(self._sums), -torch.inf)

    def _fed(self, codeword: torch.Tensor, score: torch.Tensor, base: int) -> torch.Tensor:
        """Token ids; where a beam is missing, the token that pads."""
        return torch.where(score > -torch.inf, codeword + base, self._vocabulary.padding_id)

    def _below(
        self, prefix: torch.Tensor, table: torch.Tensor, prefixes: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """(B, K, ⌈M / 8⌉): layer 3 below each prefix c1·M + c2, in the query's table or among its own rows."""
        tables = self._topology.tables
        size = self._vocabulary.size
        of_table = tables[table[:, None], prefix // size, prefix % size]
        same = prefixes[:, None, :] == prefix[:, :, None]
        place = same.to(torch.uint8).argmax(dim=2)
        own = rows.gather(1, place[:, :, None].expand(-1, -1, rows.shape[2]))
        return torch.where(same.any(dim=2, keepdim=True), own, of_table)


def is_for(model: Any) -> bool:
    """Whether a model is where this search pays: on the processor a step's copies cost nothing."""
    return bool(model.device.type != "cpu")


class DeviceSearch:
    """``beam_search`` with its steps on the model's device; for one thread."""

    def __init__(self, model: Any, vocabulary: SidVocabulary) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._topology: DeviceTopology | None = None
        self._plans: dict[Shape, Graph | Plan] = {}

    def search(
        self,
        prompts: list[list[int]],
        trie: Trie | Sequence[Trie],
        *,
        beams: int = 50,
        normaliser: Normaliser = "vocabulary",
    ) -> list[list[ScoredSid]]:
        """As ``beam_search``, in its words and with its errors."""
        check_arguments(prompts, beams)
        tries = list(trie) if isinstance(trie, Sequence) else [trie] * len(prompts)
        layout = Tries(tries, len(prompts)).layout
        found = None
        if layout is not None and (topologies := self._bitmaps(tries)) is not None and self._takes(prompts):
            with torch.inference_mode():
                found = self._search(prompts, topologies, layout, beams, normaliser)
        if found is None:
            return beam_search(self._model, self._vocabulary, prompts, tries, beams=beams, normaliser=normaliser)
        return found

    @property
    def graphs(self) -> tuple[int, int]:
        """How many of the shapes that were searched run as a CUDA graph, and how many there are."""
        graphs = [plan for plan in self._plans.values() if isinstance(plan, Graph) and plan.is_captured]
        return len(graphs), len(self._plans)

    @cached_property
    def works(self) -> bool:
        """Whether this model's answers are the host's, measured once on a made catalogue; else the host searches."""
        reason = self._difference()
        if reason:
            logger.warning("search_on_the_host", model=type(self._model).__name__, reason=reason)
        self._plans.clear()
        return not reason

    def _difference(self) -> str:
        """What keeps this search from being the host's; nothing if nothing does."""
        model, vocabulary, size = self._model, self._vocabulary, self._vocabulary.size
        if not BitmapTopology.fits(vocabulary.layers, size):
            return f"the topology of {vocabulary.layers} layers of {size} codewords is no bitmap"
        random = np.random.default_rng(0)
        topology = BitmapTopology.of([random.integers(size, size=(_PROBE_ITEMS, _LAYERS)).astype(np.uint16)], size)
        prompts = [random.integers(vocabulary.text_size, size=length).tolist() for length in (3, 5)]
        tolerance = tolerance_of(model)
        try:
            for heads in ((), tuple(range(size // 2 + 1))):
                layout = Layout(1, "0" * 16, _LAYERS, size, heads)
                with torch.inference_mode():
                    found = self._search(prompts, [topology] * 2, layout, _PROBE_BEAMS, "vocabulary")
                trie = LayoutTrie(topology, layout)
                expected = beam_search(model, vocabulary, prompts, trie, beams=_PROBE_BEAMS)
                for ours, theirs in zip(found or (), expected, strict=True):
                    mine, others = (np.array([sid.score for sid in sids]) for sids in (ours, theirs))
                    if len(mine) != len(others) or np.abs(mine - others).max() > tolerance * max(
                        1.0, np.abs(others).max()
                    ):
                        return "its scores are others than the host's"
        except Exception as error:  # whatever a family or a device makes of it: the host's search is there
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def _bitmaps(self, tries: Sequence[Trie]) -> list[BitmapTopology] | None:
        topologies = [getattr(trie, "topology", None) for trie in tries]
        bitmaps = [one for one in topologies if isinstance(one, BitmapTopology)]
        return bitmaps if len(bitmaps) == len(tries) else None

    def _takes(self, prompts: list[list[int]]) -> bool:
        longest = max(map(len, prompts)) + self._vocabulary.layers
        return isinstance(forward_passes(self._model, longest), SharedPromptPasses) and self.works

    def _search(
        self,
        prompts: list[list[int]],
        topologies: list[BitmapTopology],
        layout: Layout,
        beams: int,
        normaliser: Normaliser,
    ) -> list[list[ScoredSid]] | None:
        device, size = self._model.device, self._vocabulary.size
        if self._topology is None:
            self._topology = DeviceTopology(size, device)
        queries = 1 << (len(prompts) - 1).bit_length()
        legal = self._topology.legal(topologies, layout, queries)
        if legal is None:
            return None
        length = _padded_length(prompts)
        token_ids = torch.zeros((queries, length), dtype=torch.int64)
        real = torch.zeros((queries, length), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            token_ids[row, length - len(prompt) :] = torch.tensor(prompt)
            real[row, length - len(prompt) :] = True
        shape = Shape(queries, length, beams, normaliser, bool(layout.head_tokens))
        outputs = self._plan(shape).run(*_inputs(token_ids, real, legal, device))
        return self._answers(Chosen(*(output.cpu() for output in outputs)), len(prompts), beams)

    def _plan(self, shape: Shape) -> Graph | Plan:
        plan = self._plans.pop(shape, None)
        if plan is None:
            while len(self._plans) >= _PLANS_KEPT:
                del self._plans[next(iter(self._plans))]
            assert self._topology is not None
            plan = Plan(self._model, self._vocabulary, self._topology, shape)
            if self._model.device.type == "cuda":
                plan = Graph(plan.run, str(shape))
        self._plans[shape] = plan  # the last used comes last
        return plan

    def _answers(self, chosen: Chosen, queries: int, beams: int) -> list[list[ScoredSid]]:
        size = self._vocabulary.size
        short, short_score, full, full_score, first, second = (each[:queries].numpy() for each in chosen.tensors()[:6])
        layer2 = chosen.layer2[:queries].numpy()
        pool = Pool(queries, beams, _LAYERS)
        rows = np.arange(queries)[:, None]
        beam = short // size
        tokens = np.stack((first[rows, beam], short % size + 2 * size, np.full_like(short, PADDING)), axis=2)
        self._into(pool, tokens, short_score, rows * beams + beam)
        above = second[rows, full // size]
        tokens = np.stack((first[rows, above // size], above % size + size, full % size + 2 * size), axis=2)
        self._into(pool, tokens, full_score, np.zeros_like(full))
        return pool.sids(lambda origin, _: layer2[origin // beams, origin % beams])

    def _into(self, pool: Pool, tokens: Any, score: Any, origin: Any) -> None:
        query = np.repeat(np.arange(len(score)), score.shape[1])
        score = score.reshape(-1).astype(np.float64)
        found = pool.candidates(query, score, np.ones(len(score), np.bool_))
        pool.add(
            query[found],
            tokens.reshape(-1, _LAYERS)[found].astype(np.int32),
            score[found],
            origin.reshape(-1)[found].astype(np.intp),
        )


def _padded_length(prompts: list[list[int]]) -> int:
    return -(-max(map(len, prompts)) // LENGTH_STEP) * LENGTH_STEP


def _inputs(token_ids: torch.Tensor, real: torch.Tensor, legal: Legal, device: torch.device) -> list[torch.Tensor]:
    every = (token_ids, real, legal.after_first, legal.table, legal.prefixes, legal.rows)
    return [each.to(device, non_blocking=True) for each in every]
