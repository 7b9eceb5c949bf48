"""The demo's whole story on a smaller shop: the main job end to end, on a real broker with real processes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import demo.learning
from demo.commands import demo_settings
from demo.display import show_summary
from demo.preparation import head_size
from demo.shop.shop import own_shop
from demo.story import Story
from streamer.local.broker import LocalBroker
from streamer.local.up import Pipeline


def test_story_streams_answers_changes_deletes_and_reshortens_live_while_every_query_is_answered(
    broker: LocalBroker, unique_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = own_shop(2_400, epochs=1.0, fad_size=600)
    monkeypatch.setenv("SIDSTREAM_CONFIG", "")  # demo_settings sets it; this puts it back
    monkeypatch.setenv("SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("SIDSTREAM_TOPICS__PREFIX", unique_prefix)
    monkeypatch.setenv("SIDSTREAM_MONITOR__APP_ID", f"{unique_prefix}monitor")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Windows half as long as the demo's: as much happens in them, sooner.
    monkeypatch.setenv("SIDSTREAM_MONITOR__BUCKET_SECONDS", "1.0")
    monkeypatch.setenv("SIDSTREAM_MONITOR__DRIFT_INTERVAL_SECONDS", "1.0")
    monkeypatch.setenv("SIDSTREAM_MONITOR__MINIMUM_INTERVAL_SECONDS", "2.0")
    monkeypatch.setenv("SIDSTREAM_MONITOR__RESHORTENED_SECONDS", "5.0")
    monkeypatch.setattr(demo.learning, "TRAIN", ("--epochs", "2", "--threads", "1"))
    monkeypatch.setattr(demo.learning, "EVALUATE", ("--cases", "40", "--at", "10", "--resamples", "100"))
    # So few cases prove no gain, and need not: whatever is not worse beyond chance takes over.
    monkeypatch.setattr(demo.learning, "BOUNDS", ("recall@10-against:low>=-1",))
    settings = demo_settings(tmp_path, head_size(shop))
    output = io.StringIO()
    console = Console(file=output, width=120)

    figures = Story(shop, settings, console, tmp_path / "logs").tell(
        lambda: Pipeline(settings, embedded_broker=False, log_directory=tmp_path / "logs")
    )
    show_summary(console, figures, 1.0, [("sidstream up", "go on")])
    text = output.getvalue()

    assert figures.burst_items == len(shop.known) - 100
    assert figures.fresh_items == len(shop.late)
    assert 0 < figures.fresh_p50_ms <= figures.fresh_p99_ms
    assert figures.queries > 0
    assert figures.unanswered == 0, text
    assert figures.invalid_items == 0, text
    assert figures.deleted_in_answers == 0, text
    assert figures.reshortened_after_seconds is not None, text
    assert len(figures.layouts) >= 2, "queries were answered under the old layout and under the new one"
    assert figures.alerts_fired >= 1
    assert figures.alerts_resolved == figures.alerts_fired, text
    assert "its SID was" in text
    assert figures.refresh_outcome == "promoted", text
    assert figures.refresh_queries > 0
    assert figures.refresh_unanswered == 0, text
    assert figures.refresh_invalid == 0, text
    assert "What happened" in text
