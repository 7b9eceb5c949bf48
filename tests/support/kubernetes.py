"""Helm and kubeconform, built once from pinned Go modules, and the schemas that rendered YAML is held against.

Schemas of Kubernetes' own kinds come from the package kubernetes-validate, those of KEDA and the Prometheus Operator from
their Go modules. Whoever asks for one of these where Go is missing has the test skipped.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from streamer.local.kafka_distribution import cache_directory

KUBERNETES: Final = "1.30.0"
_HELM: Final = ("helm", "helm.sh/helm/v3/cmd/helm", "v3.19.2")
_KUBECONFORM: Final = ("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform", "v0.7.0")
_CUSTOM: Final = {
    "github.com/kedacore/keda/v2@v2.17.2": ["config/crd/bases/keda.sh_scaledobjects.yaml"],
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": [
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"
    ],
}
_DEFINITION: Final = re.compile(r"^/api/_definitions\.json#/\$defs/(.+)$")


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What ``helm`` said; its version of Kubernetes is ours."""
    return subprocess.run([_built(*_HELM), *map(str, arguments)], capture_output=True, text=True, check=False)


def kubeconform(rendered: str, schemas: Path) -> subprocess.CompletedProcess[str]:
    """What ``kubeconform -strict`` says of YAML documents. ``schemas``: as ``write_schemas`` has left them."""
    location = str(schemas / "{{ .ResourceKind }}{{ .KindSuffix }}.json")
    command = [_built(*_KUBECONFORM), "-strict", "-summary", "-schema-location", location]
    return subprocess.run(command, input=rendered, capture_output=True, text=True, check=False)


@functools.cache
def _built(name: str, package: str, version: str) -> str:
    go = _go()
    target = cache_directory() / "tools" / f"{name}-{version}"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.with_suffix(f".{os.getpid()}")
        found = subprocess.run(
            [go, "install", f"{package}@{version}"],
            env={**os.environ, "GOBIN": str(folder), "GOFLAGS": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode:
            pytest.skip(f"Go cannot build {package}@{version} here: {found.stderr.strip().splitlines()[-1]}")
        (folder / name).replace(target)
        folder.rmdir()
    return str(target)


def _go() -> str:
    found = shutil.which("go")
    if found is None:
        pytest.skip("helm and kubeconform are built with Go, which is not on this machine")
    return found


def write_schemas(directory: Path, kinds: set[str]) -> None:
    """Into ``directory`` the schema of each of ``kinds`` (`apps/v1/StatefulSet`), by the names that kubeconform looks for."""
    root = Path(str(distribution("kubernetes-validate").locate_file("kubernetes_validate/kubernetes-json-schema")))
    folder = root / f"v{KUBERNETES}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text("utf-8"))["$defs"]
    custom = _custom_schemas()
    for kind in kinds:
        group, name = kind.rsplit("/", 1)
        own = custom.get(kind) or json.loads((folder / _file_name(group, name)).read_text("utf-8"))
        needed: dict[str, Any] = {}
        schema = _inside(own, definitions, needed)
        (directory / _file_name(group, name)).write_text(json.dumps(schema | {"$defs": needed}), "utf-8")


def _file_name(group: str, kind: str) -> str:
    """As kubeconform's {{ .ResourceKind }}{{ .KindSuffix }}: of a group the first word, and the version."""
    *groups, version = group.split("/")
    return "-".join([kind.lower(), *(name.split(".")[0] for name in groups), version]) + ".json"


def _inside(node: Any, definitions: dict[str, Any], needed: dict[str, Any]) -> Any:
    """``node``, whose references lead into the same file; what they need comes into ``needed``."""
    if isinstance(node, list):
        return [_inside(each, definitions, needed) for each in node]
    if not isinstance(node, dict):
        return node
    found = {key: _inside(value, definitions, needed) for key, value in node.items() if key != "$ref"}
    if isinstance(at := node.get("$ref"), str) and (match := _DEFINITION.match(at)):
        if match[1] not in needed:
            needed[match[1]] = {}  # a schema may hold itself
            needed[match[1]] = _inside(definitions[match[1]], definitions, needed)
        found["$ref"] = f"#/$defs/{match[1]}"
    return found


def _custom_schemas() -> dict[str, dict[str, Any]]:
    found = {}
    for module, files in _CUSTOM.items():
        answer = subprocess.run(
            [_go(), "mod", "download", "-json", module], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            pytest.skip(f"the Go module {module} cannot be had here")
        for file in files:
            resource = yaml.safe_load(Path(json.loads(answer.stdout)["Dir"], file).read_text("utf-8"))["spec"]
            for version in resource["versions"]:
                key = f"{resource['group']}/{version['name']}/{resource['names']['kind']}"
                found[key] = _strict(version["schema"]["openAPIV3Schema"])
    return found


def _strict(node: Any) -> Any:
    """A custom resource's schema knows no unknown field either: the API server would drop it in silence."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    found = {key: _strict(value) for key, value in node.items()}
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found
