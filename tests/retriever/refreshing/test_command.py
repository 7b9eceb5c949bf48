"""The command ``sidstream refresh``: what it asks for, and how its exit status tells cron what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.errors import SidstreamError
from retriever.refreshing.command import NOT_TAKEN
from retriever.refreshing.refresh import Refresh
from retriever.refreshing.state import Outcome, RefreshFolder, RefreshState
from sidstream import app


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        ("promoted", 0, "promoted"),
        (None, 0, "waited for"),
        ("kept", NOT_TAKEN, "kept"),
        ("rolled back", NOT_TAKEN, "back"),
    ],
)
def test_exit_status_says_whether_the_new_bundle_was_taken(
    outcome: Outcome | None, status: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Refresh, "run", lambda _: outcome)
    found = CliRunner().invoke(app, ["refresh", "--work", str(tmp_path)])
    assert found.exit_code == status
    assert said in found.output


def test_options_reach_the_refresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Refresh] = []

    def run(refresh: Refresh) -> None:
        seen.append(refresh)

    monkeypatch.setattr(Refresh, "run", run)
    options = [
        "--since",
        "2026-01-01",
        "--fit",
        "never",
        "--train",
        "--epochs 2 --embed 'my towers'",
        "--require",
        "recall@5>=.1",
    ]
    CliRunner().invoke(app, ["refresh", "--work", str(tmp_path), *options, "--share", "0.2", "--canary-minutes", "2"])
    wanted = seen[0]._wanted
    assert wanted.since == 1_767_225_600_000
    assert (wanted.fit, wanted.share, wanted.bounds, wanted.canary.seconds) == ("never", 0.2, ("recall@5>=.1",), 120)
    assert wanted.train == ("--epochs", "2", "--embed", "my towers")


def test_anew_forgets_the_refresh_that_is_under_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = RefreshFolder(tmp_path)
    folder.save(RefreshState(asked="something else", since=0, split=1, until=2, serving="0" * 16))
    monkeypatch.setattr(Refresh, "run", lambda _: None)
    CliRunner().invoke(app, ["refresh", "--work", str(tmp_path)])
    assert folder.load() is not None
    CliRunner().invoke(app, ["refresh", "--work", str(tmp_path), "--anew"])
    assert folder.load() is None


@pytest.mark.parametrize(
    ("options", "said"), [(["--fit", "perhaps"], "auto, always, never"), (["--since", "soon"], "no time")]
)
def test_what_means_nothing_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SidstreamError, match=said):
        CliRunner().invoke(app, ["refresh", "--work", str(tmp_path), *options], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_damaged_state_is_told_and_begun_anew_only_if_asked(tmp_path: Path) -> None:
    folder = RefreshFolder(tmp_path)
    folder.root.mkdir()
    (folder.root / "state.json").write_text("{")
    with pytest.raises(SidstreamError, match="--anew"):
        folder.load()
