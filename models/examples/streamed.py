"""Training data from files that may be larger than memory: read once, and divided by user into parts on the disk that are not.

What must hold: all of a user's stand in one part, in the files' order, so that a part is to be joined and put in order as a
whole file is; memory is bounded by a part, a sample and what is held back, whatever the files' size; the same files give the same
parts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from models.errors import SidstreamError
from models.examples.records import (
    Interaction,
    TrainingData,
    TrainingExample,
    TrainingHistory,
    in_order,
    open_training_file,
)

BYTES_A_PART: Final = 8 * 1024 * 1024  # of JSON lines: some 80,000 examples
MOST_SAMPLED: Final = 100_000  # examples and histories that a tokenizer and the dense leg learn from
MOST_HELD: Final = 20_000  # of those held back
_MOST_PARTS: Final = 4_096
_BYTES_BUFFERED: Final = 16 * 1024  # of a part, before they are written
_COMPRESSED: Final = {".gz": 8, ".parquet": 8}  # about so many times larger as JSON lines
_DONE: Final = "divided.msgpack"
_PAUSE_SECONDS: Final = 0.5
_TOLD_EVERY: Final = 10_000


class _Example(msgspec.Struct, frozen=True, array_like=True, tag="example"):
    query: str
    user: str | None
    history: tuple[str, ...]
    item: str


class _Sequence(msgspec.Struct, frozen=True, array_like=True, tag="sequence"):
    user: str | None
    items: tuple[str, ...]


class _Event(msgspec.Struct, frozen=True, array_like=True, tag="interaction"):
    user: str
    item: str
    time: float


class StreamedData(msgspec.Struct, frozen=True, kw_only=True):
    """Files that were divided into ``parts`` below ``directory``; ``digest``: of the files and of how they were divided.

    ``records``: lines or rows that are trained on, ``asked``: those of them with a text; ``sample``: of all users, at most
    ``MOST_SAMPLED`` records; ``held``: not trained on, of at most ``MOST_HELD`` records, of ``held_back``; ``unread``: for each
    file its kind and its fields that mean nothing here.
    """

    directory: Path
    parts: int
    digest: str
    records: int
    asked: int
    sample: TrainingData
    held: TrainingData
    held_back: int
    unread: dict[str, tuple[str, tuple[str, ...]]]

    def texts(self) -> Iterator[str]:
        """The queries of the sample."""
        return self.sample.texts()

    def described(self) -> str:
        """In words, what tells them from other data."""
        return f"{self.records:,} records, streamed ({self.digest})"

    def part(self, number: int) -> TrainingData:
        """All of a part."""
        decoder = msgspec.msgpack.Decoder(_Example | _Sequence | _Event)
        data, at = memoryview(_part(self.directory, number).read_bytes()), 0
        records: list[Any] = []
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "little")
            match decoder.decode(data[at + 4 : at + 4 + length]):
                case _Example(query, user, history, item):
                    records.append(TrainingExample(query=query, user=user, history=history, item=item))
                case _Sequence(user, items):
                    records.append(TrainingHistory(items, user))
                case _Event(user, item, time):
                    records.append(Interaction(user, item, time))
            at += 4 + length
        return _data(records)


def divided(
    paths: Sequence[Path],
    directory: Path,
    *,
    held_share: float = 0.0,
    fewest_held_of: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    bytes_a_part: int = BYTES_A_PART,
    first: bool = True,
) -> StreamedData:
    """Divides the files, or finds them divided already. ``held_share`` of the users (or records without one) is held back,
    where there are ``fewest_held_of`` records or more; ``progress``: called with the records read so far; ``first``: of the
    processes that train together, which divides the files while the others wait.

    Raises ``DataFileError`` for what ``open_training_file`` refuses, ``SidstreamError`` where the disk is full.
    """
    for path in paths:  # a name that is wrong must not cost what is there
        open_training_file(path)
    sizes = [path.stat().st_size * _COMPRESSED.get(path.suffix, 1) if path.is_file() else 0 for path in paths]
    parts = min(_MOST_PARTS, max(1, -(-sum(sizes) // bytes_a_part)))
    digest = _digest(paths, [parts, held_share, fewest_held_of, seed])
    done = directory / _DONE
    while True:
        if done.is_file():
            found = msgspec.msgpack.decode(done.read_bytes(), type=StreamedData, dec_hook=lambda _, value: Path(value))
            if found.digest == digest:
                return msgspec.structs.replace(found, directory=directory)  # it may have been moved or copied
        if first:
            break
        time.sleep(_PAUSE_SECONDS)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)  # first: what is stopped here must not look whole
        for path in directory.iterdir():  # of other files, or of a run that was stopped
            path.unlink()
        data = _divide(paths, directory, parts, digest, held_share, fewest_held_of, seed, progress)
        partial = done.with_suffix(".partial")
        partial.write_bytes(msgspec.msgpack.encode(data, enc_hook=str))
        partial.replace(done)
    except OSError as error:
        raise SidstreamError(
            f"the training data could not be divided into {directory}: {error.strerror or error}; they need about as much room "
            "there as the files"
        ) from error
    return data


def _divide(
    paths: Sequence[Path],
    directory: Path,
    parts: int,
    digest: str,
    held_share: float,
    fewest_held_of: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> StreamedData:
    writer = _Parts(directory, parts)
    sample, held = _Sample(MOST_SAMPLED), _Sample(MOST_HELD)
    unread: dict[str, tuple[str, tuple[str, ...]]] = {}
    read = asked = held_back = 0
    for path in paths:
        opened = open_training_file(path)
        for record in opened.rows:
            place, part = _drawn(record.user, read, seed)
            read += 1
            if place < held_share:
                held_back += 1
                held.offer(place / held_share, record)
            else:
                sample.offer((place - held_share) / (1 - held_share), record, embedded=False)
                asked += isinstance(record, TrainingExample) and bool(record.query)
                writer.write(part, record)
            if progress is not None and read % _TOLD_EVERY == 0:
                progress(read)
        unread[str(path)] = (opened.kind, tuple(opened.unread))
    held_records = held.records
    if read < fewest_held_of:
        for number, record in enumerate(held_records):
            asked += isinstance(record, TrainingExample) and bool(record.query)
            writer.write(number % parts if record.user is None else _drawn(record.user, 0, seed)[1], record)
            sample.offer(0.0, record)
        held_records, held_back = [], 0
    writer.close()
    return StreamedData(
        directory=directory,
        parts=parts,
        digest=digest,
        records=read - held_back,
        asked=asked,
        sample=_data(sample.records),
        held=_data(held_records),
        held_back=held_back,
        unread=unread,
    )


def _drawn(user: str | None, number: int, seed: int) -> tuple[float, int]:
    """For a user, or the record of that number without one: a place in [0, 1), and a whole number to choose the part by."""
    key = f"{seed} #{number}" if user is None else f"{seed} @{user}"
    drawn = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(drawn[:6], "little") / 2**48, int.from_bytes(drawn[8:], "little")


@dataclass
class _Sample:
    """All records of those users whose place is lowest, no more than ``most``; the first ones where one user has most of them."""

    most: int
    kept: list[tuple[float, Any]] = field(default_factory=list)
    threshold: float = 1.0

    def offer(self, place: float, record: Any, *, embedded: bool = True) -> None:
        """``embedded``: whether an example's embedding is kept with it."""
        if place >= self.threshold:
            return
        if not embedded and isinstance(record, TrainingExample) and record.embedding is not None:
            record = msgspec.structs.replace(record, embedding=None)
        self.kept.append((place, record))
        while len(self.kept) > self.most and self.threshold > 0:
            threshold = min(self.threshold / 2, max(place for place, _ in self.kept))
            fewer = [(place, record) for place, record in self.kept if place < threshold]
            if len(fewer) < self.most // 4:  # one user has most of them: their first records stand for them
                self.kept, self.threshold = self.kept[: self.most], 0.0
            else:
                self.kept, self.threshold = fewer, threshold

    @property
    def records(self) -> list[Any]:
        return [record for _, record in self.kept]


