"""Whatever happens to a folder, and wherever a publisher is killed meanwhile, the topic has what the files have.

There is no broker here: the topic is a dictionary, and "killed" an exception at the n-th statement of the state or around a send.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamer.client.follow as follow_module
import streamer.client.follow_state as state_module
from streamer.client.counted_batches import Record
from streamer.client.follow import Follower, FollowOptions
from streamer.events.records import ITEM_UPDATE
from streamer.settings import load_settings
from support.old_follow_state import write_old_follow_state

REFUSED, NAMELESS, UNREADABLE = "refused", "nameless", "unreadable"


class Killed(BaseException):
    """What a kill is here."""


class Version(NamedTuple):
    """A file as it may be: what each id is in it (a title, or a row that is refused), and what else is wrong with it."""

    rows: tuple[tuple[str, str], ...]
    fault: str = ""

    @property
    def content(self) -> str:
        if self.fault == UNREADABLE:
            return "no table"
        lines = [
            json.dumps({"id": item, "embedding": [1.0] if title == REFUSED else [1.0, 2.0], "title": title})
            for item, title in [("first", "1"), *self.rows]
        ]
        return "\n".join([*lines, *(["{"] if self.fault == NAMELESS else [])])


class Step(NamedTuple):
    """``files``: the version of each file by its number, None where it is not there; then a look. ``killed``: at which of its
    steps; ``at_once``: the next publisher looks before the folder changes again.
    """

    files: tuple[int | None, ...]
    killed: int | None = None
    at_once: bool = True


@dataclass
class Topic:
    """What the broker has, and the folder that it must agree with."""

    now: dict[str, Version] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)
    number: int = 0
    left: int | None = None  # steps until the publisher is killed

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    def batches(self, *_arguments: Any) -> Batches:
        return Batches(self)

    def take(self, records: Sequence[Record]) -> None:
        for _, key, value in records:
            item = key.decode()
            if value is not None:
                self.items[item] = str(ITEM_UPDATE.decode(value).title)
                continue
            for version in self.now.values():
                assert not version.fault, "while a file cannot be read nothing is deleted"
                assert item not in dict(version.rows), "what a file has is not deleted"
            del self.items[item]


class Batches:
    """Counted batches of one publisher."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    @property
    def sent(self) -> int:
        return self._topic.number

    def send(self, number: int, records: Sequence[Record]) -> None:
        self._topic.step()
        self._topic.take(records)
        self._topic.number = number
        self._topic.step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: TracebackType | None) -> None:
        pass


def database_of(topic: Topic) -> type[sqlite3.Connection]:
    class Database(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            topic.step()
            return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), parameters)

        def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
            topic.step()
            return super().executemany(sql, parameters)

    return Database


