"""The shape of the house: imports run one way, also between rooms; no circles; tests mirror the tree; weight stays optional."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ["models", "store", "streamer", "retriever", "gateway", "study", "demo", "sidstream"]
HEAVY = {"matplotlib", "opentelemetry", "torch", "transformers", "faiss", "onnx", "faust", "jgo", "litestar", "uvicorn"}
# The rooms of a part, from the one that may import all others down to the one that imports none.
ROOMS = {
    "models": "commands towers bundles training examples language dense codebooks sids tables catalogue data_files attributes "
    "progress terminal directories errors",
    "streamer": "commands local operations interactions client dead_letters assigner indexer monitor deployments exactly_once "
    "kafka registry process tracing events filters feeds settings shards",
    "store": "checks writing topology reading records files errors",
    "retriever": "commands explanation_tables refreshing evaluation batch_answers client asking merging choosing_mixture "
    "serving answering dense device_search search eligibility",
    "gateway": "commands process application traced sending openapi routes gateway intake clients kafka metrics problems",
    "study": "commands quick report experiments measures data",
}
MOST_FILES = 13  # on one floor, __init__ included
# What is tested in the whole, whatever room it begins in; the rest mirrors the tree.
WHOLE = {"tests", "tests/scenarios", "tests/chaos", "tests/support", "tests/benchmarks"}


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of ours; a room's ``__init__`` has the room's name."""
    for part in PARTS[:-1]:
        for path in sorted((ROOT / part).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, also inside functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {node.module}
    return {name for name in found if name.partition(".")[0] in PARTS}


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def room(module: str) -> str:
    """``streamer.kafka`` of ``streamer.kafka.admin``; a file that lies in no room is one itself."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("part", PARTS[:-1])
def test_imports_between_parts_run_one_way(part: str) -> None:
    allowed = set(PARTS[: PARTS.index(part) + 1])
    for module, imported in IMPORTS.items():
        if module.partition(".")[0] == part:
            wrong = {name for name in imported if name.partition(".")[0] not in allowed}
            assert not wrong, f"{module} imports {wrong}: imports run {' → '.join(reversed(PARTS))}"


@pytest.mark.parametrize("part", ROOMS)
def test_imports_between_rooms_run_down_their_list(part: str) -> None:
    order = [f"{part}.{name}" for name in ROOMS[part].split()]
    found = {room(module) for module in MODULES if module != part and module.startswith(f"{part}.")}
    assert found == set(order), "a room that the list does not know, or one that is gone"
    for module, imported in IMPORTS.items():
        for name in sorted(imported):
            if module.startswith(f"{part}.") and name.startswith(f"{part}.") and room(name) != room(module):
                down = order.index(room(module)) < order.index(room(name))
                assert down, f"{module} imports {name}: imports run {' → '.join(ROOMS[part].split())}"


def test_no_import_runs_in_a_circle_between_files_or_rooms() -> None:
    of_files = {module: imported - {module} for module, imported in IMPORTS.items()}
    of_rooms: dict[str, set[str]] = defaultdict(set)
    for module, imported in IMPORTS.items():
        of_rooms[room(module)] |= {room(name) for name in imported} - {room(module)}
    for graph in (of_files, of_rooms):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as circle:
            pytest.fail(" → ".join(circle.args[1]))


def test_a_rooms_init_only_hands_on_names() -> None:
    for module, path in MODULES.items():
        if path.name != "__init__.py" or module == "models":  # models sets one variable before torch loads OpenMP
            continue
        rest = [
            node
            for node in ast.parse(path.read_text()).body
            if not isinstance(node, ast.Import | ast.ImportFrom)
            and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        ]
        assert not rest, f"{path.relative_to(ROOT)} does more than to hand on names"


def test_no_floor_is_crowded() -> None:
    floors: dict[Path, int] = defaultdict(int)
    for path in (*MODULES.values(), *(ROOT / "benchmarks").rglob("*.py")):
        floors[path.parent] += 1
    crowded = {str(floor.relative_to(ROOT)): count for floor, count in floors.items() if count > MOST_FILES}
    assert not crowded, f"more than {MOST_FILES} files on one floor"


def test_tests_mirror_the_tree() -> None:
    """``tests/streamer/kafka/test_admin.py`` tests ``streamer/kafka/admin.py``; after the module's name may follow a subject."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(ROOT)
        if str(folder) in WHOLE:
            continue
        tested = ROOT / folder.relative_to("tests")
        assert tested.is_dir(), f"{path.relative_to(ROOT)} is in a folder that no part has"
        name = path.stem.removeprefix("test_")
        known = {file.stem for file in tested.glob("*.py")}
        assert any(name == stem or name.startswith(f"{stem}_") for stem in known), (
            f"{path.relative_to(ROOT)} has the name of no file in {tested.relative_to(ROOT)}"
        )


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        (
            "streamer.assigner.process, streamer.indexer.process, streamer.client.publisher, streamer.operations.status",
            set(),
        ),
        ("retriever.client", set()),
        ("sidstream", set()),
        ("retriever.serving.process", {"torch", "transformers"}),
    ],
)
def test_optional_weight_is_not_imported(modules: str, allowed: set[str]) -> None:
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(answer.stdout.split()) <= allowed


