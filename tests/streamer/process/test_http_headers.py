"""What is served over HTTP: on loopback, with headers that forbid the rest, and no data of Faust's own pages. No broker."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from models.sids.layout import Layout
from streamer.monitor.process import build_app
from streamer.process.health import Health
from streamer.process.health_server import HealthServer
from streamer.process.http_headers import HEADERS, page_headers
from streamer.settings import load_settings
from streamer.settings.process import MetricsSettings
from support.paths import ROOT

PAGE = (ROOT / "streamer" / "monitor" / "dashboard.html").read_text()


def test_everything_binds_to_loopback_and_the_dashboard_is_off_unless_asked_for() -> None:
    settings = load_settings()
    assert settings.metrics.host == settings.monitor.web_host == "127.0.0.1"
    assert (settings.metrics.port, settings.monitor.web_port) == (0, 0)


def test_dashboard_serves_its_pages_alone_and_every_answer_carries_the_headers(tmp_path: Path) -> None:
    settings = load_settings(monitor={"web_port": 6066})
    layout = Layout(generation=1, codebook_id="abc", layers=3, size=16)

    async def run() -> None:
        app, _ = build_app(settings, layout, np.ones((3, 16), np.int64), data_directory=tmp_path)
        app.finalize()
        app.web.init_server()
        async with TestClient(TestServer(app.web.web_app)) as client:
            for path in (
                "/table/",
                "/table/token_counts/abc:1:1/",
                "/graph/",
                "/stats/",
                "/router/",
                "/production_index/",
                "/docs/",
            ):
                answer = await client.get(path)
                assert answer.status == 404, path
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
            for path, status in (("/", 200), ("/state", 200)):
                answer = await client.get(path)
                assert answer.status == status
                expected = page_headers(PAGE) if path == "/" else HEADERS
                assert {name: answer.headers[name] for name in expected} == expected
            assert "text/html" in (await client.get("/")).headers["Content-Type"]
            assert (await client.get("/state")).headers["Content-Type"].startswith("application/json")
            assert set(await (await client.get("/state")).json()) == {"ready", "codebook", "serving"}, (
                "nothing counted on a standby"
            )

    asyncio.run(run())


def test_page_writes_what_it_is_told_as_text_and_its_policy_lets_its_own_script_run_alone() -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in PAGE
    assert PAGE.count("<script>") == PAGE.count("<script") == 1, "no script from elsewhere"
    policy = page_headers(PAGE)["Content-Security-Policy"]
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert page_headers(PAGE.replace("refresh();", "refresh(); "))["Content-Security-Policy"] != policy


@pytest.mark.parametrize("path", ["/metrics", "/live", "/ready", "/nothing"])
def test_health_and_metrics_carry_the_headers_and_do_not_name_the_interpreter(path: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = HealthServer(MetricsSettings(port=port), Health())
    try:
        with urllib.request.build_opener(_AnyStatus).open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            assert {name: answer.headers[name] for name in HEADERS} == HEADERS
            assert "Python" not in answer.headers["Server"]
    finally:
        server.close()


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    def http_response(self, _request: object, response: object) -> object:  # type: ignore[override]
        return response
