"""`sidstream towers`, and what `--embed TOWERS` means to the other commands: embeddings made from the catalogue's text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from models.commands.columns import with_columns
from models.commands.number_options import SeedOption, ThreadsOption, finite
from models.commands.training_data import read_training_data
from models.errors import SidstreamError
from models.progress import WorkProgress
from models.tables.columns import ColumnNames
from models.terminal import print_line, shown, terminal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.catalogue import Catalogue, CatalogueItem
    from models.examples.records import TrainingExample
    from models.towers.text_encoder import Towers

MATRIX_SUFFIXES: Final = (".npy", ".npz")  # of files that hold embeddings alone
_PER_ITEM: Final = 6  # queries that are made
_RELEVANT_RATING: Final = 2  # of 0 to 3: what people called good
_ITEMS_AT_A_TIME: Final = 2_048  # embedded between two reports

EmbedOption = Annotated[
    Path | None,
    typer.Option(
        "--embed", help="Text towers (`sidstream towers`) that make the embeddings; items*.npy is then not read."
    ),
]


@with_columns
def towers(
    catalogue: Annotated[
        str, typer.Argument(help="Catalogue folder, table or address, or a file of items; embeddings are not needed.")
    ],
    towers: Annotated[Path, typer.Option(help="Directory to write.")] = Path(".sidstream/towers"),
    examples: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files of {query, item}, of sequences {user, items} or of interactions, as for train; as often as there are "
            "files. Where there is no query, an item's title is to find what was taken after it.",
            show_default="made from the catalogue's texts and sequences",
        ),
    ] = None,
    per_item: Annotated[
        int | None, typer.Option(min=1, help="Queries made for each item, without --examples.", show_default="6")
    ] = None,
    dimension: Annotated[int, typer.Option(min=8, help="D, numbers of an embedding.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs a step; the others' items are the negatives.")] = 1024,
    learning_rate: Annotated[float, typer.Option(callback=finite)] = 2e-3,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=0.9, callback=finite, help="Share of the items that only recall is measured on."),
    ] = 0.05,
    threads: ThreadsOption = 0,
    seed: SeedOption = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace towers that are there already.")] = False,
    columns: ColumnNames = ColumnNames(),
) -> None:
    """Train a query and an item text tower (a dual tower), so that text alone becomes embeddings."""
    import torch

    from models.tables.catalogues import read_items, read_texts
    from models.towers.dual_tower import TowerSettings, train_towers
    from models.towers.text_encoder import require_free, require_text
    from models.towers.tower_export import write_towers

    console = terminal(stderr=True)
    settings = TowerSettings(
        dimension=dimension,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        held_out=held_out,
        seed=seed,
    )
    if per_item is not None and examples:
        raise SidstreamError(
            "--per-item is of queries that are made, and --examples brings its own: give one of the two"
        )
    require_free(towers, replace=replace)
    items = read_items(
        catalogue,
        columns,
    )
    require_text(items)
    texts = read_texts(catalogue)
    pairs = _pairs(items, texts.sequences, examples or [], per_item or _PER_ITEM, seed, console)
    if threads:
        torch.set_num_threads(threads)
    with WorkProgress(console) as work:
        task = work.task("training", unit="steps")

        def show(step: int, total: int, loss: float) -> None:
            task.update(step, total, note=f"loss {loss:.3f}")

        tower, outcome = train_towers(items, pairs, settings, show)
    written = write_towers(
        tower.weights(), towers, training={**outcome.to_dict(), "seed": seed, "epochs": epochs}, replace=replace
    )
    if outcome.skipped:
        console.print(
            f"[yellow]![/] {outcome.skipped:,} pairs have no query or an item that the catalogue does not have; skipped"
        )
    losses = ", ".join(f"{loss:.3f}" for loss in outcome.losses)
    console.print(
        f"[green]✓[/] towers [bold]{shown(written.id)}[/] in {shown(towers)}: {outcome.pairs:,} pairs, "
        f"loss an epoch {shown(losses)}, "
        f"{outcome.seconds:.0f} s",
        soft_wrap=True,
    )
    if outcome.recall is not None:
        console.print(
            f"  recall@10 [bold]{outcome.recall:.3f}[/] on {outcome.held_out_pairs:,} pairs of items never seen in "
            f"training, among all {len(items):,} (chance {outcome.chance:.4f})"
        )
    queries, qrels = texts.queries, texts.qrels
    if qrels:
        from models.towers.dual_tower import judged_recall

        rows = {item.id: row for row, item in enumerate(items)}
        recall, judged = judged_recall(
            written.query_encoder().encode([query.text for query in queries]),
            written.item_encoder().encode_items(items),
            [{rows[item]: rating for item, rating in qrels.get(query.id, {}).items()} for query in queries],
            least_rating=_RELEVANT_RATING,
        )
        console.print(
            f"  recall@10 [bold]{recall:.3f}[/] on the catalogue's {judged:,} judged queries (rating {_RELEVANT_RATING:d} "
            "or more; never trained on)"
        )
    print_next(console, f"sidstream fit {shlex.quote(str(catalogue))} --embed {shlex.quote(str(towers))}")


def _pairs(
    items: Sequence[CatalogueItem],
    sequences: Mapping[str, Sequence[str]],
    examples: Sequence[Path],
    per_item: int,
    seed: int,
    console: Console,
) -> list[TrainingExample]:
    """What the files hold, or queries made from the items' texts and what the catalogue's sequences hold."""
    from models.towers.training_pairs import queries_and_sequences, training_pairs

    if examples:
        data = read_training_data(examples, console)
    else:
        data = queries_and_sequences(items, sequences.values(), per_item=per_item, seed=seed)
    return list(training_pairs(data, {item.id: item.title for item in items}))


def print_next(console: Console, command: str) -> None:
    """The command that comes next, on a line that no terminal's width breaks, to be copied as it is."""
    print_line(console, f"  next: {command}")


def read_catalogue(
    source: str | Path, embed: Path | None, columns: ColumnNames | None = None
) -> tuple[Catalogue, Towers | None]:
    """A catalogue with its own embeddings or, if ``embed`` names towers, with theirs."""
    import numpy as np

    from models.tables import catalogues

    if embed is None:
        return catalogues.read_catalogue(source, columns), None
    from models.towers.text_encoder import Towers

    if str(source).endswith(".npy"):
        raise SidstreamError(f"--embed makes embeddings from text, but {source} holds embeddings: give one of the two")
    opened = Towers.open(embed)
    with WorkProgress(terminal(stderr=True)) as work:
        task = work.task("embedding the items' texts", unit="items")
        encoder = opened.item_encoder()

        def embed_items(items: Sequence[CatalogueItem]) -> NDArray[np.float32]:
            embeddings = np.empty((len(items), encoder.dimension), dtype=np.float32)
            for start in range(0, len(items), _ITEMS_AT_A_TIME):
                block = slice(start, min(start + _ITEMS_AT_A_TIME, len(items)))
                embeddings[block] = encoder.encode_items(items[block])
                task.update(block.stop, len(items))
            return embeddings

        return catalogues.read_embedded(source, embed_items, columns), opened
