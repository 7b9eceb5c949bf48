"""Commands that show what strangers wrote: no escape sequence, no mark that turns the writing, no bracket taken for markup."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console

from models.bundles.bundle import Bundle
from retriever.commands import show_answer
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.commands.terminal import ascii_json
from streamer.events.records import ALERT, Alert, Answer, AnswerError, AnswerItem
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\r\x00[bold]x[/] :bomb: [/nothing]"
SEEN = r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\r\x00[bold]x[/] :bomb: [/nothing]"
ANSWER = Answer(
    query_id=EVIL,
    items=(AnswerItem(item_id=EVIL, title=EVIL, sid=EVIL, score=-1.0),),
    layout=2,
    model=EVIL,
    skipped_history=(EVIL,),
    milliseconds={"decode": 1.0},
)


def safe(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def unwrapped(text: str) -> str:
    """As it was before words were put on lines: spaces alone are gone."""
    return "".join(text.split())


def run(settings: Settings, directory: Path, *arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {**SidstreamProcess(settings, "assigner", directory)._environment, "COLUMNS": str(columns)}
    return subprocess.run(
        [sys.executable, "-m", "sidstream", *arguments],
        env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip


def write_index(directory: Path, bundle: Path, title: str) -> None:
    layout = Bundle.open(bundle).layout
    with IndexWriter.open(directory, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size) as writer:
        batch = CodesBatch(
            ids=[EVIL.encode()],
            codes=np.zeros((1, layout.layers), np.uint16),
            weights=np.ones(1, np.float32),
            titles=[title],
            updated_at=np.zeros(1, np.int64),
            deleted=np.zeros(1, bool),
        )
        writer.apply(batch, {("item-codes", 0): 1})


@pytest.mark.parametrize("width", [40, 80, 300])
def test_answer_shows_titles_ids_and_errors_as_text(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, emoji=False, force_terminal=False)
    show_answer(console, ANSWER)
    show_answer(console, Answer(query_id="q", layout=1, error=AnswerError(kind=EVIL, message=EVIL)))
    assert safe(screen.getvalue())
    assert unwrapped(screen.getvalue()).count(unwrapped(SEEN).partition("[/nothing]")[0]) >= (5 if width == 300 else 3)


def test_answer_as_json_is_ascii_and_holds_the_very_words() -> None:
    text = ascii_json(ANSWER, indent=2)
    assert safe(text)
    assert json.loads(text)["items"][0]["title"] == EVIL


def test_alerts_status_and_verify_show_what_strangers_wrote_as_text(
    pipeline_settings: Settings, tiny_bundle: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index[bold]of me"
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle, "index": index})
    write_index(index, tiny_bundle, EVIL)
    write_index(tmp_path / "other[/]", tiny_bundle, "another title")
    alert = Alert(
        key=EVIL, state="firing", severity="warning", cause=EVIL, summary=EVIL, figures={EVIL: 1.0}, codebook=EVIL,
        generation=1, first_at=1, at=1 << 62,
    )  # fmt: skip
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(settings.topics.alerts, key=EVIL.encode(), value=ALERT.encode(alert))
    producer.produce(settings.topics.alerts, key=b"none", value=b"\xff" + EVIL.encode())
    producer.produce(settings.topics.alerts, key=b"deep", value=b"[" * 100_000)
    assert producer.flush(PATIENCE_SECONDS) == 0
    group = settings.topics.prefix + settings.assigner.group
    with closing(Consumer(consumer_configuration(settings.kafka, group=group))) as consumer:
        note = json.dumps({"at": 1, "unknown_fields": {EVIL: 3}})
        consumer.commit(offsets=[TopicPartition(settings.topics.item_updates, 0, 0, metadata=note)], asynchronous=False)

    words = unwrapped(SEEN)
    alerts = run(settings, tmp_path, "alerts")
    assert words in unwrapped(alerts.stdout)
    status = run(settings, tmp_path, "status")
    assert words in unwrapped(status.stdout)
    assert str(index) in status.stdout, "a path is one line"
    verify = run(settings, tmp_path, "verify", "--against", str(tmp_path / "other[/]"))
    assert verify.returncode == 1
    assert words in unwrapped(verify.stdout)
    assert "other[/]" in verify.stdout
    json_outputs = [
        run(settings, tmp_path, *command, "--json")
        for command in (("alerts",), ("status",), ("verify", "--against", str(tmp_path / "other[/]")))
    ]
    for output in (alerts, status, verify, *json_outputs):
        assert safe(output.stdout), output.stdout
        assert safe(output.stderr), output.stderr
        assert "Traceback" not in output.stderr
    assert json.loads(json_outputs[0].stdout)["summary"] == EVIL
    assert json.loads(json_outputs[1].stdout)["unknown_fields"] == {EVIL: 3}


def test_file_names_with_brackets_and_ids_with_escapes_are_told_as_they_are(tmp_path: Path) -> None:
    odd = tmp_path / "a b[bold]\x1b[2J.jsonl"
    for content in (f'"{EVIL[:4]}"\n', f'{{"id": "{"x" * 300}"}}\n', f"{EVIL[:2]}\n", "\n"):
        odd.write_text(content)
        done = subprocess.run(
            [sys.executable, "-m", "sidstream", "publish", "--delete", str(odd)],
            env={**os.environ, "SIDSTREAM_CONFIG": "", "COLUMNS": "80"},
            capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert r"a b[bold]\x1b[2J.jsonl" in done.stderr
        assert safe(done.stderr)
        assert "Traceback" not in done.stderr


def test_command_that_is_printed_is_one_line_that_a_shell_takes(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    source = tmp_path / "a catalogue[bold] with a long name"
    source.mkdir()
    with (source / "items.jsonl").open("w") as lines:
        for number in range(64):
            print(json.dumps({"id": str(number), "title": f"thing {number}"}), file=lines)
    np.save(source / "items.npy", np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32))
    bundle = tmp_path / "bundle [of] me"
    done = subprocess.run(
        [sys.executable, "-m", "sidstream", "fit", str(source), "--bundle", str(bundle), "--size", "8"],
        env={**os.environ, "SIDSTREAM_CONFIG": "", "COLUMNS": "80"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"  next: sidstream train '{source}' --bundle '{bundle}'" in done.stderr.splitlines()
