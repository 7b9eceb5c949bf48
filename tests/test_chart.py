"""The Helm chart: `helm lint`, `helm template`, Kubernetes' own schemas, and what the processes need of their pods."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.settings import Settings, load_settings
from support.kubernetes import KUBERNETES, helm, kubeconform, write_schemas

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "sidstream"
LEAST = {"kafka": {"bootstrapServers": "kafka:9092"}, "bundle": {"existingClaim": "bundle"}}
ALL = {
    "image": {"digest": "sha256:" + 64 * "a", "pullSecrets": ["registry"]},
    "kafka": {"bootstrapServers": "a:9093,b:9093", "ports": [9093], "securitySecret": "kafka", "filesSecret": "files"},
    "bundle": {"image": "shop/bundle:7", "subPath": "newest", "storeClaim": "bundles"},
    "candidates": ["792e25b5661db80d"],
    "indexHosts": [{"name": "a", "partitions": "0-1", "replicas": 2}, {"name": "b", "partitions": "2,3"}],
    "retrievers": 2,
    "indexStorage": {"size": "100Gi", "storageClassName": "fast", "seedClaim": "backups", "seedPath": "monday"},
    "settings": {
        "topics": {"prefix": "shop.", "partitions": 4, "queries": "questions"},
        "retriever": {"beams": 20},
        "attributes": {"filterable": {"price": "number"}},
    },
    "autoscaling": {"enabled": True, "authenticationRef": "kafka"},
    "gateway": {"enabled": True, "clientsSecret": "clients", "tokenSecret": "token"},
    "tracing": {"endpoint": "https://collector.example"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {
        "metricsFrom": [{"podSelector": {}}],
        "dashboardFrom": [{"podSelector": {}}],
        "gatewayFrom": [{"podSelector": {}}],
        "tokenPorts": [443],
    },
    "serviceAccount": {"name": "shop"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "nodeSelector": {"disk": "fast"},
    "podAnnotations": {"team": "search"},
    "podLabels": {"team": "search"},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def said(values: dict[str, Any], tmp_path: Path, command: str = "template") -> tuple[int, str, str]:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    given = [CHART, "-f", file, "--kube-version", KUBERNETES]
    found = helm("lint", *given, "--strict") if command == "lint" else helm("template", "demo", *given)
    return found.returncode, found.stdout, found.stderr


def rendered(values: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    status, output, errors = said(values, tmp_path)
    assert status == 0, errors
    return [document for document in yaml.safe_load_all(output) if document]


@pytest.fixture(scope="module", params=[LEAST, ALL], ids=["least", "all"])
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    given: dict[str, Any] = request.param
    return given


@pytest.fixture(scope="module")
def documents(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return rendered(values, tmp_path_factory.mktemp("chart"))


def of(documents: list[dict[str, Any]], kind: str, name: str = "") -> list[dict[str, Any]]:
    return [one for one in documents if one["kind"] == kind and one["metadata"]["name"].endswith(name)]


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["spec"]["template"] for one in documents if "template" in one.get("spec", {})]


def environment(container: dict[str, Any], **fields: str) -> dict[str, str]:
    """Of a container: what is from a field of its pod is as in ``fields``."""
    found = {}
    for entry in container["env"]:
        path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[entry["name"]] = fields[entry["name"]] if path else str(entry.get("value", "{}"))
    return {name: value.replace("$(POD_NAME)", found.get("POD_NAME", "")) for name, value in found.items()}


def settings_of(documents: list[dict[str, Any]], container: dict[str, Any], tmp_path: Path, **fields: str) -> Settings:
    """What the process in a container reads from its environment and its file."""
    [configuration] = of(documents, "ConfigMap", "demo-sidstream")
    file = tmp_path / "sidstream.toml"
    file.write_text(configuration["data"]["sidstream.toml"], "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(container, **fields).items():
            patch.setenv(name, value)
        patch.setenv("SIDSTREAM_CONFIG", str(file))
        return load_settings()


def test_chart_has_no_fault_that_helm_lint_knows(values: dict[str, Any], tmp_path: Path) -> None:
    status, output, errors = said(values, tmp_path, "lint")
    assert status == 0, output + errors


def test_everything_that_is_rendered_is_valid_by_the_schemas_of_kubernetes_keda_and_the_prometheus_operator(
    documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_schemas(tmp_path, {f"{one['apiVersion']}/{one['kind']}" for one in documents})
    found = kubeconform(yaml.safe_dump_all(documents), tmp_path)
    assert found.returncode == 0, found.stdout
    assert f"Valid: {len(documents)}, Invalid: 0, Errors: 0, Skipped: 0" in found.stdout
    broken = json.loads(json.dumps(of(documents, "StatefulSet")[0]))
    broken["spec"]["serviceNaem"] = broken["spec"].pop("serviceName")
    assert "serviceNaem" in kubeconform(yaml.safe_dump(broken), tmp_path).stdout


def test_every_container_is_restricted_and_has_resources(documents: list[dict[str, Any]]) -> None:
    for pod in pods(documents):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            assert container["securityContext"] == RESTRICTED
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_every_process_is_started_anew_by_live_and_asked_by_ready_on_its_own_port(
    documents: list[dict[str, Any]],
) -> None:
    for owner in of(documents, "StatefulSet") + of(documents, "Deployment"):
        spec = owner["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] > load_settings().shutdown_seconds
        ports = [port["containerPort"] for container in spec["containers"] for port in container["ports"]]
        assert len(set(ports)) == len(ports), "the containers of a pod share its ports"
        for container in spec["containers"]:
            own = {port["name"]: port["containerPort"] for port in container["ports"]}
            port = int(
                environment(container, POD_NAME="p-0", SIDSTREAM_ASSIGNER__INSTANCE="0")["SIDSTREAM_METRICS__PORT"]
            )
            for probe, path in (("livenessProbe", "/live"), ("startupProbe", "/live"), ("readinessProbe", "/ready")):
                asked = container[probe]["httpGet"]
                assert (asked["path"], own.get(asked["port"], asked["port"])) == (path, port)


def test_containers_run_commands_that_exist_with_settings_that_are_read(
    documents: list[dict[str, Any]], values: dict[str, Any], tmp_path: Path
) -> None:
    import typer.main

    import sidstream

    known = set(typer.main.get_command(sidstream.app).commands)  # type: ignore[attr-defined]
    fields = {"POD_NAME": "demo-sidstream-index-a-1", "SIDSTREAM_ASSIGNER__INSTANCE": "3"}
    for pod in pods(documents):
        for container in pod["spec"]["containers"]:
            assert container["args"][0] in known
            settings = settings_of(documents, container, tmp_path, **fields)
            assert settings.kafka.bootstrap_servers == values["kafka"]["bootstrapServers"]
            mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
            names = {volume["name"] for volume in pod["spec"]["volumes"]} | {"index"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
            if container["args"] != ["topics", "create"]:
                assert str(settings.bundle) in mounted
                assert ("/var/lib/sidstream/bundles" in mounted) == bool(values["bundle"].get("storeClaim"))
            if container["args"] == ["assigner"]:
                assert settings.assigner.instance == "3"
            if container["args"] == ["gateway"]:
                assert settings.gateway.clients == Path("/etc/sidstream/gateway/clients.toml")
                assert settings.gateway.token_secret is not None
            if container["args"] == ["retriever"]:
                assert settings.retriever.instance == f"{fields['POD_NAME']}-{container['name'][-1]}"


def test_indexer_and_retrievers_of_a_host_share_an_index_and_their_process_ids(
    documents: list[dict[str, Any]], values: dict[str, Any], tmp_path: Path
) -> None:
    hosts = values.get("indexHosts", [{"name": "all"}])
    owners = of(documents, "StatefulSet")
    for host in hosts:
        [owner] = [one for one in owners if one["metadata"]["name"] == f"demo-sidstream-index-{host['name']}"]
        spec = owner["spec"]["template"]["spec"]
        assert spec["shareProcessNamespace"] is True
        assert [claim["metadata"]["name"] for claim in owner["spec"]["volumeClaimTemplates"]] == ["index"]
        found = [container["args"][0] for container in spec["containers"]]
        assert found.count("retriever") == values.get("retrievers", 1)
        assert found.count("indexer") == 1 + len(values.get("candidates", ()))
        for container in spec["containers"]:
            assert {"name": "index", "mountPath": "/var/lib/sidstream"} in container["volumeMounts"]
            settings = settings_of(documents, container, tmp_path, POD_NAME="p-0")
            assert settings.index == Path("/var/lib/sidstream/index")
            assert settings.indexer.partitions == host.get("partitions", "").replace("2,3", "2-3")
            assert settings.retriever.shards == len(hosts)


def test_host_without_an_index_begins_with_the_seed_and_one_that_has_an_index_keeps_it(tmp_path: Path) -> None:
    [host] = of(rendered(ALL, tmp_path), "StatefulSet", "index-b")
    copied, seed = host["spec"]["template"]["spec"]["initContainers"]
    assert copied["command"] == ["cp", "-R", "/bundle/.", "/copied/newest"]
    assert environment(seed)["SIDSTREAM_INDEXER__PARTITIONS"] == "2-3"
    shell, flag, script, path = seed["command"]
    for at, replacement in (("/var/lib/sidstream", tmp_path), ("exec sidstream", "echo"), ("/seed", "at")):
        script = script.replace(at, str(replacement))
    assert subprocess.run([shell, flag, script, path], capture_output=True, text=True).stdout == "restore at/monday\n"
    (tmp_path / "index").mkdir()
    assert subprocess.run([shell, flag, script, path], capture_output=True, text=True, check=True).stdout == ""


def test_settings_reach_the_processes_and_the_job_before_them(tmp_path: Path) -> None:
    documents = rendered(ALL, tmp_path)
    texts = [one["data"]["sidstream.toml"] for one in of(documents, "ConfigMap")]
    assert len(texts) == 2
    assert texts[0] == texts[1]
    read = tomllib.loads(texts[0])
    assert read["topics"]["prefix"] == "shop."
    assert read["retriever"] == {"beams": 20, "shards": 2}
    [container] = of(documents, "Job")[0]["spec"]["template"]["spec"]["containers"]
    assert settings_of(documents, container, tmp_path).attributes.filterable == {"price": "number"}


def test_pods_start_anew_when_a_setting_changes(tmp_path: Path) -> None:
    def sums(values: dict[str, Any]) -> set[str]:
        owners = [one for one in rendered(values, tmp_path) if one["kind"] in ("StatefulSet", "Deployment")]
        return {owner["spec"]["template"]["metadata"]["annotations"]["checksum/settings"] for owner in owners}

    before, after = sums(LEAST), sums(LEAST | {"settings": {"retriever": {"beams": 21}}})
    assert len(before) == len(after) == 1
    assert before != after


def test_scaling_asks_for_the_lag_of_the_groups_and_topics_that_the_settings_name(tmp_path: Path) -> None:
    documents = rendered(ALL, tmp_path)
    scaled = {one["metadata"]["name"]: one["spec"] for one in of(documents, "ScaledObject")}
    targets = {one["metadata"]["name"]: one["spec"] for one in of(documents, "StatefulSet")}
    for spec in scaled.values():
        assert "replicas" not in targets[spec["scaleTargetRef"]["name"]], "two would decide how many there are"
    asked = {
        name: (spec["triggers"][0]["metadata"]["consumerGroup"], spec["triggers"][0]["metadata"]["topic"])
        for name, spec in scaled.items()
    }
    retriever = {}
    for name in ("a", "b"):
        [owner] = [one for one in of(documents, "StatefulSet") if one["metadata"]["name"].endswith(f"index-{name}")]
        container = next(one for one in owner["spec"]["template"]["spec"]["containers"] if one["args"] == ["retriever"])
        retriever[name] = settings_of(documents, container, tmp_path, POD_NAME="p-0")
    assert asked == {
        "demo-sidstream-assigner": (retriever["a"].in_cluster("sidstream-assigner"), "shop.item-updates"),
        "demo-sidstream-index-a": (retriever["a"].retriever_group, "questions"),
        "demo-sidstream-index-b": (retriever["b"].retriever_group, "questions"),
    }


def test_every_port_with_metrics_is_scraped_and_let_through(tmp_path: Path) -> None:
    documents = rendered(ALL, tmp_path)
    ports = {
        port["name"]: port["containerPort"]
        for pod in pods(documents)
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
        if port["name"].startswith("metrics")
    }
    [service] = [one for one in of(documents, "Service") if one["spec"].get("clusterIP") == "None"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports.keys()
    [monitor] = of(documents, "ServiceMonitor")
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == ports.keys()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [address] = of(documents, "Service", "gateway")
    assert [port["targetPort"] for port in address["spec"]["ports"]] == ["http"]
    [policy] = of(documents, "NetworkPolicy", "demo-sidstream")
    [rule] = policy["spec"]["ingress"][0]["ports"]
    assert all(rule["port"] <= port <= rule["endPort"] for port in ports.values())


def test_whoever_is_not_named_is_kept_out_and_kafka_alone_is_reached(tmp_path: Path) -> None:
    [policy] = of(rendered(LEAST, tmp_path), "NetworkPolicy")
    assert policy["spec"]["ingress"] == []
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == [53, 53, 9092]


def test_tokens_are_got_by_every_process_and_no_secret_lies_in_what_is_rendered(tmp_path: Path) -> None:
    to = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    kafka = LEAST["kafka"] | {"oauthTokenProvider": "shops_login:token", "securitySecret": "kafka"}
    given = {"kafka": kafka, "networkPolicy": {"tokenPorts": [443], "tokensTo": to}, "serviceAccount": {"name": "shop"}}
    documents = rendered(LEAST | given, tmp_path)
    assert not of(documents, "ServiceAccount")
    for pod in pods(documents):  # the job before the release, too
        assert pod["spec"]["serviceAccountName"] == "shop"
        for container in pod["spec"]["containers"]:
            variables = {one["name"]: one for one in container["env"]}
            assert variables["SIDSTREAM_KAFKA__OAUTH_TOKEN_PROVIDER"]["value"] == "shops_login:token"
            from_secret = variables["SIDSTREAM_KAFKA__SECURITY"]["valueFrom"]["secretKeyRef"]
            assert from_secret == {"name": "kafka", "key": "security"}
    [policy] = of(documents, "NetworkPolicy")
    assert policy["spec"]["egress"][-1] == {"ports": [{"protocol": "TCP", "port": 443}], "to": to}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector.observability:4318", 4318), ("https://collector/otlp", 443), ("http://c", 80)],
)
def test_spans_reach_the_collector_that_every_process_is_told_of(endpoint: str, port: int, tmp_path: Path) -> None:
    to = [{"namespaceSelector": {"matchLabels": {"name": "observability"}}}]
    documents = rendered(LEAST | {"tracing": {"endpoint": endpoint}, "networkPolicy": {"tracingTo": to}}, tmp_path)
    for pod in pods(documents):
        for container in pod["spec"]["containers"]:
            given = {one["name"]: one.get("value") for one in container["env"]}
            assert given["SIDSTREAM_TRACING__ENDPOINT"] == endpoint
    [policy] = of(documents, "NetworkPolicy")
    assert policy["spec"]["egress"][-1] == {"ports": [{"protocol": "TCP", "port": port}], "to": to}


def test_each_kind_of_process_has_a_disruption_budget_that_selects_its_pods(documents: list[dict[str, Any]]) -> None:
    labels = [
        owner["spec"]["template"]["metadata"]["labels"]
        for owner in of(documents, "StatefulSet") + of(documents, "Deployment")
    ]
    for budget in of(documents, "PodDisruptionBudget"):
        chosen = [own for own in labels if budget["spec"]["selector"]["matchLabels"].items() <= own.items()]
        assert len(chosen) == 1, budget["metadata"]["name"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kafka": {}}, "kafka.bootstrapServers must be set"),
        ({"bundle": {}}, "the bundle is missing"),
        ({"bundle": {"existingClaim": "a", "image": "b"}}, "set one of the two"),
        ({"settings": {"index": "/elsewhere"}}, "settings.index is decided by the chart"),
        ({"settings": {"retriever": {"instance": "7"}}}, "settings.retriever.instance is each pod's own name"),
        ({"settings": {"tracing": {"endpoint": "http://c:4318"}}}, "set it as tracing.endpoint"),
        ({"tracing": {"endpoint": "collector:4317"}}, "endpoint"),
        ({"settings": {"indexer": {"partitions": "0"}}}, "settings.indexer.partitions comes from indexHosts"),
        ({"indexHosts": [{"name": "a", "partitions": "0"}, {"name": "b"}]}, "b has no partitions"),
        ({"indexHosts": [{"name": "a", "partitions": "0"}, {"name": "a", "partitions": "1"}]}, "a is there twice"),
        ({"indexHosts": [{"name": "a", "partitions": "0-2"}, {"name": "b", "partitions": "2-3"}]}, "partition 2 is in several"),
        ({"indexHosts": [{"name": "a", "partitions": "0-1"}, {"name": "b", "partitions": "2"}]}, "no shard has partition 3"),
        ({"settings": {"shutdown_seconds": 60}}, "terminationGracePeriodSeconds must be more than settings.shutdown_seconds"),
        ({"gateway": {"enabled": True}}, "gateway.clientsSecret is missing"),
        ({"candidates": ["792e25b5661db80d"]}, "candidates need bundle.storeClaim"),
        ({"retreivers": 2}, "retreivers"),
        ({"retrievers": 0}, "retrievers"),
        ({"indexHosts": []}, "indexHosts"),
        ({"indexHosts": [{"name": "Not A Name"}]}, "name"),
        ({"monitor": {"replicas": "two"}}, "replicas"),
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    status, _, errors = said(LEAST | change, tmp_path)
    assert status != 0
    assert message in errors