@contextmanager
def without_a_broker(topic: Topic) -> Iterator[None]:
    def connect(path: Path, **options: Any) -> sqlite3.Connection:
        return sqlite3.connect(path, factory=database_of(topic), **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(follow_module, "require", lambda *_: None)
        patched.setattr(follow_module, "topic_states", lambda _, names: {names[0]: SimpleNamespace(topic_id="1")})
        patched.setattr(follow_module, "CountedBatches", topic.batches)
        patched.setattr(state_module, "sqlite3", SimpleNamespace(connect=connect, Error=sqlite3.Error))
        yield


def look(topic: Topic, folder: Path, state: Path, *, killed: int | None = None) -> bool:
    """Whether it came to its end."""
    with without_a_broker(topic):
        topic.left = killed
        try:
            options = FollowOptions(delete_missing=True)
            with Follower.open(load_settings(), str(folder), state, options) as follower:
                follower.look(settled=False)
                return True
        except Killed:
            return False
        finally:
            topic.left = None


def place(folder: Path, versions: Sequence[Path], files: Sequence[int | None]) -> None:
    """Each file is a link to its version, so one that comes back is the file that it was, its time and inode included."""
    for number, chosen in enumerate(files):
        path = folder / f"{number}.jsonl"
        path.unlink(missing_ok=True)
        if chosen is not None:
            os.link(versions[chosen], path)


ROWS = st.dictionaries(st.sampled_from("xyz"), st.sampled_from(["1", "2", "2", REFUSED]), max_size=3).map(
    lambda rows: tuple(rows.items())
)
VERSIONS = st.lists(
    st.builds(Version, ROWS, st.sampled_from(["", "", "", "", NAMELESS, UNREADABLE])), min_size=5, max_size=5
)
STEPS = st.lists(
    st.builds(
        Step,
        st.tuples(*[st.none() | st.integers(0, 4)] * 3),
        st.none() | st.integers(5, 60),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(VERSIONS, STEPS)
def test_topic_has_what_the_files_have_whatever_changed_and_wherever_the_publisher_was_killed(
    versions: list[Version], steps: list[Step]
) -> None:
    go_through(versions, steps)


ONE, OTHER, MORE = Version((("x", "1"),)), Version((("x", "2"), ("y", "2"))), Version((("x", "3"), ("z", "3")))


@pytest.mark.parametrize(
    ("before", "killed_at", "after"),
    [
        pytest.param((0, 1, 2), (0, None, None), (0, None, None), id="two files go, and a third has an item of theirs"),
        pytest.param((0, 1, None), (1, 0, None), (1, 0, None), id="two files change places"),
        pytest.param((0, None, None), (0, 1, 2), (0, None, None), id="files that come go before they were read whole"),
        pytest.param(
            (0, None, None), (1, None, None), (2, None, None), id="a file is replaced before it was read whole"
        ),
        pytest.param((0, None, None), (1, None, None), (0, None, None), id="the file of before comes back"),
        pytest.param((2, 1, 0), (2, None, None), (2, 1, 0), id="files that went come back"),
    ],
)
def test_topic_has_what_the_files_have_at_whichever_step_of_a_look_the_publisher_was_killed(
    before: tuple[int | None, ...], killed_at: tuple[int | None, ...], after: tuple[int | None, ...]
) -> None:
    step = 0
    while go_through(
        [ONE, OTHER, MORE], [Step(before), Step(killed_at, step, at_once=killed_at == after), Step(after)]
    ):
        step += 1
    assert step > 10


def test_state_of_version_1_is_put_right_at_whichever_step_of_its_first_look_the_publisher_was_killed(
    tmp_path: Path,
) -> None:
    killed, step = True, 0
    while killed:
        folder, state = tmp_path / f"shop{step}", tmp_path / f"state{step}"
        folder.mkdir()
        write_old_follow_state(folder, state, f"{load_settings().topics.item_updates} 1")
        topic = Topic(items={"x": "of b", "only_b": "1", "z": "1", "d": "1"}, number=5)
        killed = not look(topic, folder, state, killed=step)
        assert not killed or look(topic, folder, state)
        assert topic.items == {"x": "of a", "lost": "1", "e": "1"}
        step += 1
    assert step > 30


def test_row_without_an_id_may_be_an_item_of_a_file_that_goes_so_nothing_goes_until_it_is_mended() -> None:
    versions = [ONE, Version((), NAMELESS), Version(())]
    go_through(versions, [Step((0, None)), Step((None, 1)), Step((None, 1)), Step((None, 2))])


def go_through(versions: Sequence[Version], steps: Sequence[Step]) -> bool:
    """Whether a publisher was killed."""
    with tempfile.TemporaryDirectory() as made:
        folder, paths, any_killed = Path(made, "folder"), [], False
        folder.mkdir()
        for number, version in enumerate(versions):
            paths.append(Path(made, f"version{number}"))
            paths[-1].write_text(version.content)
            os.utime(paths[-1], ns=(0, number))
        unharmed, killed, alike = Topic(), Topic(), True
        for step in steps:
            place(folder, paths, step.files)
            now = {str(number): versions[one] for number, one in enumerate(step.files) if one is not None}
            unharmed.now = killed.now = now
            look(unharmed, folder, Path(made, "unharmed"))
            ended = look(killed, folder, Path(made, "killed"), killed=step.killed)
            any_killed |= not ended
            if not ended and not step.at_once:
                alike = False  # which file was read last may be another one
                continue
            if not ended:
                look(killed, folder, Path(made, "killed"))
            for topic in (unharmed, killed):
                assert_has_what_the_files_have(topic)
            if alike:
                assert killed.items == unharmed.items
    return any_killed


def assert_has_what_the_files_have(topic: Topic) -> None:
    if not topic.now or any(version.fault for version in topic.now.values()):
        return  # whether anything may go cannot be told
    taken = {item: {title} for item, title in [("first", "1")]}
    refused = set()
    for version in topic.now.values():
        for item, title in version.rows:
            if title == REFUSED:
                refused.add(item)
            else:
                taken.setdefault(item, set()).add(title)
    assert taken.keys() <= topic.items.keys() <= taken.keys() | refused
    for item, title in topic.items.items():
        assert item in refused or title in taken[item]
