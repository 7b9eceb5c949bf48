"""Commands of the retriever: the worker process, and asking a question from the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from models.commands.columns import with_columns
from models.commands.given_options import is_given
from models.commands.number_options import SeedOption, finite
from models.commands.towers import EmbedOption
from models.errors import SidstreamError
from models.progress import WorkProgress
from models.tables.columns import ColumnNames
from models.terminal import print_command, print_line, print_table, shown, terminal
from retriever.explanation_tables import show_explanations
from streamer.commands.terminal import ascii_json
from streamer.events.records import Answer
from streamer.settings import Settings, load_settings
from streamer.shards.partitions import text_of
from streamer.tracing.start import tracing_started

BOUND_MISSED: Final = 3  # the exit status of an evaluation that misses a bound


def retriever() -> None:
    """Run the retriever: queries → answers, by the bundle's language model under the prefix trie's constraint."""
    from retriever.serving.process import run_retriever

    run_retriever(load_settings())


def ask(
    text: Annotated[str, typer.Argument(help="The query's text.")] = "",
    history: Annotated[list[str] | None, typer.Option(help="An item id; repeat it for several, oldest first.")] = None,
    user: Annotated[str | None, typer.Option(help="The user's id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="A condition on an attribute: 'price<=30', 'brand=Acme|Bosch', 'in_stock=true', 'tags~red'; several are all "
            "meant."
        ),
    ] = None,
    filter_json: Annotated[
        str | None, typer.Option("--filter-json", help="A filter as a query carries it (docs/filters.md).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="The id of an item that the answer may not name; may be repeated.")
    ] = None,
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="The answer may name items of the history.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Search by branch and bound: no beam drops the beginning of a good answer.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each item is where it is.")] = False,
    why_not: Annotated[
        list[str] | None, typer.Option(help="The id of an item: say why it is not answered; may be repeated.")
    ] = None,
    at_most: Annotated[
        list[str] | None,
        typer.Option(
            help="At most so many items of one kind: 'brand:2', 'sid:1', 'prefix/2:3'; several are all meant."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, callback=finite, help="Seconds to wait for the answer.")] = 30.0,
    json: Annotated[bool, typer.Option("--json", help="Print the answer record.")] = False,
    batch: Annotated[
        Path | None,
        typer.Option(
            help="Answer a file of queries instead, one JSON object a line, by the bundle and index of this machine and without "
            "Kafka; goes on where it was stopped."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --batch: the file of the answers, .parquet or .jsonl.")] = None,
) -> None:
    """Ask a query and show its answer; or (--batch) answer a file of queries."""
    if batch is not None or out is not None:
        own = any(
            (text, history, user, where, filter_json, exclude, keep_history, exact, explain, why_not, at_most, json)
        )
        if batch is None or out is None or own:
            raise typer.BadParameter(
                "--batch QUERIES.jsonl goes with --out ANSWERS.parquet, and what is asked stands in the file's lines"
            )
        _ask_batch(batch, out, limit)
        return
    if not (text or history or user):
        raise typer.BadParameter("nothing to ask: give a text, --history, --user or several of them")
    from retriever.client import Client
    from streamer.filters.slate import parsed_at_most

    settings = load_settings()
    with tracing_started(settings, "ask"), Client(settings) as client:
        answer = client.ask(
            text,
            history=history or (),
            user=user,
            limit=limit,
            filter=_filter(settings, where or [], filter_json),
            exclude=exclude or (),
            keep_history=keep_history,
            search="exact" if exact else None,
            explain=explain,
            why_not=why_not or (),
            slate=parsed_at_most(at_most or (), settings.attributes.filterable),
            timeout_seconds=timeout,
        )
    if json:
        print(ascii_json(answer, indent=2))
    else:
        show_answer(terminal(), answer)
    if answer.error is not None:
        raise typer.Exit(1)


def _ask_batch(batch: Path, out: Path, limit: int) -> None:
    from retriever.batch_answers import answer_file
    from streamer.deployments.served import served_on_this_machine

    console = terminal(stderr=True)
    with WorkProgress(console) as work:
        task = work.task("answering", unit="queries")
        found = answer_file(served_on_this_machine(load_settings()), batch, out, limit=limit, progress=task.update)
        task.end()
    refused = sum(found.refused.values())
    console.print(
        f"[green]✓[/] {found.answered:,} queries are answered, {refused:,} have a reason why not, in {shown(out)}",
        soft_wrap=True,
    )
    if found.before:
        console.print(f"  {found.before:,} of them by the run that was stopped")
    for kind, count in found.refused.most_common():
        print_line(console, f"  {count:,} × {kind}")


def _filter(settings: Settings, where: Sequence[str], filter_json: str | None) -> dict[str, Any] | None:
    """What ``--where`` and ``--filter-json`` mean together; None if neither is there."""
    from streamer.filters.text import parsed_where

    parts = [parsed_where(where, settings.attributes.filterable)] if where else []
    if filter_json is not None:
        try:
            parts.append(msgspec.json.decode(filter_json, type=dict[str, Any]))
        except (msgspec.DecodeError, RecursionError) as error:
            raise typer.BadParameter(
                f'this is no JSON object ({error}): send one such as {{"field": "price", "lte": 30}}',
                param_hint="--filter-json",
            ) from None
    return {"all": parts} if len(parts) > 1 else parts[0] if parts else None


def show_answer(console: Console, answer: Answer) -> None:
    """The items as a table, and where they come from in a line below."""
    if answer.error is not None:
        console.print(f"[red]✗ {shown(answer.error.kind)}[/]: {shown(answer.error.message)}")
        if answer.layout is None:
            return
    else:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("", justify="right", style="dim")
        table.add_column("item")
        table.add_column("id", style="dim")
        table.add_column("SID", style="cyan")
        table.add_column("log P", justify="right")
        mixed = any(item.found_by for item in answer.items)
        if mixed:
            table.add_column("found by", style="dim")
        for rank, item in enumerate(answer.items, start=1):
            found_by = [f"{shown(item.found_by)}{', new' if item.new is True else ''}"] if mixed else []
            table.add_row(
                str(rank), shown(item.title), shown(item.item_id), shown(item.sid), f"{item.score:.2f}", *found_by
            )
        print_table(console, table)
    if answer.search_complete is False:
        console.print(
            "[yellow]the exact search ended with its budget:[/] a better item may be missing; raise retriever.exact_budget"
        )
    if answer.missing_partitions:
        console.print(
            f"[yellow]a partial answer:[/] nothing of the partitions {shown(text_of(answer.missing_partitions))} is in it"
        )
    show_explanations(console, answer)
    if answer.note:
        console.print(f"[dim]{shown(answer.note)}[/]", soft_wrap=True)
    if answer.skipped_history:
        console.print(
            f"[yellow]not in the index, left out of the history:[/] {shown(', '.join(answer.skipped_history))}"
        )
    spent = answer.milliseconds.get("decode")
    of_bundle = f" of the bundle {answer.bundle}" if answer.bundle else ""
    took = f", decoded in {spent:.0f} ms" if spent is not None else ""
    console.print(
        f"[dim]layout {shown(answer.layout)} ({shown(answer.layout_mode)}), model {shown(answer.model)}{shown(of_bundle)}"
        f"{shown(took)}, index at {sum(answer.position.values()):,} records[/]",
        soft_wrap=True,
    )


@with_columns
def evaluate(
    context: typer.Context,
    catalogue: Annotated[
        str,
        typer.Argument(help="Catalogue folder, table or address: items, embeddings, and what people did with them."),
    ],
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Cases: JSON lines of {query, user, history, item}.", show_default="see --leave-last-out, --judged"
        ),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="With --examples: others of them, to choose the references' settings on.")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(help="The examples that the model was trained on.", show_default="the catalogue's sequences"),
    ] = None,
    interactions: Annotated[
        Path | None, typer.Option(help="user, item, time as .tsv, .csv or JSON lines: split by time.")
    ] = None,
    leave_last_out: Annotated[
        bool,
        typer.Option(
            "--leave-last-out", help="Cases: the last item of each history; the default where there are histories."
        ),
    ] = False,
    after: Annotated[
        str | None, typer.Option(help="Cases: interactions from this time on (a number, or ISO 8601).")
    ] = None,
    last_share: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=0.4, callback=finite, help="Cases: the last share of the interactions.", show_default="0.1"
        ),
    ] = None,
    judged: Annotated[bool, typer.Option("--judged", help="Cases: the catalogue's judged queries.")] = False,
    least_rating: Annotated[
        int | None,
        typer.Option(min=1, help="With judged queries: from which rating on an item is relevant.", show_default="2"),
    ] = None,
    write_split: Annotated[
        Path | None,
        typer.Option(help="Write the split and stop: a catalogue to train on, validation.jsonl and test.jsonl."),
    ] = None,
    at: Annotated[
        list[int] | None, typer.Option(min=1, help="k; repeat it for several.", show_default="1, 5, 10, 50")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="An attribute of the items, such as brand, to look at value by value; repeatable."),
    ] = None,
    head_share: Annotated[
        float,
        typer.Option(
            min=0.001, max=0.999, callback=finite, help="Head items: this share of the items, the most popular ones."
        ),
    ] = 0.1,
    new_items: Annotated[
        Path | None, typer.Option(help="Ids of items that arrived after training, one a line.")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(min=1, help="At most so many cases, drawn with --seed.", show_default="all")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Codebook, encoder, language model.", show_default="the settings' bundle")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="An index to search.", show_default="made of the catalogue, and removed")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="Of the items of an index that is made: catalogue, or popularity (occurrences before the cases)."
        ),
    ] = "catalogue",
    live: Annotated[bool, typer.Option("--live", help="Ask the running retrievers over the topics.")] = False,
    seconds_a_query: Annotated[
        float | None,
        typer.Option(min=0.1, callback=finite, help="With --live: how long an answer may take.", show_default="30"),
    ] = None,
    text_alone: Annotated[
        bool, typer.Option("--text-alone", help="Ask without the queries' embeddings, where the cases have some.")
    ] = False,
    embed: EmbedOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Another bundle to be better than: a directory, or an id of the bundle store.", show_default="none"
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(help="A bound, such as 'recall@10>=.4'; repeatable. A missed one ends with status 3."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap.")] = 1000,
    seed: SeedOption = 0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the whole result as JSON.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Write one HTML file with tables and plots.")] = None,
    columns: ColumnNames = ColumnNames(),
) -> None:
    """Measure how well items are found, beside the references to beat, on cases of yours."""
    from models.bundles.store import BundleStore
    from models.commands.towers import read_catalogue
    from retriever.evaluation.bounds import Bound
    from retriever.evaluation.command_options import require_together, require_two_files
    from retriever.evaluation.report.page import require_writable, write_json, write_page
    from retriever.evaluation.report.tables import show_bounds, show_evaluation
    from retriever.evaluation.session import DEFAULT_AT, WEIGHTS, Options, run_evaluation
    from retriever.evaluation.sources import SourceOptions, choose_split
    from retriever.evaluation.splits import TEST_FILE, TRAINING_FOLDER, VALIDATION_FILE, require_place_of_split
    from retriever.evaluation.splits import write_split as write_parts

    console, log = terminal(), terminal(stderr=True)
    if weights not in WEIGHTS:
        raise SidstreamError(f"--weights {weights!r} is unknown: choose one of {', '.join(WEIGHTS)}")
    require_together(partial(is_given, context))
    require_two_files(json, page)
    require_writable(json, page)
    if write_split is not None:
        require_place_of_split(write_split)
    bounds = tuple(Bound.parse(text) for text in require or ())
    sources = SourceOptions(
        examples, validation, training, interactions, leave_last_out, after, last_share, judged, least_rating
    )
    shop, towers = read_catalogue(
        catalogue,
        embed,
        columns,
    )
    if write_split is not None:
        write_parts(shop, choose_split(shop, sources), write_split)
        print_line(console, f"{write_split}: train on {write_split / TRAINING_FOLDER}, evaluate with", "green")
        print_command(console, "sidstream", "evaluate", write_split / TRAINING_FOLDER, "--examples",
                      write_split / TEST_FILE, "--validation", write_split / VALIDATION_FILE)  # fmt: skip
        return
    settings = load_settings() if bundle is None else load_settings(bundle=bundle)
    options = Options(
        sources=sources,
        at=tuple(at or DEFAULT_AT),
        by=tuple(by or ()),
        head_share=head_share,
        new_items=new_items,
        most_cases=cases,
        index=index,
        weights="popularity" if weights == "popularity" else "catalogue",
        live=live,
        send_embeddings=not text_alone,
        seconds_a_query=30.0 if seconds_a_query is None else seconds_a_query,
        bounds=bounds,
        against=None if against is None else BundleStore(settings.bundles).find(against).directory,
        resamples=resamples,
        seed=seed,
    )
    result = run_evaluation(settings, shop, options, log, towers.query_encoder().encode if towers is not None else None)
    show_evaluation(console, result)
    if json is not None:
        write_json(result, json)
    if page is not None:
        write_page(result, page)
    figures = result.named()
    missed = {bound.text: why for bound in bounds if (why := bound.missed_by(figures)) is not None}
    show_bounds(console, [bound.text for bound in bounds if bound.text not in missed], list(missed.values()))
    if missed:
        raise typer.Exit(BOUND_MISSED)
