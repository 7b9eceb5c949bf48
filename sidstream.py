"""The front door: one command line that mounts the commands of every part."""

from __future__ import annotations

import signal
from contextlib import suppress

# All that follows takes a second to import. A Ctrl-C meanwhile ends us without a traceback of somebody's imports.
_interrupted = signal.getsignal(signal.SIGINT)
if _interrupted is signal.default_int_handler:
    with suppress(ValueError):  # imported by another thread than the main one
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer
from confluent_kafka import KafkaError, KafkaException

import demo.commands
import gateway.commands
import models.commands.after_training
import models.commands.bundle_places
import models.commands.fit
import models.commands.towers
import models.commands.train
import retriever.commands
import retriever.refreshing.command
import streamer.commands.broker
import streamer.commands.dead_letters
import streamer.commands.deployments
import streamer.commands.exports
import streamer.commands.interactions
import streamer.commands.monitor
import streamer.commands.operations
import streamer.commands.pipeline
import streamer.commands.publish
import study.commands
from models.errors import SidstreamError
from models.terminal import print_message, terminal
from streamer.process.logs import speaks_json
from streamer.settings import load_settings

with suppress(ValueError):
    signal.signal(signal.SIGINT, _interrupted)

app = typer.Typer(
    name="sidstream",
    help="An event-driven streaming indexer for generative retrieval: item updates in, answers a moment later.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def settings(
    config: Annotated[Path | None, typer.Option(help="The settings file.", show_default="sidstream.toml")] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="The Kafka cluster.", show_default="kafka.bootstrap_servers")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Codebook, encoder, language model.", show_default="bundle")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="The LMDB directory.", show_default="index")] = None,
) -> None:
    """Options before the command win over the environment and the file, also in the processes that it starts."""
    for variable, value in (
        ("SIDSTREAM_CONFIG", config),
        ("SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS", bootstrap_servers),
        ("SIDSTREAM_BUNDLE", bundle),
        ("SIDSTREAM_INDEX", index),
    ):
        if value is not None:
            os.environ[variable] = str(value)


COMMANDS: Final[dict[str, list[Callable[..., None]]]] = {
    "Start here": [
        demo.commands.demo,
        streamer.commands.pipeline.up,
        retriever.commands.ask,
        streamer.commands.pipeline.status,
    ],
    "Prepare": [
        streamer.commands.broker.broker,
        streamer.commands.broker.acls,
        models.commands.towers.towers,
        models.commands.fit.fit,
        models.commands.train.train,
        retriever.commands.evaluate,
        retriever.refreshing.command.refresh,
    ],
    "Feed and watch": [
        streamer.commands.publish.publish,
        streamer.commands.monitor.alerts,
        streamer.commands.interactions.interactions,
        streamer.commands.interactions.hit_rates,
        streamer.commands.interactions.examples,
        streamer.commands.exports.catalogue,
        streamer.commands.exports.export,
    ],
    "Generations": [
        streamer.commands.deployments.deploy,
        streamer.commands.deployments.promote,
        streamer.commands.deployments.rollback,
        streamer.commands.deployments.retire,
        streamer.commands.deployments.deployments,
    ],
    "On call": [
        streamer.commands.operations.verify,
        streamer.commands.operations.rebuild,
        streamer.commands.operations.backup,
        streamer.commands.operations.restore,
    ],
    "Processes, one by one": [
        streamer.commands.pipeline.assigner,
        streamer.commands.pipeline.indexer,
        streamer.commands.monitor.monitor,
        retriever.commands.retriever,
        gateway.commands.gateway,
    ],
    "Research": [study.commands.study],
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(streamer.commands.broker.topics, name="topics", rich_help_panel="Prepare")
app.add_typer(streamer.commands.dead_letters.dlq, name="dlq", rich_help_panel="On call")


def _choose_mixture(trained: models.commands.after_training.Trained) -> None:
    from retriever.choosing_mixture import choose_mixture

    choose_mixture(trained)


# Commands of models lie below the settings.
models.commands.bundle_places.PLACES["bundle"] = lambda: load_settings().bundle
models.commands.bundle_places.PLACES["bundles"] = lambda: load_settings().bundles
# Training lies below the search, by whose answers the mixture is chosen.
models.commands.after_training.AFTER_TRAINING.append(_choose_mixture)


def main() -> None:
    """Run the command line; a fault that a person can act on is a message, not a traceback."""
    # Until a process configures its log: standard output is for answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        app()
    except KeyboardInterrupt:  # before there is a command, which hears of it by itself
        sys.exit(128 + signal.SIGINT)
    except SidstreamError as error:
        _tell(str(error))
        sys.exit(1)
    except KafkaException as error:
        # The second: a client got no token, of which the log says why.
        if error.args[0].code() not in (KafkaError._INVALID_ARG, KafkaError.SASL_AUTHENTICATION_FAILED):
            raise
        _tell(f"the Kafka client refuses its settings ([kafka] and [kafka.security]): {error.args[0].str()}")
        sys.exit(1)


def _tell(message: str) -> None:
    """Why the command has failed; where the log has JSON lines, as one of them."""
    if speaks_json():
        structlog.get_logger(__name__).error("failed", reason=message)
    else:
        print_message(terminal(stderr=True), message)


if __name__ == "__main__":
    main()
