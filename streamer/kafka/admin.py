"""The topics: their shapes from the settings, made by us with explicit policies, never altered behind anyone's back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType, TopicMetadata

from models.errors import SidstreamError
from streamer.events.topics import FoundTopic, TopicSpec, topic_faults, topic_specs
from streamer.kafka.clients import ErrorListener, client_configuration
from streamer.kafka.errors import LoginRefusedError, Meaning, error_text, meaning, told
from streamer.kafka.login.sources import reason_for_no_token
from streamer.kafka.login.tokens import TokenRefusedError
from streamer.process.health import Health, Part
from streamer.settings import Settings
from streamer.settings.kafka import KafkaSettings

log = structlog.get_logger(__name__)
_REQUEST_SECONDS: Final = 15.0
# A refused login is heard of between two attempts; a slow broker has the last one.
_METADATA_SECONDS: Final = (1.0, 2.0, 4.0, 8.0)
# Of a process that waits: it says so soon, and looks again whether it is to stop.
_ONE_LOOK_SECONDS: Final = (1.0, 2.0)
_RETRY_SECONDS: Final = 0.02
_AWAY_SECONDS: Final = 1.0


class TopicError(SidstreamError):
    """The cluster refuses or cannot be asked about topics."""


class TopicMismatchError(TopicError):
    """A topic exists, and is not as it must be; the message has the command that mends each fault."""


class ClusterAwayError(TopicError):
    """No broker answers: it does not run, or the settings name another place."""


class MissingTopicsError(TopicError):
    """Topics that a process needs do not exist. A consumer of a missing topic would wait in silence for ever."""


@dataclass(frozen=True)
class TopicDescription:
    """A topic as the cluster has it. ``offsets``: (first, next) offset of each partition."""

    name: str
    partitions: int
    replication: int
    cleanup_policy: str
    offsets: tuple[tuple[int, int], ...]

    @property
    def records(self) -> int:
        """Offsets in the log: at most this many records, as compaction and transaction markers leave gaps."""
        return sum(next_offset - first for first, next_offset in self.offsets)


@dataclass(frozen=True)
class CreationOutcome:
    """Names of the topics that were made, and of those that were there in the same shape."""

    created: tuple[str, ...]
    existing: tuple[str, ...]


def create(kafka: KafkaSettings, specs: Sequence[TopicSpec]) -> CreationOutcome:
    """Create the topics that are not there; all existing ones are compared before the first is created.

    An existing topic may have more partitions than the settings say: it has grown since.

    Raises:
        TopicMismatchError: an existing topic is not as it must be; nothing is altered.
        TopicError: the cluster refuses, or does not answer.
    """
    admin = _Admin(kafka)
    existing = _refuse_mismatches(admin, kafka, specs)
    missing = [spec for spec in specs if spec.name not in existing]
    new = [NewTopic(spec.name, spec.partitions, spec.replication, config=dict(spec.config)) for spec in missing]
    lost_race = []
    for name, future in (admin.create_topics(new, operation_timeout=_REQUEST_SECONDS) if new else {}).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicError(
                    f"topic {name} cannot be created on {kafka.bootstrap_servers}: {error_text(error)}"
                ) from None
            lost_race.append(name)
    if lost_race:
        _refuse_mismatches(admin, kafka, [spec for spec in missing if spec.name in lost_race])
    created = tuple(spec.name for spec in missing if spec.name not in lost_race)
    if created:
        _await_visible(admin, kafka, created)
        log.info("topics_created", topics=created)
    return CreationOutcome(created, tuple(spec.name for spec in specs if spec.name not in created))


def _await_visible(admin: _Admin, kafka: KafkaSettings, names: Sequence[str]) -> None:
    """The controller answers before every broker knows of a new topic; a client that asks at once would miss it."""
    give_up = time.monotonic() + _REQUEST_SECONDS
    while not (metadata := _metadata(admin, kafka)).keys() >= set(names):
        if time.monotonic() > give_up:
            raise TopicError(
                f"{kafka.bootstrap_servers} does not list its new topics after {_REQUEST_SECONDS:.0f} s: try again"
            )
        time.sleep(_RETRY_SECONDS)
    # A partition is listed a moment before its leader serves it.
    _offsets(
        admin, kafka, [(name, number) for name in names for number in metadata[name].partitions], OffsetSpec.latest()
    )


def describe(kafka: KafkaSettings, names: Iterable[str]) -> list[TopicDescription]:
    """The topics among ``names`` that exist, in this order.

    Raises:
        TopicError: the cluster refuses, or does not answer.
    """
    admin = _Admin(kafka)
    metadata = _metadata(admin, kafka)
    present = [metadata[name] for name in names if name in metadata]
    configs = _configs(admin, kafka, [topic.topic for topic in present])
    partitions = [(topic.topic, number) for topic in present for number in sorted(topic.partitions)]
    first = _offsets(admin, kafka, partitions, OffsetSpec.earliest())
    following = _offsets(admin, kafka, partitions, OffsetSpec.latest())
    return [
        TopicDescription(
            name=topic.topic,
            partitions=len(topic.partitions),
            replication=_replication(topic),
            cleanup_policy=configs.get(topic.topic, {}).get("cleanup.policy", "not readable"),
            offsets=tuple(
                (first[topic.topic, number], following[topic.topic, number]) for number in sorted(topic.partitions)
            ),
        )
        for topic in present
    ]


def require(kafka: KafkaSettings, names: Iterable[str], attempt_seconds: Sequence[float] = _METADATA_SECONDS) -> None:
    """Return if every topic exists. ``attempt_seconds``: how long each attempt waits for an answer.

    Raises:
        MissingTopicsError: names each missing one and what to do.
        ClusterAwayError: the cluster does not answer.
        LoginRefusedError: it refuses our user or password.
    """
    _refuse_missing(kafka, names, _metadata(_Admin(kafka), kafka, attempt_seconds))


def await_topics(settings: Settings, names: Sequence[str], stop: threading.Event, health: Health) -> bool:
    """``require_usable`` for a process: a cluster that is away is waited for; ``False`` when ``stop`` was set first.

    Raises:
        MissingTopicsError: names each missing one and what to do.
        TopicMismatchError: names everything that does not hold of them, and the commands that mend it.
        LoginRefusedError: the cluster refuses our user or password.
    """
    return await_answer(lambda: require_usable(settings, names, _ONE_LOOK_SECONDS), stop, health)


def await_answer(ask: Callable[[], None], stop: threading.Event, health: Health) -> bool:
    """Asks again and again as long as the cluster is away (``ClusterAwayError``); ``False`` when ``stop`` was set first."""
    while not stop.is_set():
        health.progress()
        try:
            ask()
            return True
        except ClusterAwayError as error:
            log.warning("waiting_for_broker", reason=str(error))
            health.set_unready(Part.BROKER, str(error))
            stop.wait(_AWAY_SECONDS)
    return False


def require_usable(
    settings: Settings, names: Sequence[str], attempt_seconds: Sequence[float] = _METADATA_SECONDS
) -> None:
    """Return if every topic exists and is as it must be (``streamer.events.topics``). Asks twice: metadata, properties.

    A user who may not read the properties of topics is warned, and only partitions are held against the table.

    Raises:
        MissingTopicsError: names each missing one and what to do.
        TopicMismatchError: names everything that does not hold of them, and the commands that mend it.
        ClusterAwayError: the cluster does not answer.
        LoginRefusedError: it refuses our user or password.
    """
    kafka = settings.kafka
    admin = _Admin(kafka)
    metadata = _metadata(admin, kafka, attempt_seconds)
    _refuse_missing(kafka, names, metadata)
    specs = [spec for spec in topic_specs(settings) if spec.name in names]
    _refuse_faults(admin, kafka, specs, metadata)


def _refuse_missing(kafka: KafkaSettings, names: Iterable[str], metadata: Mapping[str, TopicMetadata]) -> None:
    missing = [name for name in names if name not in metadata]
    if missing:
        raise MissingTopicsError(
            f"{kafka.bootstrap_servers} has no topic {', '.join(missing)}: run `sidstream topics create` "
            "(or correct topics.* in the settings)"
        )


def _refuse_faults(
    admin: _Admin, kafka: KafkaSettings, specs: Sequence[TopicSpec], metadata: Mapping[str, TopicMetadata]
) -> None:
    present = [spec for spec in specs if spec.name in metadata]
    configs = _configs(admin, kafka, [spec.name for spec in present])
    found = {
        spec.name: FoundTopic(
            len(metadata[spec.name].partitions), _replication(metadata[spec.name]), configs.get(spec.name)
        )
        for spec in present
    }
    faults = topic_faults(present, found, kafka.bootstrap_servers)
    if faults:
        secured = " (with --command-config for a secured cluster)" if kafka.security else ""
        raise TopicMismatchError(
            f"topics on {kafka.bootstrap_servers} are not as they must be; nothing was changed. Run these commands{secured} and "
            "start again:\n" + "\n".join(f"  {fault.what}:\n    {fault.command}" for fault in faults)
        )


def _refuse_mismatches(admin: _Admin, kafka: KafkaSettings, specs: Sequence[TopicSpec]) -> set[str]:
    """Names of the specs that exist, all of them usable and not smaller than the settings say."""
    metadata = _metadata(admin, kafka)
    existing = [spec for spec in specs if spec.name in metadata]
    faults, small = [], 0
    for spec in existing:
        topic = metadata[spec.name]
        if len(topic.partitions) < spec.partitions:
            faults.append(f"{spec.name} has {len(topic.partitions)} partitions instead of {spec.partitions}")
            small = max(small, spec.partitions)
        if _replication(topic) != spec.replication:
            faults.append(f"{spec.name} has {_replication(topic)} replicas instead of {spec.replication}")
    if faults:
        grow = f"add partitions with `sidstream topics repartition --partitions {small}`, " if small else ""
        raise TopicMismatchError(
            f"topics on {kafka.bootstrap_servers} have another shape than the settings; nothing was changed. Correct topics.* in "
            f"the settings, {grow}or alter or delete these topics yourself:\n  " + "\n  ".join(faults)
        )
    _refuse_faults(admin, kafka, specs, metadata)
    return {spec.name for spec in existing}


class _Admin(AdminClient):  # type: ignore[misc]
    """An admin client that tells what it heard of a refused login.

    Raises:
        LoginRefusedError, ClusterAwayError: a token provider of the user's own gives no token.
        TopicError: a property of ``kafka.security`` is refused.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        if kafka.oauth_token_provider:
            _refuse_tokenless(kafka)  # the client would wait for a token, and not say why there is none
        configuration = client_configuration(kafka)
        self.errors: ErrorListener = configuration["error_cb"]
        try:
            super().__init__(configuration)
        except KafkaException as error:
            raise TopicError(f"the client refuses its settings ({error_text(error)}): correct kafka.security") from None


