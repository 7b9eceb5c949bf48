"""`sidstream fit`: a catalogue becomes a bundle."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from models.commands.bundle_places import own_bundle
from models.commands.choices import one_of
from models.commands.columns import with_columns
from models.commands.number_options import SeedOption, finite
from models.commands.towers import MATRIX_SUFFIXES, EmbedOption, print_next, read_catalogue
from models.directories import held_alone
from models.errors import SidstreamError
from models.progress import WorkProgress
from models.tables.columns import ColumnNames
from models.terminal import print_table, shown, terminal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from models.bundles.building import FitMethod, Fitted, HeadMethod
    from models.catalogue import Catalogue
    from models.towers.text_encoder import Towers

_FIT_METHODS = ("k-means", "rq-vae")
_ENOUGH_NAMED = 0.5  # of the items: fewer, and most items' co-occurrence is a guess from their embedding
_HEAD_METHODS: tuple[HeadMethod, ...] = ("none", "top-k", "top-p", "all")


@with_columns
def fit(
    context: typer.Context,
    catalogue: Annotated[
        str,
        typer.Argument(
            help="Catalogue folder; a table with an embedding in each row, or its address; or a .npy file of embeddings (N, D)."
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(envvar="SIDSTREAM_BUNDLE", help="Directory of the bundle to write.", show_default="bundle"),
    ] = None,
    layers: Annotated[int, typer.Option(min=3, help="L, layers of the codebook.")] = 3,
    size: Annotated[int, typer.Option(min=2, help="M, codewords a layer.")] = 256,
    head: Annotated[str, typer.Option(help="Layer-2 tokens to leave out: none, top-k, top-p or all.")] = "none",
    k: Annotated[
        int | None, typer.Option("--k", min=0, help="How many, with --head top-k.", show_default="a tenth of the size")
    ] = None,
    p: Annotated[
        float | None,
        typer.Option(
            "--p", min=0, max=1, callback=finite, help="Share of the items, with --head top-p.", show_default="0.5"
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="k-means on residuals, or rq-vae: an encoder learned together with the codewords.")
    ] = "k-means",
    iterations: Annotated[
        int | None, typer.Option(min=1, help="k-means iterations a layer.", show_default="20")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the RQ-VAE.", show_default="100")] = None,
    latent: Annotated[
        int | None, typer.Option(min=1, help="Dimensions of the RQ-VAE's latent space.", show_default="32")
    ] = None,
    co_occurrence: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="Fit on embeddings beside what histories say of the items, which has so much weight; 0: embeddings alone.",
            show_default="1 where histories name half of the items, else 0",
        ),
    ] = None,
    histories: Annotated[
        list[Path] | None,
        typer.Option(
            help="Sequences, interactions or examples (as of train's --examples) whose histories count.",
            show_default="the catalogue's sequences",
        ),
    ] = None,
    screen: Annotated[
        bool | None,
        typer.Option(
            "--screen/--no-screen",
            help="Let the encoder screen codewords with 8-bit products; what they cannot tell apart is compared in float32.",
            show_default="from 1024 codewords of 128 dimensions on, where it saves time",
        ),
    ] = None,
    embed: EmbedOption = None,
    seed: SeedOption = 0,
    embedding_note: Annotated[
        str, typer.Option(help="A sentence on how the embeddings are made, kept in the bundle.")
    ] = "",
    embedding_model: Annotated[
        str | None,
        typer.Option(
            help="Take only updates whose embedding_model has this name.", show_default="those without a name"
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there already.")] = False,
    columns: ColumnNames = ColumnNames(),
) -> None:
    """Fit residual codebooks on a catalogue and write a bundle: codebook, ONNX encoder, first layout."""
    from models.bundles.building import FitSettings, fit_bundle
    from models.bundles.bundle import require_free
    from models.bundles.dense_part import fit_dense_part
    from models.codebooks.rq_vae import RqVaeSettings

    console = terminal(stderr=True)
    fit_method = _fit_method(method, iterations=iterations, epochs=epochs, latent=latent)
    head_method, head_k, head_p = _head(head, k=k, p=p, size=size)
    if screen and fit_method == "rq-vae":
        raise SidstreamError("--screen is for --method k-means: the products of rq-vae are few; leave --screen out")
    bundle = bundle or own_bundle()
    if bundle.is_dir():  # a training of it would write its model over the new one
        context.with_resource(held_alone(bundle))
    require_free(bundle, replace=replace)
    embeddings, shop, towers = _embeddings(
        catalogue,
        embed,
        columns,
    )
    ids = [item.id for item in shop.items] if shop else []
    if (co_occurrence or histories) and not ids:
        raise SidstreamError(
            f"{catalogue} holds embeddings alone, and --co-occurrence and --histories need the items' ids: give a folder with "
            "items.jsonl and that file as items.npy"
        )
    counted = _histories(histories or (), shop, ids, console)
    named = _named(counted)
    if co_occurrence is None:
        co_occurrence = 1.0 if named >= _ENOUGH_NAMED * len(ids) > 0 else 0.0
    rq_vae = RqVaeSettings(epochs=epochs or RqVaeSettings.epochs, latent=latent or RqVaeSettings.latent)
    settings = FitSettings(
        layers=layers,
        size=size,
        iterations=iterations or FitSettings.iterations,
        seed=seed,
        method=fit_method,
        rq_vae=rq_vae,
        head_method=head_method,
        k=head_k,
        p=head_p,
        co_occurrence=co_occurrence,
        screen=screen,
    )
    with WorkProgress(console) as work:
        if fit_method == "k-means":
            tasks = [
                work.task(f"layer {layer + 1}", unit="iterations", total=settings.iterations) for layer in range(layers)
            ]
        else:
            tasks = [work.task("all layers", unit="epochs", total=rq_vae.epochs)]

        def show(layer_index: int, iteration: int, objective: float) -> None:
            tasks[layer_index].update(iteration, note=f"mean squared error {objective:.4f}")

        fitted = fit_bundle(
            embeddings,
            bundle,
            settings,
            embedding=embedding_note or (f"text towers {towers.id}" if towers else ""),
            towers=towers.id if towers else None,
            ids=ids,
            histories=counted,
            embedding_model=embedding_model or None,
            replace=replace,
            progress=show,
        )
    fit_dense_part(
        fitted.bundle,
        embeddings,
        ids,
        counted,
        query_tower=towers.path("query") if towers else None,
    )
    _show_census(console, fitted)
    console.print(
        f"[green]✓[/] bundle of codebook [bold]{shown(fitted.codebook.id)}[/] in {shown(bundle)}", soft_wrap=True
    )
    if fitted.screened:
        console.print(
            "  the encoder screens codewords with 8-bit products (--no-screen: float32 alone)", soft_wrap=True
        )
    if counted:
        share = f"{named:,} of {len(ids):,} items stand with others in {len(counted):,} histories"
        way = (
            "codes say what they are bought with (--co-occurrence 0: not)"
            if co_occurrence
            else "codes are of embeddings alone (--co-occurrence 1: of what items are bought with, too)"
        )
        console.print(f"  {shown(share)}: {shown(way)}", soft_wrap=True)
    if shop is not None:
        options = f" --embed {shlex.quote(str(embed))}" if embed else ""
        print_next(
            console, f"sidstream train {shlex.quote(str(catalogue))} --bundle {shlex.quote(str(bundle))}{options}"
        )
    else:
        console.print(
            f"  training needs the items' ids and texts too: put items.jsonl, a line a row of {shown(catalogue)}, and "
            f"that file as items.npy into a folder FOLDER",
            soft_wrap=True,
        )
        print_next(console, f"sidstream train FOLDER --bundle {shlex.quote(str(bundle))}")


def _embeddings(
    source: str, embed: Path | None, columns: ColumnNames
) -> tuple[npt.NDArray[np.float32], Catalogue | None, Towers | None]:
    """Embeddings (N, D) float32 of a catalogue folder or a ``.npy`` file, the catalogue unless they came alone, and the towers
    that made them, if any did.
    """
    from models.data_files import read_matrix
    from models.tables.catalogues import is_table
    from models.tables.locations import is_address

    if embed is None and not is_address(source):
        path = Path(source)
        holds_items = bool({".jsonl", ".tsv"} & set(path.suffixes))
        if path.suffix in MATRIX_SUFFIXES or (path.is_file() and not holds_items and not is_table(path, columns)):
            if columns.given():
                raise SidstreamError(
                    f"{path} holds embeddings alone, which have no columns to name: leave --id and the like away"
                )
            return read_matrix(path), None, None
    catalogue, towers = read_catalogue(source, embed, columns)
    return catalogue.embeddings, catalogue, towers


def _histories(paths: Sequence[Path], shop: Catalogue | None, ids: Sequence[str], console: Console) -> list[list[int]]:
    """The histories of the files, else the catalogue's, as rows of the items ``ids``."""
    from models.commands.after_training import rows_of_histories
    from models.commands.training_data import read_training_data
    from models.examples.records import TrainingData

    if paths:
        return rows_of_histories(read_training_data(paths, console), ids)
    sequences = shop.sequences.values() if shop else ()
    return rows_of_histories(TrainingData.of_sequences(sequences), ids)


