"""The state of a publisher that code of version 1 wrote, in a folder of the test's."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from models.tables.locations import Location

_FIXTURE = Path(__file__).parents[1] / "streamer" / "client" / "fixtures" / "follow_state_1.sql"


def write_old_follow_state(folder: Path, state: Path, topic: str) -> None:
    """Its table in ``folder`` as it is now, too. ``topic``: name and id.

    That code had deleted ``lost``, which a has, and noted z as gone; it was stopped while it read d, which went, and e. On the
    topic are x of b, only_b, z and d; b went when nobody looked.
    """
    rows = {"a": {"x": "of a", "lost": "1"}, "e": {"e": "1"}}
    for name, titles in rows.items():
        lines = [json.dumps({"id": item, "embedding": [1.0, 2.0], "title": title}) for item, title in titles.items()]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    filled = {
        "{folder}": str(folder.resolve()),
        "{topic}": topic,
        "{signature}": Location.of(str(folder / "a.jsonl")).signature(),
    }
    script = _FIXTURE.read_text()
    for name, value in filled.items():
        script = script.replace(name, value)
    state.mkdir()
    with closing(sqlite3.connect(state / "published.sqlite")) as database:
        database.executescript(script)
