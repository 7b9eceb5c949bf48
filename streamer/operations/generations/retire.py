"""A bundle's end, and with the last one of a codebook that of its pipeline: processes, group, topic, index.

What must hold: nothing that answers, or that a rollback goes back to, is retired; an index is deleted only when nobody has it
open. The record goes first and the bundle's directory last, so that whatever it is killed at, it can be run again by the same
name and does what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from models.bundles.store import BundleStore
from models.errors import SidstreamError
from store.checks.usage import remove_index, users_of
from store.reading.reader import IndexReader
from store.writing.failpoints import Failpoint, reach
from streamer.deployments.log import change_serving
from streamer.deployments.pipelines import DeploymentError, codes_topic_of, group_of, index_of, suffix_of
from streamer.deployments.served import find_serving
from streamer.events.serving import Pipeline, Serving
from streamer.kafka.admin import TopicError, describe
from streamer.kafka.clients import client_configuration
from streamer.kafka.errors import error_text
from streamer.kafka.groups import GroupReader, GroupStartingError
from streamer.settings import Settings

_REQUEST_SECONDS: Final = 15.0
_END_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.3


def retire(
    settings: Settings,
    name: str,
    *,
    force: bool = False,
    seconds: float = _END_SECONDS,
    tell: Callable[[str], None] = lambda _line: None,
) -> Serving:
    """Retire the bundle that ``name`` means; the record afterwards. ``force``: also what a rollback would go back to.

    ``seconds``: how long to wait for the pipeline's processes, and for readers of its index, to end.

    Raises:
        DeploymentError: it answers, or somebody still uses what is to go; what to do.
    """
    serving = find_serving(settings)
    if serving is None:
        raise DeploymentError("nothing was ever deployed here, so nothing can be retired")
    deployed = [one for one in serving.deployed if name and one.bundle.startswith(name)]
    store = BundleStore(settings.bundles)
    if len(deployed) == 1:
        target, codebook = deployed[0].bundle, deployed[0].codebook
    else:
        bundle = store.find(name)  # also what an earlier run has taken out of the record
        target, codebook = bundle.id, bundle.layout.codebook_id

    def change(found: Serving | None) -> Serving:
        if found is None:
            raise DeploymentError("what answers is not known any more: somebody removed the record")
        return _without(found, target, force=force)

    serving = change_serving(settings, change, cause="retire")
    if all(one.codebook != codebook for one in serving.pipelines):
        for pipeline in _names(serving, codebook):
            _remove_pipeline(settings, pipeline, seconds, tell)
    if store.remove(target):
        tell(f"the bundle {target} is removed")
    return serving


def _without(found: Serving, target: str, *, force: bool) -> Serving:
    if found.bundle == target:
        raise DeploymentError(f"the bundle {target} answers: `sidstream promote` another one first")
    if found.canary == target:
        raise DeploymentError(f"the bundle {target} is the canary: `sidstream rollback` ends that first")
    if found.previous == target and not force:
        raise DeploymentError(
            f"a rollback would go back to the bundle {target}: once you are sure of {found.bundle}, retire it with --force"
        )
    deployed = tuple(one for one in found.deployed if one.bundle != target)
    left = {one.codebook: one.bundle for one in reversed(deployed)}
    pipelines = tuple(
        msgspec.structs.replace(one, bundle=left[one.codebook]) if one.bundle == target else one
        for one in found.pipelines
        if one.codebook in left
    )
    previous = None if found.previous == target else found.previous
    return msgspec.structs.replace(found, deployed=deployed, pipelines=pipelines, previous=previous)


def _names(serving: Serving, codebook: str) -> list[Pipeline]:
    """What a codebook's pipeline may have been called. The first one's names belong to nobody else any more, or to another."""
    suffixes = [suffix_of(codebook)] + ([""] if all(one.suffix for one in serving.pipelines) else [])
    return [Pipeline(codebook=codebook, bundle="", suffix=suffix, since=0) for suffix in suffixes]


def _remove_pipeline(settings: Settings, pipeline: Pipeline, seconds: float, tell: Callable[[str], None]) -> None:
    index = index_of(settings, pipeline)
    own = _codebook_in(index) in (None, pipeline.codebook)  # the settings may name another one's by now
    give_up = time.monotonic() + seconds
    while users := [*_members(settings, pipeline), *(users_of(index) if own else ())]:
        if time.monotonic() > give_up:
            raise DeploymentError(
                f"the pipeline of the codebook {pipeline.codebook} is still used by {', '.join(users)}: end them (`sidstream "
                "up` does it by itself), and run this again; its topic and index are there until then"
            )
        time.sleep(_LOOK_SECONDS)
    for what in remove_topic_and_group(settings, pipeline):
        tell(f"{what} is deleted")
    if own and remove_index(index):
        tell(f"the index {index} is deleted")
    reach(Failpoint.INDEX_DELETED)


def _codebook_in(index: Path) -> str | None:
    """None where there is no index that can be read."""
    try:
        with IndexReader(index) as reader, reader.snapshot() as snapshot:
            return snapshot.codebook_id
    except SidstreamError:
        return None


def _members(settings: Settings, pipeline: Pipeline) -> list[str]:
    with GroupReader(settings.kafka, group_of(settings, pipeline)) as reader:
        try:
            count = reader.members()
        except GroupStartingError:
            return ["a group whose coordinator has just started"]
    return [f"{count} in the group {reader.group}"] if count else []


def remove_topic_and_group(settings: Settings, pipeline: Pipeline) -> list[str]:
    """Deletes a pipeline's group, then its topic of codes, and says which were there.

    In this order: offsets that outlive their topic would pass over what the next one of the name holds.

    Raises:
        DeploymentError: a process is in the group.
        TopicError: the cluster refuses.
    """
    admin = AdminClient(client_configuration(settings.kafka))
    group, topic = group_of(settings, pipeline), codes_topic_of(settings, pipeline)
    done = []
    [deletion] = admin.delete_consumer_groups([group], request_timeout=_REQUEST_SECONDS).values()
    if _done(deletion, KafkaError.GROUP_ID_NOT_FOUND, f"the group {group}"):
        done.append(f"the group {group}")
    reach(Failpoint.GROUP_DELETED)
    if describe(settings.kafka, [topic]):
        [deletion] = admin.delete_topics([topic], request_timeout=_REQUEST_SECONDS).values()
        _done(deletion, KafkaError.UNKNOWN_TOPIC_OR_PART, f"the topic {topic}")
        give_up = time.monotonic() + _REQUEST_SECONDS
        while describe(settings.kafka, [topic]) and time.monotonic() < give_up:
            time.sleep(_LOOK_SECONDS)
        done.append(f"the topic {topic}")
    reach(Failpoint.CODES_TOPIC_DELETED)
    return done


def _done(deletion: Any, gone: int, what: str) -> bool:
    """Whether it was there."""
    try:
        deletion.result()
    except KafkaException as error:
        code = error.args[0].code()
        if code == gone:
            return False
        if code == KafkaError.NON_EMPTY_GROUP:
            raise DeploymentError(f"{what} has a process: end it (`sidstream up` does), and run this again") from error
        raise TopicError(f"{what} cannot be deleted: {error_text(error)}") from error
    return True
