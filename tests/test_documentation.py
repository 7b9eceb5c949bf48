"""The documentation site: it is built without a warning, its links lead somewhere, and its reference has all of the code."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
from markdown_it import MarkdownIt
from prometheus_client import REGISTRY

from documentation import command_line_page, errors_page, http_page, links, metrics_page, recording, settings_page
from documentation.hooks import ELSEWHERE
from streamer.settings import load_settings
from support.paths import ROOT

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make docs`` builds."""
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(built)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


def test_every_link_of_the_site_leads_somewhere_and_nothing_comes_from_elsewhere(site: Path) -> None:
    assert list(links.faults(site)) == []
    assert {f"{page.removesuffix('.md')}/index.html" for page in ELSEWHERE} <= {
        str(path.relative_to(site)) for path in site.rglob("*.html")
    }


def test_a_setting_a_command_and_a_page_that_are_named_become_links(site: Path) -> None:
    page = (site / "publishing" / "index.html").read_text()
    assert 'href="../reference/command-line/#sidstream-topics-repartition"' in page
    assert 'href="../partitions/">More partitions, and items in the wrong one</a>' in page
    assert (
        'href="../reference/settings/#retriever.maximum_wait_seconds"' in (site / "asking" / "index.html").read_text()
    )


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ('<a href="gone/">x</a>', "leads to no file"),
        ('<a href="#gone">x</a>', "leads to no place"),
        ('<a href="other.html#gone">x</a>', "leads to no place"),
        ('<script src="https://cdn.example.org/x.js"></script>', "nothing from elsewhere"),
        ('<link rel="stylesheet" href="//fonts.example.org/x.css">', "nothing from elsewhere"),
        ('<pre class="mermaid">graph</pre>', "nothing from elsewhere"),
        ('<a href="https://example.org/">x</a><a href="other.html#here">y</a><img src="x.svg">', ""),
    ],
)
def test_link_that_leads_nowhere_or_to_a_third_party_is_found(tmp_path: Path, html: str, said: str) -> None:
    (tmp_path / "page.html").write_text(html)
    (tmp_path / "other.html").write_text('<p id="here">')
    (tmp_path / "x.svg").write_text("<svg/>")
    found = list(links.faults(tmp_path))
    assert [fault for fault in found if said and said in fault] == found
    assert bool(found) == bool(said)


def test_every_setting_is_in_the_reference_and_may_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    page, names = settings_page.settings_page(), settings_page.setting_names()
    assert len(names) > 100
    for name in names:
        row = next(line for line in page.splitlines() if f'<a id="{name}"></a>' in line)
        assert row.split("|")[-2].strip(), f"{name} does not say what it means: give it a description"
    monkeypatch.setenv("SIDSTREAM_RETRIEVER__BEAMS", "7")  # the page's rule for variables
    assert load_settings().retriever.beams == 7
    row = next(line for line in page.splitlines() if 'id="retriever.beams"' in line)
    assert "whole number (≥\u00a01) | `50` |" in row


def test_every_command_and_option_is_in_the_reference() -> None:
    page = command_line_page.command_line_page()
    assert {"sidstream demo", "sidstream dlq replay", "sidstream topics create"} <= command_line_page.command_names()
    for _, name, command in command_line_page.commands():
        assert f"### {name} {{ #{name.replace(' ', '-')} }}" in page
        for option in command.params:
            if option.opts[0].startswith("--") and option.name != "help":
                assert f'<a id="{name.replace(" ", "-")}{option.opts[0]}"></a>' in page, (name, option.opts)


def test_help_texts_arrive_on_the_site_as_they_are_written(site: Path) -> None:
    page = (site / "reference" / "command-line" / "index.html").read_text()
    shown = " ".join(unescape(re.sub(r"<[^>]+>", "", page)).split())
    texts = [option.help for _, _, command in command_line_page.commands() for option in command.params if option.help]
    assert any("<" in text for text in texts)
    for text in texts:
        if "docs/" not in text:  # which becomes a link with the page's title
            assert " ".join(text.replace("`", "").split()) in shown