def _metadata(
    admin: _Admin, kafka: KafkaSettings, attempt_seconds: Sequence[float] = _METADATA_SECONDS
) -> dict[str, TopicMetadata]:
    for attempt, seconds in enumerate(attempt_seconds):
        try:
            topics: dict[str, TopicMetadata] = admin.list_topics(timeout=seconds).topics
        except KafkaException as error:
            reason = error_text(error)
        else:
            return topics
        admin.poll(0)  # what the client heard meanwhile
        if admin.errors.no_token is not None:
            _refuse_tokenless(kafka)
        # A broker that goes away during the handshake looks the same, once.
        if attempt and admin.errors.refusal is not None:
            raise LoginRefusedError(kafka, admin.errors.refusal)
    if kafka.uses_tokens:  # a client that has none looks the same as one whose broker is away
        _refuse_tokenless(kafka)
    raise ClusterAwayError(
        f"{kafka.bootstrap_servers} does not tell its topics ({reason}): is the broker running "
        "(`sidstream up` or `sidstream broker`), and are kafka.bootstrap_servers and kafka.security right?"
    )


def _refuse_tokenless(kafka: KafkaSettings) -> None:
    """Return if a token is given to us.

    Raises:
        LoginRefusedError: it is refused.
        ClusterAwayError: nobody answers who could give one.
    """
    reason = reason_for_no_token(kafka)
    if isinstance(reason, TokenRefusedError):
        raise LoginRefusedError(kafka, str(reason))
    if reason is not None:
        raise ClusterAwayError(f"there is no token to log in to {kafka.bootstrap_servers} with: {reason}")


