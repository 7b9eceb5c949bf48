"""Everything of a run that exists before its model: data, codes, layout, prompts, and what is learnt from.

What must hold: prompts and training data are made by the product's functions; nothing that is measured is learnt from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import msgspec
import numpy as np
import numpy.typing as npt

from models.examples.made_queries import examples_from_catalogue
from models.examples.query_codes import QueryCodes
from models.examples.records import TrainingData, TrainingExample, TrainingHistory
from models.language.instruction import DEFAULT_INSTRUCTION, parse_instruction, words_of
from models.language.prompts import PromptBuilder, PromptSettings
from models.sids.census import count_tokens
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.sids.vocabulary import SidVocabulary
from study.data.codebooks import FittedCodebook, fitted
from study.data.datasets import QUERIES_AN_ITEM, TOWERS, Dataset, TestCase, described_items, load
from study.data.own_towers import embed_queries, in_their_space
from study.experiments.configuration import HEAD_SHARE, LayoutChoice, RunChoice
from study.experiments.neighbour_targets import of_histories, of_queries

if TYPE_CHECKING:
    from models.language.tokenizer import TextTokenizer

_TEXT_TOKENS: Final = 16
_TOKENIZER_SIZE: Final = 3_000


class _NoText:
    """Stands for the tokenizer of a model that reads histories alone."""

    size = 0
    begin_id = None

    def encode(self, text: str) -> list[int]:
        return []

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [[] for _ in texts]


@dataclass(frozen=True, eq=False)
class Setting:
    """``views``: the codes, uint16 (N, L), by each of its codebooks, as the model reads them (layers exchanged or not), those of
    a further codebook in a range of their own; ``layout``: the one that the model is trained for; ``is_head``: bool (N,), whether
    an item's layer-2 token is a head token.
    """

    choice: RunChoice
    data: Dataset
    codebook: FittedCodebook
    views: tuple[npt.NDArray[np.uint16], ...]
    layout: Layout
    is_head: npt.NDArray[np.bool_]
    prompts: PromptBuilder
    scratch: Path

    @property
    def codes(self) -> npt.NDArray[np.uint16]:
        """Those of the first codebook."""
        return self.views[0]

    @property
    def vocabulary(self) -> SidVocabulary:
        """The model's token ids."""
        return self.prompts.vocabulary

    @cached_property
    def reconstructed(self) -> npt.NDArray[np.float32]:
        """What the codes say of the embeddings, (N, D)."""
        return self.codebook.codebook.reconstruct(self.codebook.codes)

    def census(self) -> npt.NDArray[np.int64]:
        """Counts (L, M) of the items that were there when the model was trained."""
        return count_tokens(self.codes[~self.data.arrived], self.choice.codebook.size)

    def cases(self, most: int) -> list[TestCase]:
        """The same ``most`` test cases for every run of a set."""
        return some_cases(self.data, most)

    def prompt(self, case: TestCase, layout: Layout, view: int = 0) -> list[int]:
        """The prompt of a case, its history read under ``layout``, by the codebook ``view``. Users have their number as id."""
        read = self.views[view][list(case.history[-self.choice.max_history :])]
        if self.choice.query_codes:
            assert self.data.query_embeddings is not None
            read = self.codebook.codebook.encode(self.data.query_embeddings[[case.case]])
        titles = [] if self.choice.query_codes else [self.data.titles[item] for item in case.history[-len(read) :]]
        sids = layout.sid_tokens(read) if len(read) else ()
        return self.prompts.build(case.query, sids, str(case.case), titles)

    def training_data(self) -> tuple[TrainingData, npt.NDArray[np.uint16], dict[str, int]]:
        """What is learnt from, the codes (N, L) of its items, and their rows by name."""
        rows = {str(row): row for row in range(len(self.codes))}
        if self.data.histories:
            data = histories_of(self.data, self.choice)
            if (count := self.choice.neighbours) > 0:
                beside = of_histories(self.data, self.codebook.vectors, count, self.choice.max_history)
                data = TrainingData(data.histories, (*data.examples, *beside))
        elif self.choice.neighbours:
            data = TrainingData(examples=of_queries(self.data, self._embed_training_queries, self.choice.neighbours))
        else:
            data = TrainingData(
                examples=tuple(TrainingExample(query=query, item=str(item)) for query, item in self.data.queries)
            )
        if len(self.views) > 1:
            return _seen_by_each(data, self.views)
        if not self.choice.query_codes:
            return data, self.codes, rows
        encode = self.codebook.codebook.encode
        named = QueryCodes(list(rows), self.codes, encode, self._embed_training_queries, self.choice.max_history)
        return named.write_into(data), named.codes, {name: row for row, name in enumerate(named.item_ids)}

    def _embed_training_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings (T, D) of training queries; by the sentence model, those of the whole set are kept in the scratch."""
        from study.data.sentence_model import embed

        if self.data.space != "given":
            return embed_queries(self.data, self.choice.codebook.seed, self.scratch, texts)
        every = [query for query, _ in load(self.data.name).queries]
        path = self.scratch / f"queries-{self.data.name}.npy"
        if not path.is_file():
            np.save(path, embed(every).astype(np.float16))
        row = {query: number for number, query in enumerate(every)}
        found: npt.NDArray[np.float32] = np.load(path)[[row[text] for text in texts]].astype(np.float32)
        return found


@cache
def histories_of(data: Dataset, choice: RunChoice) -> TrainingData:
    """The training histories; with ``made_queries`` half of their items asked for by a short text, and queries of all items'
    titles beside them, as ``sidstream train`` makes them of a catalogue.
    """
    if not choice.made_queries:
        return TrainingData(
            histories=tuple(
                TrainingHistory(tuple(map(str, history)), str(user)) for user, history in enumerate(data.histories)
            )
        )
    examples = examples_from_catalogue(
        [item for item in described_items(data.name) if not data.arrived[int(item.id)]],
        per_item=QUERIES_AN_ITEM,
        seed=0,
        histories={str(user): [str(item) for item in history] for user, history in enumerate(data.histories)},
        longest_history=choice.max_history,
    )
    return TrainingData(examples=tuple(examples))


def _seen_by_each(
    data: TrainingData, views: Sequence[npt.NDArray[np.uint16]]
) -> tuple[TrainingData, npt.NDArray[np.uint16], dict[str, int]]:
    """Everything that is learnt once with the codes of each codebook; an item has a name for each."""
    histories: list[TrainingHistory] = []
    examples: list[TrainingExample] = []
    for number in range(len(views)):
        for history in data.histories:
            items = tuple(f"{number}/{item}" for item in history.items)
            histories.append(msgspec.structs.replace(history, items=items))
        for example in data.examples:
            before = tuple(f"{number}/{item}" for item in example.history)
            examples.append(msgspec.structs.replace(example, item=f"{number}/{example.item}", history=before))
    names = [f"{number}/{row}" for number, codes in enumerate(views) for row in range(len(codes))]
    rows = {name: row for row, name in enumerate(names)}
    return TrainingData(tuple(histories), tuple(examples)), np.concatenate(views), rows


def some_cases(data: Dataset, most: int) -> list[TestCase]:
    """At most so many test cases of a set, always the same ones."""
    if len(data.cases) <= most:
        return list(data.cases)
    chosen = np.random.default_rng(0).choice(len(data.cases), size=most, replace=False)
    return [data.cases[number] for number in np.sort(chosen)]


def setting(choice: RunChoice, scratch: Path) -> Setting:
    """Reads the data, fits or reads the codebooks, chooses the layout and builds the prompts of a run."""
    data = load(choice.codebook.dataset, choice.part, arrivals=choice.arrivals, choosing=choice.choosing)
    if choice.codebook.embeddings in TOWERS:
        data = in_their_space(data, choice.codebook.embeddings, choice.codebook.seed, scratch)
    codebook = fitted(choice.codebook, data, scratch)
    size, layers = choice.codebook.size, choice.codebook.layers
    census = count_tokens(codebook.codes[~data.arrived], size)
    head = LayoutChoice(heads="top-k", share=HEAD_SHARE).layout(codebook.codebook.id, census).is_head
    codes = codebook.codes
    if choice.exchanged:
        codes = np.ascontiguousarray(codes[:, [1, 0, *range(2, layers)]])
    views = [codes]
    for further in range(1, choice.codebooks):
        other = msgspec.structs.replace(choice.codebook, seed=choice.codebook.seed + further)
        views.append((fitted(other, data, scratch).codes + further * size).astype(np.uint16))
    layout = choice.layout.layout(codebook.codebook.id, census)
    if choice.codebooks > 1:  # full SIDs
        layout = Layout(1, codebook.codebook.id, layers, size * choice.codebooks)
    instruction = parse_instruction(DEFAULT_INSTRUCTION) if choice.instruction else ()
    tokenizer = _tokenizer(data, choice, words_of(instruction))
    return Setting(
        choice=choice,
        data=data,
        codebook=codebook,
        views=tuple(views),
        layout=layout,
        is_head=head[codebook.codes[:, HEAD_LAYER_INDEX]],
        prompts=PromptBuilder(
            SidVocabulary(
                text_size=tokenizer.size, user_buckets=choice.user_buckets, layers=layers, size=size * choice.codebooks
            ),
            tokenizer,
            PromptSettings(
                max_history=choice.max_history if data.histories else int(choice.query_codes),
                max_text_tokens=_TEXT_TOKENS if data.queries or choice.align or choice.made_queries else 0,
                history_text=choice.history_text,
                instruction=instruction,
            ),
        ),
        scratch=scratch,
    )


def _tokenizer(data: Dataset, choice: RunChoice, words: str) -> TextTokenizer:
    """Trained on the queries, or on titles where only these are read, and on the ``words`` that each prompt has."""
    texts = [query for query, _ in data.queries]
    if choice.made_queries:
        texts = list(histories_of(data, choice).texts())
    elif not texts and (choice.align or choice.history_text):
        texts = [title for title, arrived in zip(data.titles, data.arrived, strict=True) if not arrived]
    if not texts and not words:
        return cast("TextTokenizer", _NoText())
    from models.language.tokenizer import train_tokenizer

    return train_tokenizer([*texts, *[words] * max(100, len(texts)) * bool(words)], size=_TOKENIZER_SIZE)
