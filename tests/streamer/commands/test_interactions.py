"""interactions, examples and hit-rates as a person types them: what makes no sense is refused before a broker is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.errors import SidstreamError
from sidstream import app

NOWHERE = ["--bootstrap-servers", "127.0.0.1:1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["interactions"], "name a file of interactions to send, or give --check"),
        (
            ["examples", "--since", "1d", "--output", "x.jsonl", "--kinds", "view,like"],
            "like is no kind of interaction",
        ),
        (["examples", "--since", "1d", "--output", "x.jsonl", "--kinds", ","], "nothing is no kind of interaction"),
        (["examples", "--since", "1d", "--output", "x.jsonl", "--history-kinds", "sale"], "sale is no kind"),
        (["examples", "--since", "soon", "--output", "x.jsonl"], "--since 'soon' is no time"),
        (["examples", "--since", "1h", "--until", "2h", "--output", "x.jsonl"], "there is no time between them"),
        (["hit-rates", "--since", "2999-01-01"], "is still to come"),
        (["hit-rates", "--until", "never"], "--until 'never' is no time"),
        (["interactions", "no-such-file.jsonl"], "no file no-such-file.jsonl"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(words: list[str], said: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, [*NOWHERE, *words])
    assert answer.exit_code != 0
    printed = " ".join((answer.output + str(answer.exception)).replace("│", " ").split())
    assert said in printed
    assert isinstance(answer.exception, SidstreamError | SystemExit)