def _named(histories: Sequence[Sequence[int]]) -> int:
    """How many items stand in a history with another one."""
    return len({item for history in histories if len(set(history)) > 1 for item in history})


def _fit_method(name: str, *, iterations: int | None, epochs: int | None, latent: int | None) -> FitMethod:
    """The method of that name; options of the other method are refused."""
    if name not in _FIT_METHODS:
        raise SidstreamError(f"--method {name!r} is unknown: choose one of {', '.join(_FIT_METHODS)}")
    if name == "rq-vae":
        if iterations is not None:
            raise SidstreamError("--iterations is for --method k-means: give --epochs with rq-vae")
        return "rq-vae"
    if epochs is not None or latent is not None:
        raise SidstreamError("--epochs and --latent are for --method rq-vae: give --iterations with k-means")
    return "k-means"


def _head(name: str, *, k: int | None, p: float | None, size: int) -> tuple[HeadMethod, int, float]:
    """Which layer-2 tokens to leave out: method, K and p; options of another method are refused, and a K above the size."""
    method = one_of("--head", name, _HEAD_METHODS)
    for option, given, of in (("--k", k, "top-k"), ("--p", p, "top-p")):
        if given is not None and method != of:
            raise SidstreamError(
                f"{option} is for --head {of}, and --head is {method}: give --head {of}, or leave {option} out"
            )
    if k is not None and k > size:
        raise SidstreamError(f"--k {k} is more than the {size} codewords of a layer (--size): give at most {size}")
    return method, max(1, size // 10) if k is None else k, 0.5 if p is None else p


def _show_census(console: Console, fitted: Fitted) -> None:
    from models.sids.census import measure_layer, path_sparsity
    from models.sids.layout import HEAD_LAYER_INDEX

    console.print(f"{len(fitted.codes):,} items")
    table = Table()
    for heading in ("layer", "entropy", "Gini", "standard deviation", "dead codes", "head share"):
        table.add_column(heading, justify="right")
    for layer_index, counts in enumerate(fitted.census):
        heads = fitted.bundle.layout.head_tokens if layer_index == HEAD_LAYER_INDEX else ()
        measured = measure_layer(counts, heads)
        table.add_row(
            str(layer_index + 1),
            f"{measured.entropy:.3f}",
            f"{measured.gini:.3f}",
            f"{measured.standard_deviation:.1f}",
            str(measured.dead_codes),
            f"{measured.head_share:.3f}" if heads else "–",
        )
    print_table(console, table)
    share = path_sparsity(fitted.codes, fitted.codebook.size)
    left_out = len(fitted.bundle.layout.head_tokens)
    console.print(f"{share:.3%} of the possible paths are used · {left_out:,} head tokens are left out of SIDs")
    if fitted.collapsed:
        for layer in fitted.collapsed:
            console.print(f"[yellow]! the codebook collapsed in {shown(layer)}[/]", soft_wrap=True)
        console.print(f"  {shown(fitted.cause)}", soft_wrap=True)
