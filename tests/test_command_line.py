"""The command line as a person uses it: `up` and its end, publish, status, ask, and errors without a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.dense_part import fit_dense_part
from models.catalogue import Catalogue, CatalogueItem
from streamer.local.broker import LocalBroker
from support.gateway_requests import send
from support.patience import PATIENCE_SECONDS
from support.processes import FORK_SERVER, alive, free_port, processes_of, wait_until


def command(*arguments: str, environment: dict[str, str], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidstream", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        **more,
    )


PROCESSES = {"assigner", "indexer", "monitor", "retriever"}


def running(up: int) -> dict[str, int]:
    """The process id of each command that it runs."""
    return {name: pid for name, pid in processes_of(up).items() if name in PROCESSES}


@pytest.fixture
def environment(broker: LocalBroker, unique_prefix: str, tiny_model_bundle: Path, tmp_path: Path) -> dict[str, str]:
    return {
        "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "SIDSTREAM_TOPICS__PREFIX": unique_prefix,
        "SIDSTREAM_MONITOR__APP_ID": f"{unique_prefix}monitor",
        "SIDSTREAM_BUNDLE": str(tiny_model_bundle),
        "SIDSTREAM_INDEX": str(tmp_path / "index"),
        "SIDSTREAM_CONFIG": "",
        "OMP_NUM_THREADS": "1",
        # A clean end, and the answer to a query asked while the model loads, take longer on a busy machine.
        "SIDSTREAM_SHUTDOWN_SECONDS": str(PATIENCE_SECONDS),
        "SIDSTREAM_RETRIEVER__MAXIMUM_WAIT_SECONDS": str(PATIENCE_SECONDS),
    }


def test_up_publish_status_ask_and_one_ctrl_c_ends_everything(
    environment: dict[str, str], tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    items = tuple(CatalogueItem(id=f"item-{number}", title=f"thing {number}") for number in range(100))
    Catalogue(items=items, embeddings=tiny_embeddings[:100]).write(tmp_path / "catalogue")
    logs = tmp_path / "logs"
    port = free_port()
    up = subprocess.Popen(
        [sys.executable, "-m", "sidstream", "up", "--gateway", "--logs", str(logs)],
        env={**os.environ, **environment, "SIDSTREAM_GATEWAY__PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: set(running(up.pid)) == PROCESSES, what="four processes")

        published = command(
            "publish",
            str(tmp_path / "catalogue"),
            "--wait",
            "--timeout",
            str(PATIENCE_SECONDS),
            environment=environment,
        )
        assert published.returncode == 0, published.stderr
        assert "100 item updates" in published.stderr
        assert "has them" in published.stderr

        def status() -> dict[str, Any]:
            answer = command("status", "--json", environment=environment)
            assert answer.returncode == 0, answer.stderr
            found: dict[str, Any] = json.loads(answer.stdout)
            return found

        assert status()["items"] == 100
        verified = command("verify", environment=environment)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "census and commit log agree" in verified.stdout
        assert [lag["records"] for lag in status()["lags"][:2]] == [0, 0]

        asked = command("ask", "thing 7", "--limit", "3", "--timeout", str(PATIENCE_SECONDS), environment=environment)
        assert asked.returncode == 0, asked.stderr
        assert "thing" in asked.stdout
        over_http = send(port, "POST", "/query", {"text": "thing 7", "limit": 3})
        assert [item["title"].split()[0] for item in over_http.json["items"]] == ["thing"] * 3

        gone = command("publish", str(tmp_path / "catalogue"), "--delete", "--limit", "40", environment=environment)
        assert gone.returncode == 0, gone.stderr
        wait_until(lambda: status()["items"] == 60, what="40 items deleted", every=0.5)

        # The supervisor starts again what dies, the server that forks processes among it.
        for name in ("assigner", "retriever", FORK_SERVER):
            before = processes_of(up.pid)
            os.kill(before[name], signal.SIGKILL)
            wait_until(lambda before=before, name=name: _all_run_and_is_new(up.pid, name, before), what=f"a new {name}")  # type: ignore[misc]
        again = command("ask", "thing 77", "--limit", "3", "--timeout", str(PATIENCE_SECONDS), environment=environment)
        assert again.returncode == 0, again.stderr
        pids = list(processes_of(up.pid).values())
    finally:
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=PATIENCE_SECONDS)
    assert up.returncode == 0, errors
    assert "everything has stopped" in errors
    assert f"http://127.0.0.1:{port}" in errors
    wait_until(lambda: not any(alive(pid) for pid in pids), what="no process left behind")
    for log in logs.iterdir():
        assert "Traceback" not in log.read_text(), log


def _all_run_and_is_new(up: int, name: str, before: dict[str, int]) -> bool:
    now = processes_of(up)
    return set(now) >= PROCESSES and now.get(name, before[name]) != before[name]


def test_processes_end_by_themselves_when_up_is_killed_and_a_json_log_has_no_other_words(
    environment: dict[str, str], tmp_path: Path
) -> None:
    written = tmp_path / "up.log"
    with written.open("wb") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "sidstream", "up"],
            env={**os.environ, **environment, "SIDSTREAM_LOGGING__FORMAT": "json"},
            stderr=log,
        )
    wait_until(lambda: set(running(up.pid)) == PROCESSES, what="four processes")
    pids = list(processes_of(up.pid).values())
    up.kill()
    up.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), what="no process left behind")
    events = [json.loads(line)["event"] for line in written.read_text().splitlines()]
    assert "up" in events


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["assigner"], {}, "topics create"),
        (["status"], {}, "topics create"),
        (["ask", "kettle"], {}, "topics create"),
        (["assigner"], {"SIDSTREAM_BUNDLE": "/nonexistent"}, "sidstream fit"),
        (["indexer"], {"SIDSTREAM_KAFKA__SECURITY": '{"security.protocol": "nonsense"}'}, "security.protocol"),
        (["status"], {"SIDSTREAM_TOPICS__PARTITIONS": "0"}, "topics.partitions"),
        (["publish", "/nonexistent"], {}, "/nonexistent"),
        (["rebuild"], {}, "topics create"),
        (["verify"], {}, "There is no index"),
        (["backup", "backup"], {}, "There is no index"),
        (["restore", "/nonexistent"], {}, "holds no index"),
        (["dlq", "list"], {}, "topics create"),
        (["dlq", "list", "--topic", "drift"], {}, "no topic with dead letters"),
        (["dlq", "show", "17"], {}, "PARTITION:OFFSET"),
    ],
)
def test_fault_of_use_is_one_clear_message_without_a_traceback(
    environment: dict[str, str], arguments: list[str], changes: dict[str, str], message: str
) -> None:
    answer = command(*arguments, environment=environment | changes)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(("options", "words"), [((), "sidstream fit"), (("--retrievers", "1"), "--retrievers 0")])
def test_up_refuses_a_bundle_that_no_process_could_use_before_anything_starts(
    options: tuple[str, ...], words: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = tiny_bundle if options else tmp_path / "none"
    environment = {"SIDSTREAM_BUNDLE": str(bundle), "SIDSTREAM_CONFIG": ""}
    environment["SIDSTREAM_BUNDLES"] = str(tmp_path / "bundles")  # nothing was ever deployed
    done = command("up", "--broker", *options, environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".sidstream").exists()


def test_up_refuses_a_broker_at_another_address_than_the_one_that_the_other_commands_are_told(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    # Without a model, and with vectors that answer: the bundle itself is not refused.
    bundle = fit_dense_part(Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle")), np.zeros((0, 8)), [])
    environment = {
        "SIDSTREAM_BUNDLE": str(bundle.directory),
        "SIDSTREAM_CONFIG": "",
        "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:19399",
    }
    done = command("up", "--broker", environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "kafka.bootstrap_servers names 127.0.0.1:19399" in " ".join(done.stderr.split())
    assert not (tmp_path / ".sidstream").exists()


def test_ask_without_a_question_is_refused_at_once(tmp_path: Path) -> None:
    done = command("ask", environment={"SIDSTREAM_CONFIG": ""}, cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing to ask" in done.stderr


def test_every_default_that_a_help_text_tells_reaches_the_reader() -> None:
    """Square brackets in a help text are markup to the terminal and would vanish: `show_default` is for defaults."""
    import typer.main

    import sidstream

    command_group = typer.main.get_command(sidstream.app)
    for name, one in command_group.commands.items():  # type: ignore[attr-defined]
        for parameter in one.params:
            assert "[" not in (getattr(parameter, "help", None) or ""), f"{name} {parameter.name}"


def test_every_command_that_a_message_or_a_page_names_exists() -> None:
    import typer.main

    import sidstream

    group: Any = typer.main.get_command(sidstream.app)
    root = Path(__file__).parents[1]
    sources = [
        path
        for part in ("models", "store", "streamer", "retriever", "gateway", "study", "demo")
        for path in (root / part).rglob("*.py")
    ]
    pages = [
        *root.glob("*.md"),
        *(root / "docs").glob("*.md"),
        *(root / "deploy").rglob("*.yml"),
        root / "docker-compose.yml",
    ]
    named = 0
    for path in [root / "sidstream.py", *sources, *pages]:
        text = path.read_text()
        # In a message between backquotes; on a page also at the start of a line of an example.
        examples = "\n".join(re.findall(r"^```$(.*?)^```$", text, re.MULTILINE | re.DOTALL))
        for line in re.findall(r"`sidstream ([^`\n\"]*)", text) + re.findall(
            r"^sidstream (.*)$", examples, re.MULTILINE
        ):
            words = [word for word in line.split() if not word.startswith("-") and word != "HOST:9092"]
            if not words or not re.fullmatch(r"[a-z]+", words[0]):
                continue  # a placeholder
            named += 1
            command = group.commands.get(words[0])
            assert command is not None, f"{path.relative_to(root)}: sidstream {line}"
            if hasattr(command, "commands") and len(words) > 1:
                assert words[1] in command.commands, f"{path.relative_to(root)}: sidstream {line}"
                command = command.commands[words[1]]
            options = {
                option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
            }
            for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", line.partition(words[0])[2].partition("#")[0]):
                assert option in options, f"{path.relative_to(root)}: sidstream {line}"
    assert named > 50


def test_ctrl_c_while_everything_is_imported_ends_without_a_word() -> None:
    interrupted = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Interrupt)\n"
        "import sidstream\n"
    )
    answer = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_before_there_is_a_command_ends_without_a_word_and_is_heard_as_usual_afterwards() -> None:
    interrupted = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sidstream\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "sidstream.app = lambda: signal.raise_signal(signal.SIGINT)\n"
        "sidstream.main()\n"
    )
    answer = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "")
