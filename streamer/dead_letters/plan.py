"""Which dead letters a replay sends again, and why it leaves the others: decided before anything is sent.

What must hold: an item never falls back to an older state. A letter is the state that an item had when it was refused;
what the topic holds for its key since then is newer, be it an update or a deletion, and a replay would overwrite it. So:

* the age of a record is its offset; of a replayed one the offset that its original had (``dlq.replayed.offset``);
* a letter is out of date if its partition holds a younger record of its key that was not refused itself;
* older than tombstones stay, it may be out of date and nobody can tell.

An event goes to the assigners of all codebooks, and each writes a letter of its own: it is sent again once, for all of them. It
counts as refused where all of them have refused it; where one has used it, an older letter would put its item back.

Letters of one key are replayed in their order: younger ones that are letters themselves put nothing out of date.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Consumer, Message

from streamer.dead_letters.progress import ReplayProgress
from streamer.dead_letters.reading import (
    REPLAYED_HEADER,
    DeadLetter,
    Place,
    Source,
    dead_letter_topics,
    read_record,
    topics_of_items,
)
from streamer.deployments.served import find_serving
from streamer.events.headers import UnreadableHeadersError, headers_of
from streamer.events.topics import TOMBSTONE_RETENTION_MS, Partition
from streamer.kafka.read_to_end import Span, partitions_of, read_spans, watermarks
from streamer.settings import Settings

_DAY_MS = 86_400_000
_At = tuple[str, int, int]


@dataclass(frozen=True)
class Choice:
    """What a person asked for. ``kinds``, ``places``: all if empty; ``limit``: the oldest so many."""

    kinds: frozenset[str] = frozenset()
    places: tuple[Place, ...] = ()
    limit: int | None = None
    again: bool = False
    overwrite: bool = False

    def wants(self, letter: Letter) -> bool:
        if self.kinds and letter.kind not in self.kinds:
            return False
        return not self.places or any(letter.is_at(place) for place in self.places)


@dataclass(frozen=True)
class Letter(DeadLetter):
    """A dead letter without what makes it large: headers are ours alone, and there is no value."""

    age: int = -1

    @property
    def at(self) -> _At | None:
        """Where the refused event lies; None if that is not known."""
        source = self.source
        return None if source is None else (source.topic, source.partition, source.offset)

    @classmethod
    def without_content(cls, letter: DeadLetter) -> Letter:
        facts = {**vars(letter), "value": None, "headers": ()}
        return cls(**facts, age=_age(letter.headers, letter.source.offset) if letter.source is not None else -1)


@dataclass
class ReplayPlan:
    """Letters to send, oldest first within a partition; letters that stay, with the reason.

    ``wanted_again``: letters that were replayed before and count as not replayed from the first transaction on.
    """

    chosen: list[Letter] = field(default_factory=list)
    skipped: list[tuple[Letter, str]] = field(default_factory=list)
    wanted_again: list[Place] = field(default_factory=list)
    done_before: int = 0


def make_plan(
    settings: Settings,
    consumer: Consumer,
    spans: Mapping[Partition, Span],
    progress: ReplayProgress,
    choice: Choice,
    *,
    now_ms: int,
) -> ReplayPlan:
    """Read the letters of ``spans``, and of their source topics what has come since, and decide."""
    plan = ReplayPlan()
    wanted: list[Letter] = []
    serving = find_serving(settings)
    codebooks = frozenset(one.codebook for one in serving.pipelines) if serving is not None else frozenset()
    refusals: dict[_At, set[str]] = {}
    done: set[tuple[_At, str]] = set()
    for reading in read_spans(consumer, spans, size=100):
        for record in reading.records:
            letter = Letter.without_content(DeadLetter.of(record))
            was_replayed = progress.was_replayed((letter.topic, letter.partition), letter.offset)
            if (at := letter.at) is not None:
                refusals.setdefault(at, set()).add(letter.codebook)
                if was_replayed:
                    done.add((at, letter.codebook))
            if not choice.wants(letter):
                continue
            if was_replayed:
                if not choice.again:
                    plan.done_before += 1
                    continue
                plan.wanted_again.append(letter.place)
            wanted.append(letter)
    refused = {at for at, by in refusals.items() if "" in by or codebooks <= by}
    _decide(settings, consumer, plan, _of_each_event(plan, wanted, done, codebooks, choice), refused, choice, now_ms)
    return plan


def _of_each_event(
    plan: ReplayPlan,
    wanted: Sequence[Letter],
    done: Collection[tuple[_At, str]],
    codebooks: frozenset[str],
    choice: Choice,
) -> list[Letter]:
    """One letter of each event: not where another letter of it was replayed, and of no codebook that is gone."""
    first: dict[_At, Letter] = {}
    rest = []
    for letter in wanted:
        at = letter.at
        if at is None:
            rest.append(letter)
        elif letter.codebook and codebooks and letter.codebook not in codebooks:
            plan.skipped.append((letter, f"the codebook {letter.codebook}, whose process refused it, was retired"))
        elif not choice.again and any((at, other) in done for other in codebooks - {letter.codebook}):
            plan.done_before += 1
        elif at in first and first[at].codebook != letter.codebook:
            plan.skipped.append((letter, f"the same event as {first[at].place}, which is sent for all codebooks"))
        else:
            first.setdefault(at, letter)
            rest.append(letter)
    return rest


def _decide(
    settings: Settings,
    consumer: Consumer,
    plan: ReplayPlan,
    wanted: Sequence[Letter],
    refused: Collection[tuple[str, int, int]],
    choice: Choice,
    now_ms: int,
) -> None:
    known = dead_letter_topics(settings)
    numbers = {known[topic]: set(partitions_of(consumer, known[topic])) for topic in {one.topic for one in wanted}}
    possible: list[tuple[Letter, Source]] = []
    for letter in wanted:
        source = letter.source
        if source is None:
            why = letter.message or "no sidstream process wrote it"
            plan.skipped.append((letter, f"{why}: where it came from is not known"))
        elif source.topic.startswith(settings.topics.item_codes):  # of any codebook
            plan.skipped.append(
                (
                    letter,
                    "its codes are there, the index had no room: raise indexer.maximum_items and run `sidstream rebuild`",
                )
            )
        elif source.topic != known[letter.topic]:
            plan.skipped.append((letter, f"it names {source.topic} as its source, and not {known[letter.topic]}"))
        elif source.partition not in numbers[source.topic]:
            plan.skipped.append((letter, f"{source.topic} has no partition {source.partition} any more"))
        else:
            possible.append((letter, source))

    items = topics_of_items(settings)
    judged = [(one, source) for one, source in possible if source.topic in items and one.key and not choice.overwrite]
    newest = _newest(consumer, judged, refused)
    for letter, source in possible:
        reason = ""
        if source.topic in items and letter.key and not choice.overwrite:
            reason = _out_of_date(letter, source, newest, now_ms)
        if not reason and letter.omitted:
            reason = _incomplete(letter, source, original_of(consumer, letter))
        if not reason and choice.limit is not None and len(plan.chosen) >= choice.limit:
            continue
        if reason:
            plan.skipped.append((letter, reason))
        else:
            plan.chosen.append(letter)


def _incomplete(letter: Letter, source: Source, original: Message | None) -> str:
    """Why a letter that does not hold all of its original cannot be completed from there."""
    if original is None:
        return f"{letter.omitted.split(':')[0]} was left out, and {source.topic} no longer has the original"
    try:
        headers_of(original)
    except UnreadableHeadersError as error:
        return f"its headers cannot be sent as they were ({error}): publish the item again"
    return ""


def _out_of_date(letter: Letter, source: Source, newest: Mapping[tuple[str, int, bytes], int], now_ms: int) -> str:
    younger = newest.get((source.topic, source.partition, letter.key or b""), -1)
    if younger > letter.age:
        return f"out of date: {source.topic}/{source.partition} has a newer event of this item at offset {younger}"
    # -1: the record had no time.
    age_ms = now_ms - min(time for time in (source.timestamp, letter.timestamp, now_ms) if time > 0)
    if age_ms > TOMBSTONE_RETENTION_MS:
        return f"{age_ms / _DAY_MS:.0f} days old: a deletion since then may have been compacted away, so it may be out of date"
    return ""


def _newest(
    consumer: Consumer, letters: Sequence[tuple[Letter, Source]], refused: Collection[tuple[str, int, int]]
) -> dict[tuple[str, int, bytes], int]:
    """The greatest age of a record that was not refused, by topic, partition and key, among the keys of ``letters``."""
    first: dict[Partition, int] = {}
    newest: dict[tuple[str, int, bytes], int] = {}
    for letter, source in letters:
        at = (source.topic, source.partition)
        first[at] = min(first.get(at, letter.age + 1), letter.age + 1)
        newest[source.topic, source.partition, letter.key or b""] = -1
    spans = {}
    for (topic, partition), offset in first.items():
        low, end = watermarks(consumer, topic, partition)
        spans[topic, partition] = Span(max(low, offset), end)
    for reading in read_spans(consumer, spans):
        for record in reading.records:
            item = (record.topic(), record.partition(), record.key() or b"")
            known = newest.get(item)
            if known is None or (record.topic(), record.partition(), record.offset()) in refused:
                continue
            newest[item] = max(known, _age_of(record))
    return newest


def _age_of(record: Message) -> int:
    try:
        return _age(headers_of(record), record.offset())
    except UnreadableHeadersError:  # none that we have sent
        return int(record.offset())


def _age(headers: Sequence[tuple[str, bytes | None]], offset: int) -> int:
    """The offset that the original had; a header that cannot be true counts for nothing."""
    for name, content in headers:
        if name == REPLAYED_HEADER and content is not None and content.isdigit() and len(content) < 19:
            return min(int(content), offset)
    return offset


def original_of(consumer: Consumer, letter: DeadLetter) -> Message | None:
    """The event that was too large to be a letter as a whole, from where it came, if it is still there."""
    source = letter.source
    if source is None:
        return None
    record = read_record(consumer, source.topic, source.partition, source.offset)
    # Of a topic that was made anew, another record lies at this offset.
    if record is None or record.timestamp()[1] != source.timestamp:
        return None
    return record if "of key" in letter.omitted or record.key() == letter.key else None
