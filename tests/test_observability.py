"""What is shipped for Prometheus and Grafana agrees with what the processes expose; checked by promtool where that is present."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

import retriever.answering.metrics
import streamer.assigner.metrics
import streamer.indexer.metrics
import streamer.kafka.partitioner
import streamer.monitor.metrics
import streamer.process.metrics
import streamer.tracing.metrics

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "sidstream.rules.yml"
RULE_TESTS = PROMETHEUS / "sidstream.tests.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "sidstream.json"
PROCESSES = {"assigner", "indexer", "monitor", "retriever"}

_MODULES = (
    streamer.process.metrics,
    streamer.kafka.partitioner,
    streamer.assigner.metrics,
    streamer.indexer.metrics,
    streamer.monitor.metrics,
    streamer.tracing.metrics,
    retriever.answering.metrics,
)
_SERIES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# Of the Prometheus client itself, and of the scrape.
_FOREIGN = {
    "up": {"job", "instance"},
    "process_start_time_seconds": {"job", "instance"},
    "process_cpu_seconds_total": {"job", "instance"},
    "process_resident_memory_bytes": {"job", "instance"},
}
_METRIC = re.compile(r"\b((?:sidstream|process)_\w+|up)\b(?:\{([^}]*)\})?")


def exposed() -> dict[str, set[str]]:
    """Every series that our processes expose, with its labels."""
    found = dict(_FOREIGN)
    for module in _MODULES:
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                labels = {*metric._labelnames, "job", "instance"}
                for suffix in _SERIES[metric._type]:
                    found[f"{metric._name}{suffix}"] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Name and PromQL of everything that is shipped, Grafana's variables filled in."""
    for alert in alerts():
        yield alert["alert"], alert["expr"]
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


EXPRESSIONS = list(expressions())


def labels_in(expression: str) -> set[str]:
    grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    return {name.strip() for names in grouped for name in names.split(",") if name.strip()}


@pytest.mark.parametrize("expression", [text for _, text in EXPRESSIONS], ids=[name for name, _ in EXPRESSIONS])
def test_every_metric_and_label_that_is_asked_for_is_exposed(expression: str) -> None:
    known = exposed()
    asked = _METRIC.findall(expression)
    assert asked
    available: set[str] = set()
    for name, matchers in asked:
        assert name in known, f"{name} is exposed by no process"
        wanted = set(re.findall(r"(\w+)\s*[=!]", matchers))
        assert wanted <= known[name], f"{name} has no label {wanted - known[name]}"
        available |= known[name]
        for process in re.findall(r'process="(\w+)"', matchers):
            assert process in PROCESSES
    assert labels_in(expression) <= available


def test_every_metric_of_ours_is_shown_or_watched() -> None:
    asked = {name for _, expression in EXPRESSIONS for name, _ in _METRIC.findall(expression)}
    for module in _MODULES:
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                assert asked & {f"{metric._name}{suffix}" for suffix in _SERIES[metric._type]}, metric._name


def test_names_end_in_base_units_and_labels_are_few() -> None:
    units = (
        "_seconds",
        "_bytes",
        "_ratio",
        "_records",
        "_events",
        "_items",
        "_info",
        "_tokens",
        "_keys",
        "_transactions",
    )
    plain = {"sidstream_ready", "sidstream_live", "sidstream_layout_generation", "sidstream_alerts_firing"}
    for module in _MODULES:
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                assert metric._type == "counter" or metric._name.endswith(units) or metric._name in plain, metric._name
                assert len(metric._labelnames) <= 2, metric._name


def test_class_of_dead_letters_and_outcomes_stays_bounded_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.process.metrics._classes", set())
    seen = {streamer.process.metrics.bounded_class(f"Error{number}") for number in range(1_000)}
    assert len(seen) == 33
    assert streamer.process.metrics.bounded_class("Error1") == "Error1"
    assert streamer.process.metrics.bounded_class("Error999") == "Other"


def test_every_alert_has_severity_summary_description_a_unit_test_and_a_section_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    sections = set(re.findall(r"^## (\w+)$", runbook, re.MULTILINE))
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))
    assert sections == set(names), "a section an alert, and none without"
    tested = {
        test["alertname"]
        for group in yaml.safe_load(RULE_TESTS.read_text("utf-8"))["tests"]
        for test in group["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert tested == set(names)
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"


def test_dashboard_has_unique_panels_that_do_not_overlap_and_the_rows_that_it_should() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    assert [panel["title"] for panel in panels() if panel["type"] == "row"] == [
        "Pipeline",
        "Hourglass",
        "Queries",
        "Faults",
    ]
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert dashboard["templating"]["list"][0]["name"] == "datasource"


def test_prometheus_scrapes_every_process_service_on_its_metrics_port() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    [job] = configuration["scrape_configs"]
    targets = {target for static in job["static_configs"] for target in static["targets"]}
    assert targets == {f"{name}:{compose[name]['environment']['SIDSTREAM_METRICS__PORT']}" for name in PROCESSES}
    [gateway] = job["dns_sd_configs"]
    assert (gateway["names"], gateway["port"]) == (
        ["gateway"],
        int(compose["gateway"]["environment"]["SIDSTREAM_METRICS__PORT"]),
    )
    assert job["job_name"] == "sidstream"
    assert configuration["rule_files"] == [RULES.name]


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    executable = shutil.which("promtool")
    if executable is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    return subprocess.run([executable, *map(str, arguments)], input=text, capture_output=True, text=True, check=False)


def test_promtool_accepts_rules_and_configuration() -> None:
    for arguments in (("check", "rules", RULES), ("check", "config", PROMETHEUS / "prometheus.yml")):
        answer = promtool(*arguments)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_alerts_fire_when_they_should_and_only_then_by_promtool() -> None:
    answer = promtool("test", "rules", RULE_TESTS)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_unit_tests_of_the_rules_can_fail(tmp_path: Path) -> None:
    (tmp_path / RULES.name).write_text(RULES.read_text("utf-8").replace("sidstream_live == 0", "sidstream_live == 1"))
    shutil.copy(RULE_TESTS, tmp_path)
    answer = promtool("test", "rules", tmp_path / RULE_TESTS.name)
    assert answer.returncode != 0
    assert "SidstreamStalled" in answer.stdout + answer.stderr


def test_every_expression_of_the_dashboard_parses_by_promtool(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, (_, text) in enumerate(EXPRESSIONS)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    answer = promtool("check", "rules", file)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_exposition_is_clean_by_promtools_linter() -> None:
    registry = CollectorRegistry()
    for module in _MODULES:
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                if metric._labelnames and not metric._metrics:
                    metric.labels(*("x" for _ in metric._labelnames))
                registry.register(metric)
    answer = promtool("check", "metrics", text=prometheus_client.generate_latest(registry).decode())
    assert answer.returncode == 0, answer.stdout + answer.stderr
