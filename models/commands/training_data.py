"""What `sidstream train` learns from and validates on: the files that it is given, or what the catalogue holds; and what it says
of that, of its steps and of what came of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from models.errors import SidstreamError
from models.progress import WorkProgress
from models.terminal import shown

if TYPE_CHECKING:
    from models.catalogue import Catalogue
    from models.examples.alignment import AlignmentSettings
    from models.examples.records import TrainingData
    from models.examples.streamed import StreamedData
    from models.towers.text_encoder import Towers
    from models.training.settings import ProgressCallback, TrainingOutcome, TrainingProgress


def read_training_data(paths: Sequence[Path], console: Console) -> TrainingData:
    """All that the files hold; fields that are not read are told."""
    from models.examples.records import TrainingData, read_training_file

    data = TrainingData()
    for path in paths:
        file = read_training_file(path)
        data += file.data
        _tell_unread(path, file.kind, file.unread, console)
    return data


def _tell_unread(path: Path | str, kind: str, fields: Sequence[str], console: Console) -> None:
    if fields:
        console.print(
            f"[yellow]![/] {shown(path)}, a file of {shown(kind)}: not read are its fields {shown(', '.join(sorted(fields)))}",
            soft_wrap=True,
        )


def require_usable_neighbours(neighbours: int, embed: Path | None, examples: Sequence[Path]) -> None:
    """Raises ``SidstreamError`` where no targets can be drawn from the items nearest to a query."""
    if neighbours and embed is None:
        raise SidstreamError(
            "--neighbours compares queries with items by text towers: name their directory with --embed"
        )
    if neighbours and examples:
        raise SidstreamError(
            "--neighbours is for queries made from the catalogue, and --examples brings real ones: give one of them"
        )


def require_embeddings_of(data: TrainingData, dimension: int) -> None:
    """Raises ``SidstreamError`` for an example whose embedding is not of the bundle's dimension."""
    for example in data.examples:
        if example.embedding is not None and len(example.embedding) != 4 * dimension:
            raise SidstreamError(
                f"the example of query {example.query!r} for item {example.item!r} has an embedding of "
                f"{len(example.embedding) // 4} numbers, the bundle's items have {dimension}: embed queries as items are embedded"
            )


def require_coded_queries(count: int) -> None:
    """Raises ``SidstreamError`` where no query has codes."""
    if not count:
        raise SidstreamError(
            "--query-codes, and no query has an embedding: name text towers with --embed, or give --examples an embedding each"
        )


def data_of_catalogue(
    shop: Catalogue, *, per_item: int, seed: int, max_history: int, neighbours: int = 0, towers: Towers | None = None
) -> TrainingData:
    """Queries made from the items' texts, and the catalogue's sequences. ``neighbours``: a query leads to one of the so many
    items that ``towers`` find nearest to it, not to its own alone.
    """
    from models.examples.made_queries import drawn_from_neighbours, examples_from_catalogue
    from models.examples.records import TrainingData
    from models.towers.neighbours import nearest

    examples = examples_from_catalogue(
        shop.items, per_item=per_item, seed=seed, histories=shop.sequences, longest_history=max_history
    )
    if neighbours and towers is not None:
        alone = [example for example in examples if example.query and not example.history]
        queries = towers.query_encoder().encode([example.query for example in alone])
        rows = nearest(queries, shop.embeddings, neighbours)
        drawn = drawn_from_neighbours(
            alone, queries, shop.embeddings, rows, [item.id for item in shop.items], seed=seed
        )
        examples = drawn + [example for example in examples if not example.query or example.history]
    return TrainingData(examples=tuple(examples))


def require_one_validation(paths: Sequence[Path], share: float | None) -> None:
    """Raises ``SidstreamError`` for validation data of two kinds at once."""
    if paths and share is not None:
        raise SidstreamError(
            "--validation gives validation data, and --validation-share takes them from the examples: give one of them"
        )


def require_streamable(paths: Sequence[Path], *, stream: bool, query_codes: bool, align: bool) -> None:
    """Raises ``SidstreamError`` for --stream beside what needs all data in memory."""
    if not stream:
        return
    if not paths:
        raise SidstreamError("--stream is for files that may be larger than memory: name them with --examples")
    for asked, option in ((query_codes, "--query-codes"), (align, "--align")):
        if asked:
            raise SidstreamError(
                f"{option} needs all training data in memory, and --stream keeps a part of them there: leave one of the two out"
            )


def streamed_training_data(
    paths: Sequence[Path],
    checkpoints: Path,
    validation: Sequence[Path],
    share: float | None,
    max_history: int,
    seed: int,
    console: Console,
    work: WorkProgress,
) -> tuple[StreamedData, TrainingData | None, TrainingData]:
    """To train on, divided below ``checkpoints``; to validate on, if anything; to choose the mixture by."""
    from models.commands.after_training import AFTER_TRAINING, CHOOSING_SHARE, FEWEST_TARGETS
    from models.examples.folding import folded
    from models.examples.streamed import MOST_HELD, divided
    from models.training import processes

    choosing = CHOOSING_SHARE if AFTER_TRAINING and not validation else 0.0
    task = work.task("dividing the examples", unit="records")
    data = divided(
        paths,
        checkpoints / "parts",
        held_share=choosing if share is None else share,
        fewest_held_of=FEWEST_TARGETS if share is None else 0,
        seed=seed,
        progress=task.update,
        first=processes.is_first(),
    )
    task.end()
    for path, (kind, fields) in data.unread.items():
        _tell_unread(path, kind, fields, console)
    held = folded(data.held, max_history)
    held_out = None
    if validation:
        held = held_out = read_training_data(validation, console)
    elif share is not None:
        held_out = held
        if not held.targets or not data.records:
            raise SidstreamError(
                f"a share of {share:g} leaves none to {'validate' if data.records else 'train'} on: give another "
                "--validation-share, or a file with --validation"
            )
    validated = f"; {held_out.targets:,} to validate on" if held_out is not None else ""
    if share is not None and data.held_back > MOST_HELD:
        validated += f" of {data.held_back:,} records held back"
    console.print(
        f"{data.records:,} records in {data.parts:,} parts in {shown(data.directory)}{shown(validated)}; up to "
        f"{max_history:,} items of a history are read",
        soft_wrap=True,
    )
    return data, held_out, held