def test_every_operation_and_status_of_the_gateway_is_in_the_reference() -> None:
    page = http_page.http_page()
    found = list(http_page.operations())
    assert len(found) > 8
    for method, path, operation in found:
        section = page.split(f"## {method} {path}\n")[1].split("\n## ")[0]
        assert all(f"\n| {status} | " in section for status in operation["responses"])


def test_every_metric_of_ours_is_in_the_reference_once() -> None:
    page = metrics_page.metrics_page()  # imports what counts
    ours = {name for name in REGISTRY._names_to_collectors if name.startswith("sidstream_")}
    bases = {re.sub(r"_(?:total|created|bucket|sum|count|info)$", "", name) for name in ours}
    named = re.findall(r'<a id="(\w+)"', page)
    assert len(named) == len(set(named)) > 30
    assert bases <= {re.sub(r"_(?:total|created|bucket|sum|count|info)$", "", name) for name in named}


def test_every_kind_of_error_that_the_pages_name_is_in_the_reference() -> None:
    kinds = {one.kind for one in errors_page.raised()}
    assert {"WrongDimension", "IndexFull", "NothingEligible", "DeadlinePassed", "NotAnsweredYet"} <= kinds
    text = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("filters", "security", "gateway", "explain"))
    named = set(re.findall(r"(?:error|dead letter)s? `([A-Z]\w+)`", text))
    assert len(named) > 3
    assert named <= kinds


class _Blocks(HTMLParser):
    """How often each kind of block occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] = self.found.get(tag, 0) + 1


def blocks(html: str) -> dict[str, int]:
    """A loose list has paragraphs in one of the two and none in the other: those are not counted."""
    parser = _Blocks()
    parser.feed(html)
    return {
        tag: parser.found.get(tag, 0) for tag in ("ul", "ol", "li", "table", "tr", "td", "pre", "h1", "h2", "h3", "a")
    }


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "ARCHITECTURE.md"], ids=lambda path: path.name)
def test_page_has_the_same_blocks_on_the_site_as_where_git_is_hosted(page: Path) -> None:
    """The site's Markdown wants four spaces before what belongs to a list and an empty line before one; CommonMark does not."""
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(), flags=re.DOTALL)
    hosted = MarkdownIt("commonmark").enable("table").render(text)
    ours = markdown.markdown(
        text, extensions=["tables", "sane_lists", "pymdownx.superfences", "attr_list", "md_in_html"]
    )
    assert blocks(ours) == blocks(hosted)


def conventions() -> list[tuple[str, str, str]]:
    """(convention, ours, tests) of each row of the table of conventions."""
    rows = []
    for line in (ROOT / "docs" / "conventions.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[0] != "convention" and not set(cells[0]) <= set(":-"):
            rows.append((cells[0], cells[1], cells[3]))
    return rows


def test_every_convention_that_is_ticked_names_a_test_that_there_is() -> None:
    rows = conventions()
    assert len(rows) > 40
    for convention, ours, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named or not ours.startswith("✓"), f"{convention} is ticked, and no test holds it"
        assert ours.startswith(("✓", "partly", "no", "not yet")), f"{convention}: is it ours?"
        for path, name in named:
            assert (ROOT / path).is_file(), f"{convention}: there is no {path}"
            functions = {
                node.name
                for node in ast.walk(ast.parse((ROOT / path).read_text()))
                if isinstance(node, ast.FunctionDef)
            }
            assert name in functions, f"{convention}: {path} has no {name}"


def test_recording_waits_in_few_pictures_and_stays_where_there_is_something_to_read() -> None:
    waiting = [recording.Output(second / 10, "\r 10 %") for second in range(300)]
    story = [recording.Output(30.0 + second, "one\ntwo\n") for second in range(3)]
    film = recording.played([*waiting, *story])
    assert len(film) < 20
    assert "".join(one.text for one in film).count("one") == 3
    stays = [after.seconds - one.seconds for one, after in itertools.pairwise(film)]
    told = [stay for one, stay in zip(film, stays, strict=False) if "one" in one.text]
    assert min(told) > 2 * max(stay for one, stay in zip(film, stays, strict=False) if "one" not in one.text)
    assert recording.new_lines("a\nb\n\x1b[2Aa\nb\n") == 2
