"""One run of the study: train a model, or read the trained one, and measure what is asked of it.

What must hold: a run that was stopped goes on from its last epoch; what was measured is kept at once and never measured
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt

from models.examples.alignment import AlignmentSettings, alignment_examples
from models.examples.query_codes import QueryCodes
from models.examples.records import TrainingData, TrainingExample, TrainingHistory
from models.language.instruction import DEFAULT_INSTRUCTION, parse_instruction, words_of
from models.language.prompts import PromptBuilder, PromptSettings
from models.sids.census import count_tokens
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.sids.vocabulary import SidVocabulary
from study.data.codebooks import FittedCodebook, fitted
from study.data.datasets import Dataset, TestCase, described_items, load
from study.experiments.configuration import HEAD_SHARE, LayoutChoice, RunChoice
from study.experiments.results import Results, RunResult
from study.measures.arrivals import choose_rule, measure_arrivals
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.evaluation import BEAMS, UNSEEN_WEIGHT, Outcome, bucket_sizes, evaluate
from study.measures.item_search import Found, found_items
from study.measures.legs import measure_legs
from study.measures.per_item import measure_per_item

if TYPE_CHECKING:
    from models.language.tokenizer import TextTokenizer
    from models.training.train_model import Alignment

Kind = Literal[
    "own", "per item", "first token given", "free beams", "naive", "marginal", "legs", "arrivals", "rule for arrivals"
]
Progress = Callable[[str, float], None]  # what is done, and which share of it

FREE_BEAM_CASES: Final = 200
VALID_CASES: Final = 4_000  # that the legs are put together by
_TEXT_TOKENS: Final = 16
_TOKENIZER_SIZE: Final = 3_000
_REPORTS_AN_EPOCH: Final = 20


class Measurement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to measure of a trained model.

    ``own``: recall under the layout that it was trained for; ``per item``: recall at an equal budget of items, nats an item,
    processor time a query; ``first token given``: recall with the first token of the right SID known; ``free beams``: share of
    invalid SIDs without the constraint; ``naive``: recall under another ``layout``, whose SIDs the model reads and writes as if
    it knew them; ``marginal``: the same with the left-out tokens summed over; ``legs``: recall of model, vectors and
    co-occurrence together; ``arrivals``: recall of items that came after training, with the dense leg; ``rule for arrivals``:
    which rule validation chooses for them.
    """

    kind: Kind
    layout: LayoutChoice | None = None

    @property
    def name(self) -> str:
        """Its name in a result."""
        return self.kind if self.layout is None else f"{self.kind}, {self.layout.label}"


