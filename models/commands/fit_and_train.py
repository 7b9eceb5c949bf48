"""`sidstream fit` and `sidstream train`: a catalogue becomes a bundle, a bundle gets its language model."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from models.commands.towers import EmbedOption, print_next, read_catalogue
from models.errors import SidstreamError
from models.progress import WorkProgress
from models.terminal import print_table, shown, terminal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from models.bundles.building import FitMethod, Fitted, HeadMethod
    from models.catalogue import Catalogue
    from models.language.language_model import Architecture
    from models.towers.text_encoder import Towers
    from models.training.losses import Loss

_FIT_METHODS = ("k-means", "rq-vae")
_MATRIX_SUFFIXES = (".npy", ".npz")
_HEAD_METHODS = ("none", "top-k", "top-p", "all")


def fit(
    catalogue: Annotated[Path, typer.Argument(help="Catalogue folder, or a .npy file of embeddings (N, D).")],
    bundle: Annotated[Path, typer.Option(envvar="SIDSTREAM_BUNDLE", help="Directory of the bundle to write.")] = Path(
        ".sidstream/bundle"
    ),
    layers: Annotated[int, typer.Option(min=3, help="L, layers of the codebook.")] = 3,
    size: Annotated[int, typer.Option(min=2, help="M, codewords a layer.")] = 256,
    head: Annotated[str, typer.Option(help="Layer-2 tokens to leave out: none, top-k, top-p or all.")] = "none",
    k: Annotated[
        int, typer.Option("--k", min=0, help="How many, with --head top-k.", show_default="a tenth of the size")
    ] = 0,
    p: Annotated[float, typer.Option("--p", min=0, max=1, help="Share of the items, with --head top-p.")] = 0.5,
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
        float,
        typer.Option(
            min=0,
            help="Fit on embeddings beside what histories say of the items, which has so much weight; 0: embeddings alone.",
        ),
    ] = 0.0,
    histories: Annotated[
        list[Path] | None,
        typer.Option(
            help="Sequences, interactions or examples (as of train's --examples) whose histories count.",
            show_default="the catalogue's sequences",
        ),
    ] = None,
    embed: EmbedOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the fitting.")] = 0,
    embedding: Annotated[str, typer.Option(help="A sentence on how the embeddings are made, kept in the bundle.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there already.")] = False,
) -> None:
    """Fit residual codebooks on a catalogue and write a bundle: codebook, ONNX encoder, first layout."""
    from models.bundles.building import FitSettings, fit_bundle
    from models.bundles.bundle import require_free
    from models.bundles.dense_part import fit_dense_part
    from models.codebooks.rq_vae import RqVaeSettings

    console = terminal(stderr=True)
    fit_method = _fit_method(method, iterations=iterations, epochs=epochs, latent=latent)
    require_free(bundle, replace=replace)
    embeddings, shop, towers = _embeddings(catalogue, embed)
    ids = [item.id for item in shop.items] if shop else []
    if (co_occurrence or histories) and not ids:
        raise SidstreamError(
            f"{catalogue} holds embeddings alone, and --co-occurrence and --histories need the items' ids: give a folder with "
            "items.jsonl and that file as items.npy"
        )
    counted = _histories(histories or (), shop, ids, console)
    rq_vae = RqVaeSettings(epochs=epochs or RqVaeSettings.epochs, latent=latent or RqVaeSettings.latent)
    settings = FitSettings(
        layers=layers,
        size=size,
        iterations=iterations or FitSettings.iterations,
        seed=seed,
        method=fit_method,
        rq_vae=rq_vae,
        head_method=_head_method(head),
        k=k or max(1, size // 10),
        p=p,
        co_occurrence=co_occurrence,
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
            embedding=embedding or (f"text towers {towers.id}" if towers else ""),
            towers=towers.id if towers else None,
            ids=ids,
            histories=counted,
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
    if counted and not co_occurrence:
        console.print(
            f"  there are {len(counted):,} histories: `--co-occurrence 1` would let codes say what is bought together "
            "(docs/training.md)",
            soft_wrap=True,
        )
    if catalogue.is_dir() or embed is not None:
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


def train(
    catalogue: Annotated[Path, typer.Argument(help="Catalogue folder that the bundle was fitted on.")],
    bundle: Annotated[
        Path, typer.Option(envvar="SIDSTREAM_BUNDLE", help="Directory of the bundle; the model is added to it.")
    ] = Path(".sidstream/bundle"),
    examples: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSON lines of {query, user, history, item}, of sequences {user, items} or of interactions {user, item, time}, "
            "or a .tsv of one of the last two. Repeat it for several files.",
            show_default="made from the catalogue's texts and sequences",
        ),
    ] = None,
    per_item: Annotated[int, typer.Option(min=1, help="Queries made for each item, without --examples.")] = 4,
    neighbours: Annotated[
        int,
        typer.Option(
            min=0,
            help="Let each made query lead to one of so many items nearest to it (needs --embed) instead of its own alone.",
        ),
    ] = 0,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Examples, sequences or interactions that are not learnt from: training stops when their loss gets no better "
            "any more, and the best weights are kept."
        ),
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=0.5, help="Share of the users (or examples without one) to hold back for that instead."
        ),
    ] = None,
    patience: Annotated[
        int, typer.Option(min=1, help="Validations, four a pass, without a better loss before training stops.")
    ] = 4,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Local directory of a causal LM to fine-tune.", show_default="a small new one")
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the examples.")] = 6.0,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Stop after so long, with what is learnt by then.", show_default="all epochs"),
    ] = None,
    anew: Annotated[
        bool,
        typer.Option(
            "--anew", help="Begin from nothing, even where a training of this bundle was stopped and could go on."
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Items to be generated in a step, about.")] = 128,
    learning_rate: Annotated[
        float | None, typer.Option(show_default="0.003 for a new model, 0.0001 for a checkpoint")
    ] = None,
    layer2_dropout: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            help="Share of SIDs written in their other form; above 0 the model may follow the live layout.",
        ),
    ] = 0.0,
    loss: Annotated[str, typer.Option(help="What to train on: cross-entropy, focal or mile.")] = "cross-entropy",
    gamma: Annotated[
        float | None, typer.Option(min=0, help="γ of the loss.", show_default="2 for focal, 1 for mile")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Of a new model: llama, qwen or baichuan.", show_default="llama")
    ] = None,
    hidden_size: Annotated[int, typer.Option(min=8, help="Width of a new model.")] = 128,
    model_layers: Annotated[int, typer.Option(min=1, help="Depth of a new model.")] = 3,
    user_buckets: Annotated[int, typer.Option(min=0, help="Tokens that users are hashed into; 0: no users.")] = 0,
    max_text_tokens: Annotated[int, typer.Option(min=0, help="First tokens of a query's text that are read.")] = 24,
    max_history: Annotated[int, typer.Option(min=0, help="Newest items of a history that are read.")] = 10,
    embed: EmbedOption = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as cores.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Fine-tune a language model to write the Semantic IDs of a bundle, and add it to the bundle.

    A training that was stopped (Ctrl-C, a crash, --minutes) goes on where it was when the same command is given again.
    """
    import torch

    from models.bundles.building import ModelSettings, train_bundle
    from models.bundles.bundle import Bundle, checkpoint_directory
    from models.bundles.item_encoder import ItemEncoder
    from models.commands.after_training import (
        AFTER_TRAINING,
        Trained,
        cases_of,
        hold_back_to_choose,
        rows_of_histories,
    )
    from models.commands.training_data import (
        data_of_catalogue,
        describe,
        read_training_data,
        report_outcome,
        require_one_validation,
        require_usable_neighbours,
        steps_of,
        stopping_is_no_loss,
        with_validation,
    )
    from models.language.prompts import PromptSettings
    from models.training.folding import folded
    from models.training.settings import TrainingSettings

    console = terminal(stderr=True)
    require_one_validation(validation or (), validation_share)
    require_usable_neighbours(neighbours, embed, examples or ())
    model_settings = ModelSettings(
        checkpoint=checkpoint,
        hidden_size=hidden_size,
        model_layers=model_layers,
        user_buckets=user_buckets,
        prompt=PromptSettings(max_history=max_history, max_text_tokens=max_text_tokens),
        architecture=_architecture(architecture, checkpoint),
    )
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=(3e-3 if checkpoint is None else 1e-4) if learning_rate is None else learning_rate,
        seed=seed,
        layer2_dropout=layer2_dropout,
        loss=_loss(loss),
        gamma=gamma,
        seconds=60 * minutes if minutes is not None else None,
        patience=patience,
    )
    if threads:
        torch.set_num_threads(threads)
    opened = Bundle.open(bundle)
    if opened.manifest.towers and embed is None:
        raise SidstreamError(
            f"the bundle {bundle} was fitted on embeddings of the text towers {opened.manifest.towers}: name their "
            "directory with --embed"
        )
    if catalogue.suffix in _MATRIX_SUFFIXES and embed is None:
        raise SidstreamError(
            f"{catalogue} holds embeddings alone, and training needs the items' ids and texts: give a folder with items.jsonl "
            "and that file as items.npy"
        )
    shop, towers = read_catalogue(catalogue, embed)
    if towers is not None:
        towers.require_fit(opened.manifest, bundle)
    if shop.dimension != opened.manifest.dimension:
        raise SidstreamError(
            f"the embeddings of {catalogue} have {shop.dimension} dimensions, the bundle {bundle} was fitted on "
            f"{opened.manifest.dimension}: give the catalogue that it was fitted on"
        )
    if examples:
        data = read_training_data(examples, console)
    else:
        data = data_of_catalogue(
            shop, per_item=per_item, seed=seed, max_history=max_history, neighbours=neighbours, towers=towers
        )
    data = folded(data, max_history)
    data, held_out = with_validation(data, validation or (), validation_share, seed=seed, console=console)
    data, to_choose_by = hold_back_to_choose(data, held_out, seed=seed)
    describe(data, held_out, max_history, console)
    codes = ItemEncoder.of(opened).encode(shop.embeddings, [item.id.encode() for item in shop.items])
    checkpoints = checkpoint_directory(bundle)
    if anew:
        shutil.rmtree(checkpoints, ignore_errors=True)
    with stopping_is_no_loss(checkpoints, console), WorkProgress(console) as work:
        opened, outcome = train_bundle(
            opened,
            data,
            [item.id for item in shop.items],
            codes,
            model_settings,
            settings,
            texts=_texts(shop),
            validation=held_out,
            progress=steps_of(work),
            checkpoints=checkpoints,
        )
    console.print(
        f"[green]✓[/] model [bold]{shown(opened.manifest.model_id)}[/] in {shown(bundle)}: {outcome.examples:,} examples, "
        f"{outcome.steps:,} steps, loss {outcome.loss:.3f}, {outcome.seconds:.0f} s "
        f"({outcome.examples_per_second:,.0f} examples/s)",
        soft_wrap=True,
    )
    report_outcome(outcome, console)
    item_ids = [item.id for item in shop.items]
    trained = Trained(
        bundle=opened,
        shop=shop,
        codes=codes,
        histories=rows_of_histories(data, item_ids),
        held_out=cases_of(to_choose_by, item_ids),
        towers=towers,
        seed=seed,
        console=console,
    )
    for follow in AFTER_TRAINING:
        follow(trained)


