"""From data to a trained model, for the product and for the study alike: unknown items left out, examples of one history
joined, histories and examples each in the table that shares most work, and a model trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.examples.alignment import AlignmentExample, AlignmentSettings
from models.examples.folding import apart, folded
from models.examples.records import TrainingData, TrainingExample, TrainingHistory
from models.examples.streamed import StreamedData
from models.language.dropout import set_dropout
from models.language.families import sees_branches
from models.language.prompts import PromptBuilder
from models.sids.layout import Layout
from models.training.checkpoints import Checkpoints
from models.training.example_table import AlignmentTable, ExampleTable, task_prompts
from models.training.fine_tuning import fine_tune
from models.training.history_table import HistoryTable
from models.training.settings import ProgressCallback, TrainingOutcome, TrainingSettings
from models.training.stored_tables import stored_tables
from models.training.tables import BlockedTable, JoinedTable, TrainingTable, nothing_to_learn


@dataclass(frozen=True)
class Known:
    """Data whose items are all known; ``examples``: left out because their item is not, ``mentions``: unknown items left out
    of histories.
    """

    data: TrainingData
    examples: int
    mentions: int


def known(data: TrainingData, item_rows: Mapping[str, int]) -> Known:
    """``data`` without the items that ``item_rows`` lacks."""
    skipped = mentions = 0
    examples = []
    for example in data.examples:
        if example.item not in item_rows:
            skipped += 1
            continue
        history = tuple(item for item in example.history if item in item_rows)
        mentions += len(example.history) - len(history)
        examples.append(msgspec.structs.replace(example, history=history))
    histories = []
    for whole in data.histories:
        if all(item in item_rows for item in whole.items):
            histories.append(whole)
            continue
        kept = [(item, query) for item, query in zip(whole.items, whole.asked(), strict=True) if item in item_rows]
        missing = [query for item, query in zip(whole.items, whole.asked(), strict=True) if item not in item_rows]
        asked = sum(query is not None for query in missing)
        skipped, mentions = skipped + asked, mentions + len(missing) - asked
        if kept and kept[0][1]:  # has no history any more
            examples.append(TrainingExample(query=kept[0][1], user=whole.user, item=kept[0][0]))
        queries = (None, *(query for _, query in kept[1:]))
        histories.append(TrainingHistory(tuple(item for item, _ in kept), whole.user, queries[: len(kept)]))
    return Known(TrainingData(tuple(histories), tuple(examples)), skipped, mentions)


def training_table(
    data: TrainingData,
    prompts: PromptBuilder,
    layout: Layout,
    item_rows: Mapping[str, int],
    codes: npt.NDArray[np.uint16],
    *,
    titles: Mapping[str, str] | None = None,
    of: str = "training",
    shared: bool = True,
) -> TrainingTable:
    """``data``, all of it known, as rows for a model; ``titles``: of items, for prompts that have them; ``of``: what they are
    called where there is nothing to learn; ``shared``: whether the model can read a history once for all of its targets
    (``sees_branches``).
    """
    found = _table(data, prompts, layout, item_rows, codes, _title_ids(titles, prompts, item_rows, len(codes)), shared)
    if found is None:
        raise nothing_to_learn(of)
    return found


def _table(
    data: TrainingData,
    prompts: PromptBuilder,
    layout: Layout,
    item_rows: Mapping[str, int],
    codes: npt.NDArray[np.uint16],
    title_ids: npt.NDArray[np.int32] | None,
    shared: bool,
) -> TrainingTable | None:
    max_history = prompts.settings.max_history
    joined = folded(data, max_history) if shared else apart(data, max_history)
    histories = [history for history in joined.histories if any(query is not None for query in history.asked()[1:])]
    parts: list[TrainingTable] = []
    if histories:
        parts.append(
            HistoryTable(
                [[item_rows[item] for item in history.items] for history in histories],
                prompts.vocabulary,
                layout,
                codes,
                max_history=max_history,
                heads=[prompts.head(history.user, has_history=True) for history in histories],
                tails=_tails(histories, prompts),
                title_ids=title_ids,
            )
        )
    if joined.examples:
        parts.append(ExampleTable(joined.examples, prompts, layout, item_rows, codes, title_ids))
    return JoinedTable(parts) if len(parts) > 1 else parts[0] if parts else None


def _title_ids(
    titles: Mapping[str, str] | None, prompts: PromptBuilder, item_rows: Mapping[str, int], rows: int
) -> npt.NDArray[np.int32] | None:
    """Tokens of titles (N, T) in the order of the rows of codes; none for what has no title, such as a query that has codes. None
    for prompts without titles.
    """
    if not prompts.settings.history_text:
        return None
    in_order = [""] * rows
    for item, row in item_rows.items():
        in_order[row] = (titles or {}).get(item, "")
    return prompts.title_ids(in_order)


def _tails(histories: list[TrainingHistory], prompts: PromptBuilder) -> list[list[list[int] | None]]:
    """Token ids before the separator for each item of each history, None where the item is no target."""
    asked = [history.asked() for history in histories]
    different = list(dict.fromkeys(query for queries in asked for query in queries if query))
    encoded = zip(different, prompts.tokenizer.encode_batch(different), strict=True)
    tails = {query: prompts.tail(ids, has_history=True) for query, ids in encoded}
    tails[""] = prompts.tail((), has_history=True)
    return [[None if query is None else tails[query] for query in queries] for queries in asked]


@dataclass(frozen=True)
class Alignment:
    """Alignment tasks beside the training data: ``settings``, the ``examples`` they are made of, the ``seed`` of their order."""

    settings: AlignmentSettings
    examples: Sequence[AlignmentExample]
    seed: int = 0

    def longest(self, prompts: PromptBuilder) -> int:
        """Tokens of the longest task with its target."""
        target = max(prompts.vocabulary.layers, prompts.settings.max_text_tokens)
        return max(task_prompts(prompts, task).width for task in self.settings.tasks) + target

    def beside(
        self,
        table: TrainingTable,
        prompts: PromptBuilder,
        layout: Layout,
        item_rows: Mapping[str, int],
        codes: npt.NDArray[np.uint16],
    ) -> TrainingTable:
        """The table and, as its last part, the tasks."""
        tasks = AlignmentTable(
            [example for example in self.examples if example.item in item_rows],
            prompts,
            layout,
            item_rows,
            codes,
            targets=self.settings.targets(table.targets),
            seed=self.seed,
        )
        return JoinedTable([*(table.parts if isinstance(table, JoinedTable) else (table,)), tasks])


def streamed_table(
    data: StreamedData,
    prompts: PromptBuilder,
    layout: Layout,
    item_rows: Mapping[str, int],
    codes: npt.NDArray[np.uint16],
    titles: Mapping[str, str] | None = None,
    *,
    shared: bool = True,
) -> tuple[BlockedTable, int, int]:
    """Tables of streamed data on the disk beside its parts; how many examples were left out because their item is unknown, and
    how many unknown items of histories. Arguments as in ``training_table``.
    """
    title_ids = _title_ids(titles, prompts, item_rows, len(codes))

    def of_part(number: int) -> tuple[TrainingTable | None, int, int]:
        part = known(data.part(number), item_rows)
        return _table(part.data, prompts, layout, item_rows, codes, title_ids, shared), part.examples, part.mentions

    return stored_tables(data, prompts, layout, item_rows, codes, title_ids, of_part, shared=shared)


def train_model(
    model: Any,
    data: TrainingData | StreamedData,
    prompts: PromptBuilder,
    layout: Layout,
    item_rows: Mapping[str, int],
    codes: npt.NDArray[np.uint16],
    settings: TrainingSettings,
    *,
    titles: Mapping[str, str] | None = None,
    alignment: Alignment | None = None,
    validation: TrainingData | None = None,
    progress: ProgressCallback | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainingOutcome:
    """Trains ``model`` in place (``fine_tune``) on all of ``data`` whose items are known, and on the tasks of ``alignment``.

    ``item_rows``: item id → row of ``codes`` (N, L); ``titles``: by item id, for prompts that have them. Raises
    ``SidstreamError`` where nothing of ``data`` or of ``validation`` is known, and for a model whose family
    has no dropout where that is asked for.
    """
    longest = prompts.width + layout.layers
    if settings.dropout is not None:  # a family without any is refused before tables take their time
        set_dropout(model, settings.dropout, lora=settings.lora > 0)
    table: TrainingTable | BlockedTable
    if isinstance(data, StreamedData):
        if alignment is not None:
            raise SidstreamError("alignment tasks need all training data in memory: leave --align or --stream out")
        shared = sees_branches(model, longest)
        table, skipped, mentions = streamed_table(data, prompts, layout, item_rows, codes, titles, shared=shared)
    else:
        usable = known(data, item_rows)
        skipped, mentions = usable.examples, usable.mentions
        shared = not usable.data.histories or sees_branches(model, longest)
        table = training_table(usable.data, prompts, layout, item_rows, codes, titles=titles, shared=shared)
        if alignment is not None:
            table = alignment.beside(table, prompts, layout, item_rows, codes)
    held_out = None
    if validation is not None:
        held = known(validation, item_rows).data
        held_out = training_table(
            held, prompts, layout, item_rows, codes, titles=titles, of="validation", shared=shared
        )
    outcome = fine_tune(model, table, settings, progress, checkpoints, held_out)
    return replace(outcome, skipped=skipped, skipped_mentions=mentions)
