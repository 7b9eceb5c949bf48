"""The rights that each process and client needs on a cluster with access control, as lines for Kafka's own tool.

What must hold: a process that has the rights of its lines alone works (a test runs the pipeline so, on a broker that refuses
everything else).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from streamer.events.documents.users import TopicUser, topic_users
from streamer.settings import Settings

Kind = Literal["topic", "group", "transactional-id"]


@dataclass(frozen=True)
class Right:
    """``operations`` on resources of a kind; ``prefixed``: on all whose names begin with ``name``."""

    kind: Kind
    name: str
    operations: tuple[str, ...]
    prefixed: bool = False


def rights_of(user: TopicUser, settings: Settings) -> list[Right]:
    """What a user may do; who asks for more is refused by the broker."""
    if user.everything:
        every = ("Read", "Write", "Create", "Alter", "AlterConfigs", "Describe", "DescribeConfigs", "Delete")
        rights = [Right("topic", settings.topics.prefix or "*", every, prefixed=bool(settings.topics.prefix))]
    else:
        rights = [
            Right("topic", name, _topic_operations(user, name)) for name in dict.fromkeys(user.reads + user.writes)
        ]
        rights += [Right("topic", f"{name}-", _topic_operations(user, name), prefixed=True) for name in user.prefixed]
    rights += [Right("group", name, ("Read", "Describe"), prefixed=True) for name in user.groups]
    rights += [Right("transactional-id", name, ("Write", "Describe"), prefixed=True) for name in user.transactional_ids]
    return rights


def _topic_operations(user: TopicUser, topic: str) -> tuple[str, ...]:
    read = ("Read",) if topic in user.reads or topic in user.offsets else ()
    write = ("Write",) if topic in user.writes else ()
    # Each process looks at the shape of its topics when it starts.
    return (*read, *write, "Describe", "DescribeConfigs")


def acl_lines(settings: Settings, principals: Mapping[str, str], command: str = "kafka-acls") -> Iterator[str]:
    """Lines for a shell. ``principals``: of who has another than ``User:sidstream-<name>``."""
    servers = settings.kafka.bootstrap_servers
    for user in topic_users(settings):
        principal = principals.get(user.name, f"User:sidstream-{user.name}")
        yield f"# the {user.name}, which {user.does}"
        for right in rights_of(user, settings):
            words = [command, "--bootstrap-server", servers, "--add", "--allow-principal", principal]
            words += _named(right.operations)
            words += [f"--{right.kind}", right.name]
            if right.prefixed:
                words += ["--resource-pattern-type", "prefixed"]
            yield shlex.join(words)


def _named(operations: Iterable[str]) -> list[str]:
    return [word for operation in operations for word in ("--operation", operation)]