def _embeddings(source: Path, embed: Path | None) -> tuple[npt.NDArray[np.float32], Catalogue | None, Towers | None]:
    """Embeddings (N, D) float32 of a catalogue folder or a ``.npy`` file, the catalogue unless they came alone, and the towers
    that made them, if any did.
    """
    from models.data_files import read_matrix

    holds_items = bool({".jsonl", ".tsv"} & set(source.suffixes))
    if embed is None and (source.suffix in _MATRIX_SUFFIXES or (source.is_file() and not holds_items)):
        return read_matrix(source), None, None
    catalogue, towers = read_catalogue(source, embed)
    return catalogue.embeddings, catalogue, towers


def _histories(paths: Sequence[Path], shop: Catalogue | None, ids: Sequence[str], console: Console) -> list[list[int]]:
    """The histories of the files, else the catalogue's, as rows of the items ``ids``."""
    from models.commands.after_training import rows_of_histories
    from models.commands.training_data import read_training_data
    from models.training.examples import TrainingData, TrainingHistory

    if paths:
        return rows_of_histories(read_training_data(paths, console), ids)
    sequences = shop.sequences.values() if shop else ()
    return rows_of_histories(TrainingData(histories=tuple(TrainingHistory(tuple(items)) for items in sequences)), ids)


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


def _head_method(name: str) -> HeadMethod:
    for method in _HEAD_METHODS:
        if name == method:
            return method  # type: ignore[return-value]
    raise SidstreamError(f"--head {name!r} is unknown: choose one of {', '.join(_HEAD_METHODS)}")


def _loss(name: str) -> Loss:
    from models.training.losses import LOSSES

    for known in LOSSES:
        if name == known:
            return known
    raise SidstreamError(f"--loss {name!r} is unknown: choose one of {', '.join(LOSSES)}")


def _architecture(name: str | None, checkpoint: Path | None) -> Architecture:
    from models.language.language_model import ARCHITECTURES

    if name is not None and checkpoint is not None:
        raise SidstreamError("--architecture is for a new model, and --checkpoint brings its own: give one of the two")
    for known in ARCHITECTURES:
        if (name or "llama") == known:
            return known
    raise SidstreamError(f"--architecture {name!r} is unknown: choose one of {', '.join(ARCHITECTURES)}")


def _texts(catalogue: Catalogue) -> list[str]:
    return [" ".join((item.title, item.brand, item.type)) for item in catalogue.items]


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