# An absolute path below a directory that people or machines build in; the addresses of package registries.
PATH_OF_A_MACHINE = re.compile(
    r"(?<![\w./~$}-])/(?:home|Users|root|work|workspace|workspaces|builds?|mnt|__w|private/var|github/workspace)/[\w.-]+"
    r"|(?<!\w)[A-Za-z]:\\+Users\\+\w+"
)
REGISTRY = re.compile(
    r"--(?:extra-)?index-url|--find-l" + r"inks|files\.python" + r"hosted|(?:index-url|registry)\s*=\s*\S*https?://"
)
# The home and the cache inside an image of ours are no path of a machine.
ALLOWED_PATHS = re.compile(r"/home/(?:sidstream|user|me|you)\b|/root/\.cache$")


def test_no_registry_address_and_no_path_of_a_machine_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():  # removed, and not committed yet
            continue
        text = path.read_text(errors="ignore")
        for pattern in (PATH_OF_A_MACHINE, REGISTRY):
            for match in pattern.finditer(text):
                assert ALLOWED_PATHS.match(match[0]), f"{name} holds {match[0]!r}"


@pytest.mark.parametrize(
    "path",
    ["home/alice/sidstream", "Users/bob/src", "root/project/.venv", "builds/team/sidstream", "workspaces/sidstream", "__w/s/s",
     "mnt/data/bundle", "private/var/folders"],
)  # fmt: skip
@pytest.mark.parametrize("around", ["{}", "directory = '{}'", "--path={}", "file://{}", "({})", "PATH={}:x"])
def test_path_of_a_machine_is_found_wherever_it_stands(path: str, around: str) -> None:
    assert PATH_OF_A_MACHINE.search(around.format(f"/{path}").replace("file:///", "file: /"))


@pytest.mark.parametrize(
    "text",
    ["https://example.org/home/docs", "./build/lib", "~/work/sidstream", "$HOME/work/x", "${ROOT}/build/x", "src/home/page",
     "/srv/sidstream/index", "homework/root/x", "a/root/b", "and/or", "/live", "/homes"],
)  # fmt: skip
def test_address_or_relative_path_is_no_path_of_a_machine(text: str) -> None:
    assert not PATH_OF_A_MACHINE.search(text)


def test_architecture_names_files_that_are_there() -> None:
    """A row may name further files of a folder that it has just named."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = []
    for line in text.splitlines():
        folder = ROOT
        for name in re.findall(r"`([\w/]+\.py)`", line):
            path = ROOT / name if "/" in name else folder / name
            folder = path.parent
            if not path.is_file():
                missing.append(name)
    assert not missing


def test_no_helper_of_the_tests_takes_the_name_of_a_module_of_python() -> None:
    """A script among them has its folder first on the path: `http.py` there would be everybody's `http`."""
    names = {path.stem for path in (ROOT / "tests" / "support").glob("*.py")}
    assert names & sys.stdlib_module_names <= {"__init__"}
