"""Which process reads and writes which topics, under which group and transactional id: one table, for documents and rights alike.

What must hold: a process needs nothing that is not here (a test runs each one with these rights alone).
"""

from __future__ import annotations

from dataclasses import dataclass

from streamer.events.topics import monitor_changelog
from streamer.settings import Settings


@dataclass(frozen=True)
class TopicUser:
    """A process, or a client.

    ``does``: in a sentence; ``reads``, ``writes``: names of topics; ``groups``, ``transactional_ids``: beginnings of their names;
    ``offsets``: topics of which it keeps offsets of its own without reading them; ``prefixed``: topics whose names begin so
    belong to it too (those of the codebooks after the first); ``process``: it is one of ours; ``everything``: its commands may
    concern any topic.
    """

    name: str
    does: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    transactional_ids: tuple[str, ...] = ()
    offsets: tuple[str, ...] = ()
    prefixed: tuple[str, ...] = ()
    process: bool = True
    everything: bool = False


def topic_users(settings: Settings) -> tuple[TopicUser, ...]:
    """Everyone, in the order of the data's way."""
    topics, named = settings.topics, settings.in_cluster
    assigner, retriever = named(settings.assigner.group), named(settings.retriever.group)
    monitor = settings.monitor_app_id
    return (
        TopicUser(
            "producer",
            "publishes items, their attributes, and what users did",
            writes=(topics.item_updates, topics.item_attributes, topics.interactions),
            process=False,
        ),
        TopicUser(
            "follower",
            "publishes a table and what changes in it, each batch once (sidstream publish --follow)",
            writes=(topics.item_updates, topics.item_attributes),
            groups=(named("sidstream-publish-"),),
            transactional_ids=(named("sidstream-publish-"),),
            offsets=(topics.item_updates,),
            process=False,
        ),
        TopicUser(
            "assigner",
            "gives each item its codes",
            reads=(topics.item_updates, topics.serving, topics.item_codes),
            writes=(topics.item_codes, topics.item_updates_dead_letters),
            groups=(assigner, named("sidstream-")),
            transactional_ids=(assigner,),
            prefixed=(topics.item_codes,),
        ),
        TopicUser(
            "indexer",
            "puts codes and attributes into the index of its host, and counts tokens",
            reads=(topics.item_codes, topics.item_attributes, topics.layouts, topics.item_updates, topics.serving),
            writes=(topics.token_counts, topics.item_attributes_dead_letters, topics.item_updates_dead_letters),
            groups=(named("sidstream-"),),
            transactional_ids=(named("sidstream-indexer"),),
            prefixed=(topics.item_codes,),
        ),
        TopicUser(
            "monitor",
            "watches the counts, raises alerts and issues layouts",
            reads=(
                topics.token_counts,
                topics.layouts,
                topics.alerts,
                topics.drift,
                monitor_changelog(settings),
                topics.serving,
            ),
            writes=(topics.layouts, topics.alerts, topics.drift, monitor_changelog(settings)),
            groups=(monitor, named("sidstream-")),
            transactional_ids=(monitor,),
        ),
        TopicUser(
            "retriever",
            "answers queries",
            reads=(topics.queries, topics.serving),
            writes=(topics.results, topics.queries_dead_letters),
            groups=(retriever, named("sidstream-")),
            transactional_ids=(retriever,),
        ),
        TopicUser(
            "gateway",
            "asks, answers and writes for those who speak HTTP",
            reads=(
                topics.results,
                topics.drift,
                topics.alerts,
                topics.layouts,
                topics.serving,
                # Whether a write is indexed, or was refused.
                topics.item_updates,
                topics.item_updates_dead_letters,
                topics.item_codes,
                topics.item_attributes,
                topics.item_attributes_dead_letters,
            ),
            writes=(topics.queries, topics.item_updates, topics.item_attributes),
            groups=(named("sidstream-"), assigner),
            prefixed=(topics.item_codes,),
        ),
        TopicUser(
            "client",
            "asks queries and reads the answers",
            reads=(topics.results, topics.alerts, topics.drift),
            writes=(topics.queries,),
            groups=(named("sidstream-client"),),
            process=False,
        ),
        TopicUser(
            "operator",
            "deploys bundles, sends dead letters again, and reads what users did",
            reads=(
                topics.item_updates_dead_letters,
                topics.item_attributes_dead_letters,
                topics.queries_dead_letters,
                topics.interactions,
                topics.interactions_dead_letters,
                topics.replayed_dead_letters,
                topics.serving,
            ),
            writes=(topics.serving, topics.replayed_dead_letters, topics.interactions_dead_letters),
            groups=(named("sidstream-"), monitor),
            transactional_ids=(named("sidstream-"),),
            process=False,
            everything=True,
        ),
    )