class _Parts:
    """Appends records to the parts' files, some kilobytes at once."""

    def __init__(self, directory: Path, parts: int) -> None:
        self._directory, self._buffers = directory, [bytearray() for _ in range(parts)]
        self._encode = msgspec.msgpack.Encoder().encode

    def write(self, part: int, record: Any) -> None:
        number = part % len(self._buffers)
        match record:
            case TrainingExample():
                short: Any = _Example(record.query, record.user, record.history, record.item)
            case TrainingHistory():
                short = _Sequence(record.user, record.items)
            case _:
                short = _Event(record.user, record.item, record.time)
        encoded = self._encode(short)
        buffer = self._buffers[number]
        buffer += len(encoded).to_bytes(4, "little") + encoded
        if len(buffer) >= _BYTES_BUFFERED:
            self._flush(number)

    def close(self) -> None:
        for number in range(len(self._buffers)):
            self._flush(number)

    def _flush(self, number: int) -> None:
        with _part(self._directory, number).open("ab") as file:
            file.write(self._buffers[number])
        self._buffers[number].clear()


def _part(directory: Path, number: int) -> Path:
    return directory / f"records-{number:04}"


def _data(records: Iterable[Any]) -> TrainingData:
    examples: list[TrainingExample] = []
    histories: list[TrainingHistory] = []
    events: list[Interaction] = []
    of_kinds: dict[type, list[Any]] = {TrainingExample: examples, TrainingHistory: histories, Interaction: events}
    for record in records:
        of_kinds[type(record)].append(record)
    return TrainingData((*histories, *in_order(events)), tuple(examples))


def _digest(paths: Sequence[Path], choices: Sequence[object]) -> str:
    found = hashlib.sha256(repr(choices).encode())
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]