OWN: Final = Measurement("own")
PER_ITEM: Final = Measurement("per item")
LEGS: Final = Measurement("legs")
FIRST_GIVEN: Final = Measurement("first token given")
FREE_BEAMS: Final = Measurement("free beams")
ARRIVALS: Final = Measurement("arrivals")
ARRIVALS_RULE: Final = Measurement("rule for arrivals")


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
    """Everything of a run that exists before its model. ``codes``: uint16 (N, L), as the model reads them (layers
    exchanged or not); ``layout``: the one that the model is trained for; ``is_head``: bool (N,), whether an item's layer-2
    token is a head token.
    """

    choice: RunChoice
    data: Dataset
    codebook: FittedCodebook
    codes: npt.NDArray[np.uint16]
    layout: Layout
    is_head: npt.NDArray[np.bool_]
    prompts: PromptBuilder
    scratch: Path

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

    def prompt(self, case: TestCase, layout: Layout) -> list[int]:
        """The prompt of a case, its history read under ``layout``."""
        read = self.codes[list(case.history[-self.choice.max_history :])]
        if self.choice.query_codes:
            assert self.data.query_embeddings is not None
            read = self.codebook.codebook.encode(self.data.query_embeddings[[case.case]])
        titles = [] if self.choice.query_codes else [self.data.titles[item] for item in case.history[-len(read) :]]
        return self.prompts.build(case.query, layout.sid_tokens(read) if len(read) else (), None, titles)

    def embed_training_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings (T, D) of training queries; those of the whole set are kept in the scratch directory."""
        from study.data.sentence_model import embed

        every = [query for query, _ in load(self.data.name).queries]
        path = self.scratch / f"queries-{self.data.name}.npy"
        if not path.is_file():
            np.save(path, embed(every).astype(np.float16))
        row = {query: number for number, query in enumerate(every)}
        found: npt.NDArray[np.float32] = np.load(path)[[row[text] for text in texts]].astype(np.float32)
        return found


def some_cases(data: Dataset, most: int) -> list[TestCase]:
    """At most so many test cases of a set, always the same ones."""
    if len(data.cases) <= most:
        return list(data.cases)
    chosen = np.random.default_rng(0).choice(len(data.cases), size=most, replace=False)
    return [data.cases[number] for number in np.sort(chosen)]


def setting(choice: RunChoice, scratch: Path) -> Setting:
    """Reads the data, fits or reads the codebook, chooses the layout and builds the prompts of a run."""
    data = load(choice.codebook.dataset, choice.part, arrivals=choice.arrivals, choosing=choice.choosing)
    codebook = fitted(choice.codebook, data, scratch)
    size, layers = choice.codebook.size, choice.codebook.layers
    census = count_tokens(codebook.codes[~data.arrived], size)
    head = LayoutChoice(heads="top-k", share=HEAD_SHARE).layout(codebook.codebook.id, census).is_head
    codes = codebook.codes
    if choice.exchanged:
        codes = np.ascontiguousarray(codes[:, [1, 0, *range(2, layers)]])
    instruction = parse_instruction(DEFAULT_INSTRUCTION) if choice.instruction else ()
    tokenizer = _tokenizer(data, choice, words_of(instruction))
    return Setting(
        choice=choice,
        data=data,
        codebook=codebook,
        codes=codes,
        layout=choice.layout.layout(codebook.codebook.id, census),
        is_head=head[codebook.codes[:, HEAD_LAYER_INDEX]],
        prompts=PromptBuilder(
            SidVocabulary(text_size=tokenizer.size, user_buckets=0, layers=layers, size=size),
            tokenizer,
            PromptSettings(
                max_history=choice.max_history if data.histories else int(choice.query_codes),
                max_text_tokens=_TEXT_TOKENS if data.queries or choice.align else 0,
                history_text=choice.history_text,
                instruction=instruction,
            ),
        ),
        scratch=scratch,
    )


def _tokenizer(data: Dataset, choice: RunChoice, words: str) -> TextTokenizer:
    """Trained on the queries, or on titles where only these are read, and on the ``words`` that each prompt has."""
    texts = [query for query, _ in data.queries]
    if not texts and (choice.align or choice.history_text):
        texts = [title for title, arrived in zip(data.titles, data.arrived, strict=True) if not arrived]
    if not texts and not words:
        return cast("TextTokenizer", _NoText())
    from models.language.tokenizer import train_tokenizer

    return train_tokenizer([*texts, *[words] * max(100, len(texts)) * bool(words)], size=_TOKENIZER_SIZE)


def _alignment(here: Setting) -> Alignment | None:
    from models.training.train_model import Alignment

    choice, arrived = here.choice, here.data.arrived
    if not choice.align:
        return None
    items = [item for item in described_items(here.data.name) if not arrived[int(item.id)]]
    settings = AlignmentSettings(choice.align, choice.align_share)
    return Alignment(settings, alignment_examples(items, choice.align), choice.seed)


def run(choice: RunChoice, measurements: Sequence[Measurement], results: Results, progress: Progress) -> RunResult:
    """Trains if need be, measures what is missing, keeps each result at once."""
    result = results.run(choice)
    if result is not None and all(measurement.name in result.measured for measurement in measurements):
        return result
    here = setting(choice, results.scratch)
    weights = results.model_directory(choice)
    if result is None or not weights.is_dir():
        fresh, model = _train(here, results, progress)
        # Trained anew because the weights are gone: what was measured on the same choice still holds.
        result = fresh if result is None else msgspec.structs.replace(fresh, measured=result.measured)
        results.write_run(result)
    else:
        model = _load(weights)
    for number, measurement in enumerate(measurements):
        if measurement.name not in result.measured:
            progress(measurement.name, number / len(measurements))
            result.measured[measurement.name] = measure(here, model, measurement, progress)
            results.write_run(result)
    return result


def _train(here: Setting, results: Results, progress: Progress) -> tuple[RunResult, Any]:
    from models.language.language_model import small_causal_lm
    from models.language.norm_head import plain_state
    from models.training.checkpoints import Checkpoints
    from models.training.fine_tuning import fine_tune
    from models.training.settings import TrainingProgress, TrainingSettings
    from models.training.train_model import training_table

    choice = here.choice
    weights = results.model_directory(choice)
    checkpoints = Checkpoints(results.checkpoints(choice), {"run": choice.key})
    data, codes, rows = _data(here)
    titles = dict(zip(map(str, range(len(here.codes))), here.data.titles, strict=True))
    main = training_table(data, here.prompts, here.layout, rows, codes, titles=titles)
    alignment = _alignment(here)
    table = main if alignment is None else alignment.beside(main, here.prompts, here.layout, rows, codes)
    model = small_causal_lm(
        here.vocabulary,
        hidden_size=choice.hidden_size,
        layers=choice.model_layers,
        heads=choice.heads,
        seed=choice.seed,
        architecture=choice.architecture,
    )
    batch_size = round(choice.batch_size * main.targets / len(main))  # a choice counts histories
    steps_an_epoch = -(-len(main) // choice.batch_size)
    if alignment is not None:  # beside the others, not instead of them
        steps_an_epoch += -(-alignment.settings.targets(main.targets) // batch_size)
    report_every = max(1, steps_an_epoch // _REPORTS_AN_EPOCH)
    curve: list[tuple[float, float]] = []

    def report(now: TrainingProgress) -> None:
        if now.step % report_every == 0 or now.step == now.steps:
            curve.append((round(now.step / steps_an_epoch, 3), round(now.loss, 4)))
            progress("training", now.step / now.steps)

    outcome = fine_tune(
        model,
        table,
        TrainingSettings(
            max_steps=round(choice.epochs * steps_an_epoch),
            batch_size=batch_size,
            learning_rate=choice.learning_rate,
            weight_decay=choice.weight_decay,
            seed=choice.seed,
            layer2_dropout=choice.layer2_dropout,
            dropout=choice.dropout or None,
            loss=choice.loss,
            gamma=choice.gamma,
            report_every=report_every,
        ),
        report,
        checkpoints,
    )
    staged = weights.with_name(weights.name + "-partial")
    model.save_pretrained(str(staged), state_dict=plain_state(model))
    staged.replace(weights)
    checkpoints.remove()
    return RunResult(
        choice=choice,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=outcome.loss,
        seconds=outcome.seconds,
        targets=outcome.examples,
        curve=curve,
    ), model


def _data(here: Setting) -> tuple[TrainingData, npt.NDArray[np.uint16], dict[str, int]]:
    """What is learnt from, the codes (N, L) of its items, and their rows by name."""
    data, codes = here.data, here.codes
    rows = {str(row): row for row in range(len(codes))}
    if data.histories:
        histories = tuple(TrainingHistory(tuple(map(str, history))) for history in data.histories)
        return TrainingData(histories=histories), codes, rows
    examples = TrainingData(
        examples=tuple(TrainingExample(query=query, item=str(item)) for query, item in data.queries)
    )
    if not here.choice.query_codes:
        return examples, codes, rows
    encode = here.codebook.codebook.encode
    named = QueryCodes(list(rows), codes, encode, here.embed_training_queries, here.choice.max_history)
    return named.write_into(examples), named.codes, {name: row for row, name in enumerate(named.item_ids)}


def _load(weights: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(weights), local_files_only=True, use_safetensors=True).eval()


def measure(here: Setting, model: Any, measurement: Measurement, progress: Progress) -> dict[str, Any]:
    """The figures of one measurement: recall by group of items and level, or invalid shares."""
    if measurement.kind == "arrivals":
        return measure_arrivals(here, model, here.scratch / f"arrivals-{here.choice.key}.npz", progress)
    if measurement.kind == "rule for arrivals":
        return choose_rule(here, model, progress)
    if measurement.kind == "per item":
        return _per_item(here, model)
    if measurement.kind == "legs":
        return _legs(here, model, progress)
    if measurement.kind == "free beams":
        from study.measures.free_beams import invalid_shares

        prompts = [here.prompt(case, here.layout) for case in here.cases(FREE_BEAM_CASES)]
        return invalid_shares(model, here.vocabulary, prompts, here.codes, here.layout)
    layout = here.layout
    if measurement.layout is not None:
        layout = measurement.layout.layout(here.codebook.codebook.id, here.census())
    cases = here.cases(here.choice.cases)
    if measurement.kind == "first token given":
        # A case of several relevant items is asked once for each of them.
        asked = [replace(case, relevant=(item,)) for case in cases for item in case.relevant]
        first = here.codes[[case.relevant[0] for case in asked], 0]
        parts = [
            _recall_outcome(
                here,
                model,
                measurement,
                layout,
                [case for case, token in zip(asked, first, strict=True) if token == given],
                np.flatnonzero(here.codes[:, 0] == given),
            )
            for given in np.unique(first)
        ]
        outcome = _together(parts)
    else:
        outcome = _recall_outcome(here, model, measurement, layout, cases, None)
    arrived, head = here.data.arrived[outcome.item], here.is_head[outcome.item]
    groups = {"all": None, "head": head & ~arrived, "tail": ~head & ~arrived}
    if arrived.any():
        groups["new"] = arrived
    return {name: outcome.recalls(chosen) for name, chosen in groups.items()} | {
        "buckets": bucket_sizes(here.codes, layout)
    }


def _recall_outcome(
    here: Setting,
    model: Any,
    measurement: Measurement,
    layout: Layout,
    cases: Sequence[TestCase],
    rows: npt.NDArray[np.integer] | None,
) -> Outcome:
    from retriever.search.beam_search import beam_search

    trie = CatalogueTrie(here.codes, layout, rows)
    # A frozen model goes on reading the histories as it was trained to; "naive" takes the new layout for everything.
    read = layout if measurement.kind == "naive" else here.layout
    decode = partial(beam_search, model, here.vocabulary, trie=trie, beams=BEAMS)
    if measurement.kind == "marginal":
        from retriever.search.marginal_search import marginal_beam_search

        decode = partial(marginal_beam_search, model, here.vocabulary, trie=trie, pinned=here.layout, beams=BEAMS)
    prompts = [here.prompt(case, read) for case in cases]
    return evaluate(decode, prompts, cases, here.data, here.codes, trie, here.reconstructed)


def _per_item(here: Setting, model: Any) -> dict[str, Any]:
    from retriever.search.beam_search import beam_search

    trie = CatalogueTrie(here.codes, here.layout)
    cases = here.cases(here.choice.cases)
    prompts = [here.prompt(case, here.layout) for case in cases]
    decode = partial(beam_search, model, here.vocabulary, trie=trie, beams=BEAMS)
    return measure_per_item(decode, model, here.vocabulary, prompts, cases, trie, here.codes, here.data.popularity)


def _legs(here: Setting, model: Any, progress: Progress) -> dict[str, Any]:
    trie = CatalogueTrie(here.codes, here.layout)

    def search(cases: Sequence[TestCase]) -> list[Found]:
        prompts = [here.prompt(case, here.layout) for case in cases]
        return found_items(
            model,
            here.vocabulary,
            prompts,
            trie,
            here.data.popularity,
            smoothing=UNSEEN_WEIGHT,
            progress=partial(progress, "legs"),
        )

    valid = some_cases(load(here.data.name, "valid"), VALID_CASES)
    return measure_legs(here.data, valid, here.cases(here.choice.cases), search)


def _together(parts: Sequence[Outcome]) -> Outcome:
    first = parts[0]
    return replace(
        first,
        case=np.concatenate([part.case for part in parts]),
        item=np.concatenate([part.item for part in parts]),
        sid_rank=np.concatenate([part.sid_rank for part in parts]),
        sid_rank_without_history=np.concatenate([part.sid_rank_without_history for part in parts]),
        item_ranks={name: np.concatenate([part.item_ranks[name] for part in parts]) for name in first.item_ranks},
    )
