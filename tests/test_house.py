"""The shape of the house: imports run one way, and optional weight stays optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["models", "store", "streamer", "retriever", "study", "demo", "sidstream"]
HEAVY = {"matplotlib", "torch", "transformers", "faiss", "onnx", "faust", "jgo"}


def imported_parts(path: Path) -> set[str]:
    """Our own top-level packages that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found & set(ORDER)


@pytest.mark.parametrize("part", ORDER[:-1])
def test_imports_run_one_way(part: str) -> None:
    allowed = set(ORDER[: ORDER.index(part) + 1])
    for path in (ROOT / part).rglob("*.py"):
        wrong = imported_parts(path) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: imports run {' → '.join(reversed(ORDER))}"


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        (
            "streamer.assigner.process, streamer.indexer.process, streamer.client.publisher, streamer.operations.status",
            set(),
        ),
        ("retriever.client", set()),
        ("sidstream", set()),
        ("retriever.answering.worker", {"torch", "transformers"}),
    ],
)
def test_optional_weight_is_not_imported(modules: str, allowed: set[str]) -> None:
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(answer.stdout.split()) <= allowed


def test_no_registry_address_and_no_path_of_a_machine_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        text = (ROOT / name).read_text(errors="ignore")
        for trace in ("--index" + "-url", ".py" + "env", "/work/" + "main", "files.python" + "hosted"):
            assert trace not in text, f"{name} holds {trace!r}"
