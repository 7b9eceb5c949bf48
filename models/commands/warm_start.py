"""`sidstream train --from`: which bundle is meant, options that contradict what its model keeps, and what a person is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.commands.given_options import is_given, option_of
from models.errors import SidstreamError
from models.terminal import shown

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from models.bundles.bundle import Bundle
    from models.bundles.warm_start import Items, Origin


def bundle_to_go_on_from(named: str | None, checkpoint: Path | None, store: Path, console: Console) -> Bundle | None:
    """The bundle of ``--from``, or that whose model ``--checkpoint`` names; None where neither names a bundle.

    Raises ``SidstreamError`` for both at once, and for a bundle that is not there or has no model.
    """
    from models.bundles.bundle import Bundle
    from models.bundles.store import BundleStore
    from models.bundles.warm_start import bundle_of_checkpoint

    if named is not None and checkpoint is not None:
        raise SidstreamError(
            "--from goes on from a bundle's model, and --checkpoint from another one: give one of the two"
        )
    if named is not None:
        return Bundle.open(BundleStore(store).find(named).directory, need_model=True)
    directory = None if checkpoint is None else bundle_of_checkpoint(checkpoint)
    if directory is None:
        return None
    console.print(
        f"{shown(checkpoint)} is of the bundle {shown(directory)}: training goes on from it, as with --from",
        soft_wrap=True,
    )
    return Bundle.open(directory, need_model=True)


def items_of(catalogue: Path | None) -> Items | None:
    """The items of ``--from-catalogue``, if that is given."""
    if catalogue is None:
        return None
    from models.bundles.warm_start import Items
    from models.tables.catalogues import read_catalogue

    read = read_catalogue(catalogue)
    return Items([item.id for item in read.items], read.embeddings)


def require_kept(context: typer.Context, bundle: Bundle) -> None:
    """Raises ``SidstreamError`` for the first option that was given and says something else than what a warm start from this
    bundle keeps.
    """
    from models.language.instruction import framed, parse_instruction
    from models.language.tokenizer import TextTokenizer

    record = bundle.manifest.language_model
    assert record is not None
    prompt = record.prompt
    shape = _shape(bundle)
    kept: dict[str, Any] = {
        "user_buckets": record.vocabulary.user_buckets,
        "max_history": prompt.max_history,
        "max_text_tokens": prompt.max_text_tokens,
        "query_codes": prompt.query_codes,
        "history_text": prompt.history_text,
        "prompt": "instruction" if prompt.instruction else "bare",
        "hidden_size": shape.get("hidden_size"),
        "model_layers": shape.get("num_hidden_layers"),
        "architecture": record.training.get("architecture"),
    }
    for name, value in kept.items():
        if is_given(context, name) and context.params[name] != value:
            raise _contradiction(
                context, name, bundle, f"{option_of(context, name)} {value}" if value else f"no {name}"
            )
    if is_given(context, "instruction"):
        words = framed(
            parse_instruction(context.params["instruction"]), TextTokenizer.load(bundle.model_directory).chat_frame
        )
        if words != prompt.instruction:
            raise _contradiction(context, "instruction", bundle, "other words")


def _contradiction(context: typer.Context, name: str, bundle: Bundle, kept: str) -> SidstreamError:
    return SidstreamError(
        f"{option_of(context, name)} is not what the model of {bundle.directory} was trained with, which a warm start keeps "
        f"({kept.replace('_', ' ')}): leave the option out, or train without --from"
    )


def _shape(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle.model_directory / "config.json").read_bytes())
    return found


def describe_origin(origin: Origin, size: int, console: Console, *, validated: bool) -> None:
    """What training goes on from; ``size``: M of the codebook that it is for; ``validated``: whether examples are given that the
    model cannot have learnt.
    """
    console.print(
        f"goes on from the model {shown(origin.record.id)} of the bundle {shown(origin.bundle.id)} ({shown(origin.given)})",
        soft_wrap=True,
    )
    if (tokens := origin.tokens) is not None:
        known = int(tokens.known().sum())
        console.print(
            f"  its codebook is another one: {known:,} of {tokens.layers * size:,} SID tokens begin at the old tokens of their "
            "items, or of the nearest codeword; the others at the mean",
            soft_wrap=True,
        )
    if not validated:
        console.print(
            "[yellow]![/] without --validation what is held back is drawn from all examples, and the model may have learnt it "
            "before: losses and mixture look better than they are. Give what came since",
            soft_wrap=True,
        )
