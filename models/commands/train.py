"""`sidstream train`: a bundle gets its language model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from models.commands.bundle_places import own_bundle, own_bundle_store
from models.commands.choices import alignment_of, architecture_of, instruction_of, loss_of, precision_of, rank_of
from models.commands.columns import with_columns
from models.commands.given_options import is_given, require_no_idle_options
from models.commands.number_options import SeedOption, ThreadsOption, finite
from models.commands.towers import MATRIX_SUFFIXES, EmbedOption, read_catalogue
from models.directories import held_alone, require_writable_directory
from models.errors import SidstreamError
from models.progress import WorkProgress
from models.tables.columns import ColumnNames
from models.terminal import shown, terminal


@with_columns
def train(
    context: typer.Context,
    catalogue: Annotated[str, typer.Argument(help="Catalogue folder, table or address that the bundle was fitted on.")],
    bundle: Annotated[
        Path | None,
        typer.Option(
            envvar="SIDSTREAM_BUNDLE", help="Directory of the bundle; the model is added to it.", show_default="bundle"
        ),
    ] = None,
    examples: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSON lines, .arrow or .parquet of {query, user, history, item}, of sequences {user, items} or of interactions "
            "{user, item, time}, or a .tsv of one of the last two. Repeat it for several files.",
            show_default="made from the catalogue's texts and sequences",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Let --examples be larger than memory: they are divided by user into parts on the disk beside the bundle, and "
            "one at a time is in memory.",
        ),
    ] = False,
    per_item: Annotated[int, typer.Option(min=1, help="Queries made for each item, without --examples.")] = 4,
    neighbours: Annotated[
        int,
        typer.Option(
            min=0,
            help="Let each made query lead to one of so many items nearest to it (needs --embed) instead of its own alone.",
        ),
    ] = 0,
    query_codes: Annotated[
        bool,
        typer.Option(
            "--query-codes",
            help="Write the codes of a query's embedding into its prompt, before its text; by --embed or the examples' own.",
        ),
    ] = False,
    align: Annotated[
        list[str] | None,
        typer.Option(
            help="Learn this task of the catalogue's items beside the rest: title-to-sid, sid-to-title or attributes-to-sid. "
            "Repeat it for several.",
            show_default="none",
        ),
    ] = None,
    align_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of a pass that the tasks of --align have.", callback=finite)
    ] = 0.2,
    history_text: Annotated[
        int, typer.Option(min=0, help="First tokens of its title that stand behind each item of a history.")
    ] = 0,
    prompt: Annotated[
        str,
        typer.Option(help="bare (tokens alone), or instruction: words around them, in the checkpoint's chat template."),
    ] = "bare",
    instruction: Annotated[
        str | None,
        typer.Option(
            help="The words, with slots {user}, {history} and {query}; what is in square brackets with one is left out with it.",
            show_default="sidstream's own",
        ),
    ] = None,
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
            min=0.001,
            max=0.5,
            help="Share of the users (or examples without one) to hold back for that instead.",
            callback=finite,
        ),
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            "--early-stop",
            "--patience",
            min=1,
            help="Validations, four a pass, without a better loss before training stops.",
        ),
    ] = 4,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Local directory of a causal LM to fine-tune.", show_default="a small new one")
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Go on from the language model of this bundle (a directory, or an id of the bundle store): what it has learnt "
            "of words, users and SIDs is kept, also for another codebook of the same embeddings.",
            show_default="nothing",
        ),
    ] = None,
    from_catalogue: Annotated[
        Path | None,
        typer.Option(
            help="Catalogue folder with the embeddings that the bundle of --from takes, where those of CATALOGUE are of another "
            "embedding model: items that both have carry its SID tokens over.",
            show_default="CATALOGUE",
        ),
    ] = None,
    bundles: Annotated[
        Path | None,
        typer.Option(
            envvar="SIDSTREAM_BUNDLES", help="Directory of the bundle store, for ids of --from.", show_default="bundles"
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the examples.", callback=finite)] = 6.0,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Stop after so long, with what is learnt by then.",
            show_default="all epochs",
            callback=finite,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a training of this bundle that was stopped, or refuse if there is none; without it, train goes on "
            "where there is one.",
        ),
    ] = False,
    anew: Annotated[
        bool,
        typer.Option(
            "--anew", help="Begin from nothing, even where a training of this bundle was stopped and could go on."
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Items to be generated in a step, about.")] = 128,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            show_default="0.003 for a new model, 0.0001 for a checkpoint, with --from that of what it was at first",
            callback=finite,
        ),
    ] = None,
    warm_up: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            help="Share of the steps over which the learning rate rises; it falls then.",
            callback=finite,
        ),
    ] = 0.05,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.", callback=finite)] = 0.01,
    dropout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99,
            help="Of attention and hidden states, where the family has it, and of LoRA's updates.",
            show_default="none in a new model, a checkpoint's own",
            callback=finite,
        ),
    ] = None,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts in which the items of a step are run: less memory, the same gradients.")
    ] = 1,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice instead of keeping them.")
    ] = False,
    lora: Annotated[
        str | None,
        typer.Option(help="Train a checkpoint by LoRA of this rank, such as 16 (or r=16).", show_default="all weights"),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the passes: float32, or bf16 (weights and optimiser stay float32).")
    ] = "float32",
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Send losses, learning rate and recall to tensorboard, wandb or whatever transformers reports to. Repeat it "
            "for several.",
            show_default="none",
        ),
    ] = None,
    logging_dir: Annotated[
        Path | None,
        typer.Option(help="For TensorBoard's files.", show_default="beside the bundle, <bundle>.runs"),
    ] = None,
    layer2_dropout: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            help="Share of SIDs written in their other form; above 0 the model may follow the live layout.",
            show_default="0, that of --from",
            callback=finite,
        ),
    ] = 0.0,
    loss: Annotated[str, typer.Option(help="What to train on: cross-entropy, focal or mile.")] = "cross-entropy",
    gamma: Annotated[
        float | None,
        typer.Option(min=0, help="γ of the loss.", show_default="2 for focal, 1 for mile", callback=finite),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Of a new model: llama, qwen or baichuan.", show_default="llama")
    ] = None,
    hidden_size: Annotated[int, typer.Option(min=8, help="Width of a new model.")] = 128,
    model_layers: Annotated[int, typer.Option(min=1, help="Depth of a new model.")] = 3,
    user_buckets: Annotated[
        int, typer.Option(min=0, max=2**24, help="Tokens that users are hashed into; 0: no users.")
    ] = 0,
    max_text_tokens: Annotated[
        int,
        typer.Option("--max-text", "--max-text-tokens", min=0, help="First tokens of a query's text that are read."),
    ] = 24,
    max_history: Annotated[int, typer.Option(min=0, help="Newest items of a history that are read.")] = 10,
    embed: EmbedOption = None,
    threads: ThreadsOption = 0,
    seed: SeedOption = 0,
    columns: ColumnNames = ColumnNames(),
) -> None:
    """Fine-tune a language model to write the Semantic IDs of a bundle, and add it to the bundle.

    A training that was stopped (Ctrl-C, a crash, --minutes) goes on where it was when the same command is given again. On several
    cards: `accelerate launch -m sidstream train …`, which divides each step among its processes.
    """
    import structlog
    import torch

    from models.bundles.building import train_bundle
    from models.bundles.bundle import Bundle, checkpoint_directory
    from models.bundles.first_model import ModelSettings
    from models.bundles.item_encoder import ItemEncoder
    from models.bundles.warm_start import Items, Origin, find_tokens, is_half_way
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
        require_coded_queries,
        require_embeddings_of,
        require_one_validation,
        require_resumable,
        require_streamable,
        require_usable_neighbours,
        steps_of,
        stopping_is_no_loss,
        streamed_training_data,
        with_validation,
    )
    from models.commands.warm_start import bundle_to_go_on_from, describe_origin, items_of, require_kept
    from models.examples.folding import folded
    from models.examples.query_codes import QueryCodes
    from models.examples.records import TrainingData
    from models.language.prompts import PromptSettings
    from models.training import processes
    from models.training.checkpoints import begin_anew, facts_of
    from models.training.reports import checked_services, default_directory
    from models.training.settings import TrainingSettings

    bundle, bundles = bundle or own_bundle(), bundles or own_bundle_store()
    console = terminal(stderr=True)
    if not processes.is_first():
        console.quiet = True
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    processes.require_whole_models()
    processes.require_own_precision(precision_of(precision))
    require_no_idle_options(context)
    require_one_validation(validation or (), validation_share)
    require_resumable(checkpoint_directory(bundle), resume=resume, anew=anew)
    require_usable_neighbours(neighbours, embed, examples or ())
    older = bundle_to_go_on_from(origin, checkpoint, bundles, console)
    if from_catalogue is not None and older is None:
        raise SidstreamError("--from-catalogue has the items that the bundle of --from knows: give --from, too")
    asked = PromptSettings(
        max_history=max_history, max_text_tokens=max_text_tokens, query_codes=query_codes, history_text=history_text
    )
    if older is not None and (record := older.manifest.language_model) is not None:
        require_kept(context, older)
        checkpoint, asked, architecture = None, record.prompt, None
        max_history, query_codes = asked.max_history, asked.query_codes
        if not is_given(context, "layer2_dropout"):
            layer2_dropout = record.layer2_dropout
    require_streamable(examples or (), stream=stream, query_codes=query_codes, align=bool(align))
    model_settings = ModelSettings(
        checkpoint=checkpoint,
        hidden_size=hidden_size,
        model_layers=model_layers,
        user_buckets=user_buckets,
        prompt=asked,
        architecture=architecture_of(architecture, checkpoint),
        instruction=None if older is not None else instruction_of(prompt, instruction),
        origin=None if older is None else Origin(older, origin or str(older.directory)),
    )
    alignment = alignment_of(align or (), align_share)
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=model_settings.learning_rate if learning_rate is None else learning_rate,
        seed=seed,
        layer2_dropout=layer2_dropout,
        loss=loss_of(loss),
        gamma=gamma,
        seconds=60 * minutes if minutes is not None else None,
        patience=patience,
        warm_up=warm_up,
        weight_decay=weight_decay,
        accumulate=accumulate,
        gradient_checkpointing=gradient_checkpointing,
        precision=precision_of(precision),
        lora=rank_of(lora),
        dropout=dropout,
        report_to=checked_services(report_to or ()),
        report_directory=logging_dir or default_directory(checkpoint_directory(bundle)),
    )
    if logging_dir is not None and "tensorboard" not in settings.report_to:
        raise SidstreamError(
            "--logging-dir is where TensorBoard's files go: give --report-to tensorboard, or leave it out"
        )
    if threads:
        torch.set_num_threads(threads)
    if processes.is_first() and bundle.is_dir():
        context.with_resource(held_alone(bundle))
    opened = Bundle.open(bundle)
    if opened.manifest.towers and embed is None:
        raise SidstreamError(
            f"the bundle {bundle} was fitted on embeddings of the text towers {opened.manifest.towers}: name their "
            "directory with --embed"
        )
    if catalogue.endswith(MATRIX_SUFFIXES) and embed is None:
        raise SidstreamError(
            f"{catalogue} holds embeddings alone, and training needs the items' ids and texts: give a folder with items.jsonl "
            "and that file as items.npy"
        )
    shop, towers = read_catalogue(
        catalogue,
        embed,
        columns,
    )
    if towers is not None:
        towers.require_fit(opened.manifest, bundle)
    if shop.dimension != opened.manifest.dimension:
        raise SidstreamError(
            f"the embeddings of {catalogue} have {shop.dimension} dimensions, the bundle {bundle} was fitted on "
            f"{opened.manifest.dimension}: give the catalogue that it was fitted on"
        )
    checkpoints = checkpoint_directory(bundle)
    if processes.is_first():
        require_writable_directory(checkpoints)
    streamed = None
    if stream:
        with WorkProgress(console) as work:
            streamed, held_out, to_choose_by = streamed_training_data(
                examples or (), checkpoints, validation or (), validation_share, max_history, seed, console, work
            )
        data = streamed.sample
    else:
        if examples:
            data = read_training_data(examples, console)
        else:
            data = data_of_catalogue(
                shop, per_item=per_item, seed=seed, max_history=max_history, neighbours=neighbours, towers=towers
            )
        data = folded(data, max_history)
        data, held_out = with_validation(data, validation or (), validation_share, seed=seed, console=console)
        data, to_choose_by = hold_back_to_choose(data, held_out, seed=seed)
        describe(data, held_out, max_history, console, alignment)
    item_ids = [item.id for item in shop.items]
    encoder = ItemEncoder.of(opened)
    codes = encoder.encode(shop.embeddings, [item.encode() for item in item_ids])
    for part in (data, held_out, to_choose_by):
        require_embeddings_of(part or TrainingData(), opened.manifest.dimension)
    if model_settings.origin is not None:
        here = model_settings.origin.bundle
        began_from = None if anew else facts_of(checkpoints).get("model")
        whole = replace(
            model_settings.origin,
            tokens=find_tokens(here, opened, Items(item_ids, shop.embeddings), codes, items_of(from_catalogue)),
            half_way=here.id == opened.id and is_half_way(opened, began_from),
        )
        model_settings = replace(model_settings, origin=whole)
        describe_origin(whole, opened.manifest.size, console, validated=bool(validation))
        if from_catalogue is not None and whole.tokens is None:
            console.print(
                f"[yellow]![/] its codebook is the same: {shown(from_catalogue)} of --from-catalogue is not read",
                soft_wrap=True,
            )
    embed_queries = None if towers is None else towers.query_encoder().encode
    named = QueryCodes(item_ids, codes, encoder.encode_queries, embed_queries, max_history)
    histories = rows_of_histories(data, item_ids)
    if query_codes:
        data = named.write_into(data)
        require_coded_queries(len(named))
        held_out = None if held_out is None else named.write_into(held_out)
    if anew and processes.is_first():
        begin_anew(checkpoints)
    with stopping_is_no_loss(checkpoints, console), WorkProgress(console) as work:
        opened, outcome = train_bundle(
            opened,
            data if streamed is None else streamed,
            named.item_ids,
            named.codes,
            model_settings,
            settings,
            items=shop.items,
            alignment=alignment,
            validation=held_out,
            progress=steps_of(work),
            checkpoints=checkpoints,
        )
    if not processes.is_first():
        return  # the first process writes the bundle and chooses the mixture
    console.print(
        f"[green]✓[/] model [bold]{shown(opened.manifest.model_id)}[/] in {shown(bundle)}: {outcome.examples:,} examples, "
        f"{outcome.steps:,} steps, loss {outcome.loss:.3f}, {outcome.seconds:.0f} s "
        f"({outcome.examples_per_second:,.0f} examples/s)",
        soft_wrap=True,
    )
    record = opened.manifest.language_model
    if record is not None and (base := record.base) is not None:
        by = f" by LoRA of rank {settings.lora}, merged" if settings.lora else ""
        console.print(
            f"  fine-tuned from {shown(base.given)} ({shown(base.model_type)}, {shown(base.id)}){shown(by)}",
            soft_wrap=True,
        )
    report_outcome(outcome, console)
    trained = Trained(
        bundle=opened,
        shop=shop,
        codes=codes,
        histories=histories,
        held_out=cases_of(to_choose_by, item_ids),
        towers=towers,
        seed=seed,
        console=console,
    )
    for follow in AFTER_TRAINING:
        follow(trained)