def require_resumable(checkpoints: Path, *, resume: bool, anew: bool) -> None:
    """Raises ``SidstreamError`` for a training that is to go on and has nothing to go on from, or is to begin anew as well."""
    from models.training.checkpoints import is_under_way

    if resume and anew:
        raise SidstreamError("--resume goes on with a training, and --anew begins from nothing: give one of them")
    if resume and not is_under_way(checkpoints):
        raise SidstreamError(
            f"--resume, and there is no training to go on with: {checkpoints} has no whole checkpoint; it was not begun, came to "
            "its end, or stopped before the first one. Train without --resume"
        )


def with_validation(
    data: TrainingData, paths: Sequence[Path], share: float | None, *, seed: int, console: Console
) -> tuple[TrainingData, TrainingData | None]:
    """To train on and to validate on, which is held back (``share``) or read from files; None for neither.

    Raises ``SidstreamError`` where a share leaves nothing for one of the two.
    """
    if paths:
        return data, read_training_data(paths, console)
    if share is None:
        return data, None
    kept, held = data.split(share, seed)
    if not held.targets or not kept.targets:
        raise SidstreamError(
            f"a share of {share:g} of {data.targets:,} examples leaves none to {'validate' if kept.targets else 'train'} on: "
            "give another --validation-share, or a file with --validation"
        )
    return kept, held


def describe(
    data: TrainingData,
    validation: TrainingData | None,
    max_history: int,
    console: Console,
    alignment: AlignmentSettings | None = None,
) -> None:
    """What will be learnt from, before it takes its time."""
    of = Counter({"histories": len(data.histories), "single examples": len(data.examples)})
    parts = " and ".join(f"{count:,} {name}" for name, count in of.items() if count)
    held = f"; {validation.targets:,} to validate on" if validation is not None else ""
    console.print(
        f"{data.targets:,} items to be generated in {shown(parts + held)}; up to {max_history:,} items of a history are read",
        soft_wrap=True,
    )
    if alignment is not None:
        console.print(
            f"beside them {alignment.targets(data.targets):,} alignment tasks a pass: {shown(', '.join(alignment.tasks))}",
            soft_wrap=True,
        )


def steps_of(work: WorkProgress) -> ProgressCallback:
    """Shows each step of a training: how far, how fast, the losses, and once where it goes on from."""
    task = work.task("training", unit="steps", steadily=True)
    begun = False

    def show(now: TrainingProgress) -> None:
        nonlocal begun
        if not begun:  # tokens and tables took their time before
            begun = True
            task.restart(now.step)
            if now.step > 1:
                work.line(f"goes on after step {now.step - 1:,} of {now.steps:,} (--anew begins from nothing)")
        held = "" if now.validation_loss is None else f", validation {now.validation_loss:.3f}"
        task.update(now.step, now.steps, note=f"{now.targets_per_second:,.0f} examples/s, loss {now.loss:.3f}{held}")

    return show


@contextmanager
def stopping_is_no_loss(checkpoints: Path, console: Console) -> Iterator[None]:
    """Whoever stops a training is told how it goes on."""
    from models.training.checkpoints import is_under_way

    try:
        yield
    except KeyboardInterrupt:
        if is_under_way(checkpoints):
            console.print(
                f"stopped. The same command again goes on from the last checkpoint, in {shown(checkpoints)}",
                soft_wrap=True,
            )
        else:
            console.print("stopped before the first checkpoint: nothing that was learnt is kept", soft_wrap=True)
        raise


def report_outcome(outcome: TrainingOutcome, console: Console) -> None:
    """What a person should know of how the training went, beside the model's own line."""
    if outcome.skipped or outcome.skipped_mentions:
        console.print(
            f"[yellow]![/] {outcome.skipped:,} examples name items that the catalogue does not have; skipped. "
            f"{outcome.skipped_mentions:,} such items were left out of histories",
            soft_wrap=True,
        )
    if (validation := outcome.validation) is not None:
        console.print(
            f"  validation loss [bold]{validation.loss:.3f}[/] on {validation.targets:,} examples, the best of "
            f"{validation.times:,}, after step {validation.step:,}: these weights were kept",
            soft_wrap=True,
        )
    if outcome.stopped_early:
        console.print(
            f"  stopped after {outcome.steps:,} of {outcome.planned_steps:,} steps: the validation loss did not get better "
            "any more (--early-stop)",
            soft_wrap=True,
        )
    elif outcome.steps < outcome.planned_steps:
        console.print(
            f"[yellow]![/] the time was up after {outcome.steps:,} of {outcome.planned_steps:,} steps: the same command again "
            "goes on from there (--anew: from nothing)",
            soft_wrap=True,
        )