def _replication(topic: TopicMetadata) -> int:
    return min((len(partition.replicas) for partition in topic.partitions.values()), default=0)


def _configs(admin: _Admin, kafka: KafkaSettings, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The effective properties of each topic; without those that we may not read, which is told."""
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    configs, hidden = {}, []
    for resource, answer in admin.describe_configs(resources, request_timeout=_REQUEST_SECONDS).items():
        try:
            entries = answer.result()
        except KafkaException as error:
            code = error.args[0].code()
            if code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
                hidden.append(resource.name)
                continue
            text = f"{kafka.bootstrap_servers} does not tell the properties of {resource.name}: {error_text(error)}"
            raise (ClusterAwayError if meaning(error.args[0]) is Meaning.PASSING else TopicError)(text) from error
        configs[resource.name] = {name: entry.value for name, entry in entries.items() if entry.value is not None}
    if hidden:
        log.warning(
            "topics_not_verified",
            topics=hidden,
            reason="this user may not read the properties of these topics",
            next="allow it DescribeConfigs on them, or compare them with `sidstream topics describe` as another user",
        )
    return configs


def _offsets(
    admin: _Admin, kafka: KafkaSettings, partitions: Sequence[tuple[str, int]], spec: OffsetSpec
) -> dict[tuple[str, int], int]:
    if not partitions:
        return {}
    wanted = {TopicPartition(topic, number): spec for topic, number in partitions}
    give_up = time.monotonic() + _REQUEST_SECONDS
    while True:
        answers = admin.list_offsets(
            wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=_REQUEST_SECONDS
        )
        try:
            return {(key.topic, key.partition): _answer(future, kafka) for key, future in answers.items()}
        except TopicError as error:
            cause = error.__cause__
            passing = isinstance(cause, KafkaException) and meaning(cause.args[0]) is Meaning.PASSING
            if not passing or time.monotonic() > give_up:
                raise
        time.sleep(_RETRY_SECONDS)


def _answer(future: Any, kafka: KafkaSettings) -> int:
    try:
        return told(int(future.result().offset))
    except KafkaException as error:
        raise TopicError(f"{kafka.bootstrap_servers} refuses to describe its topics: {error_text(error)}") from error
