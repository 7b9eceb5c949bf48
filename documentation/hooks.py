"""What MkDocs calls while it builds the site: pages that are made from the code, pages that lie elsewhere, and links.

What must hold: a page under ``docs/`` reads well where it lies, on any host of git. So a page names another by its path
(``docs/filters.md``) as code and messages do, and a setting or a command by its name in code; here they become links.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from posixpath import normpath, relpath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # MkDocs loads this file by its path
    sys.path.insert(0, str(ROOT))

from documentation import command_line_page, errors_page, http_page, metrics_page, schemas_page, settings_page  # noqa: E402

# Pages that lie beside the code, where whoever opens the project looks for them.
ELSEWHERE: Final = {"architecture.md": "ARCHITECTURE.md", "contributing.md": "CONTRIBUTING.md"}
_FENCE: Final = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", re.MULTILINE | re.DOTALL)
# A link or a piece of code; what is left between them is text.
_SPAN: Final = re.compile(r"(!?\[[^\]]*\]\([^)]*\)|`[^`\n]+`)")
_PATH: Final = re.compile(r"\bdocs/((?:[\w-]+/)*[\w.-]+\.(?:md|json)|schemas/?(?![\w/])|study/?(?![\w/]))(#[\w-]+)?")
_FOLDERS: Final = {"schemas": schemas_page.PAGE, "study": "study/README.md"}
# A test's name is a sentence.
_TEST: Final = re.compile(r"(tests/[\w/]+\.py)::test_(\w+)")
_LINK: Final = re.compile(r"\[`?[\w./-]+\.md`?\]\(([\w./-]+\.md)(#[\w-]+)?\)")
_HEADING: Final = re.compile(r"^#{1,6} ")


@cache
def generated() -> dict[str, str]:
    """Path → content of every page and file that is made from the code."""
    return {
        settings_page.PAGE: settings_page.settings_page(),
        command_line_page.PAGE: command_line_page.command_line_page(),
        metrics_page.PAGE: metrics_page.metrics_page(),
        errors_page.PAGE: errors_page.errors_page(),
        http_page.PAGE: http_page.http_page(),
        http_page.DOCUMENT: http_page.openapi_file(),
        schemas_page.PAGE: schemas_page.schemas_page(),
    }


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie under ``docs/``."""
    for path, content in generated().items():
        files.append(File.generated(config, path, content=content))
    for path, source in ELSEWHERE.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, path, content=text, inclusion=InclusionLevel.INCLUDED))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links of what a page names."""
    links, headings = _Links(page.file.src_uri, files), _Headings()
    parts = _FENCE.split(markdown)
    return "".join(part if number % 2 else links.in_text(headings.in_text(part)) for number, part in enumerate(parts))


class _Headings:
    """A page has one heading of the first level, as its table of contents ends at a second one: what stands there goes down."""

    def __init__(self) -> None:
        self._first = True
        self._down = ""

    def in_text(self, text: str) -> str:
        return re.sub(r"^(#{1,5}) ", self._heading, text, flags=re.MULTILINE)

    def _heading(self, match: re.Match[str]) -> str:
        if match[1] == "#":
            self._down = "" if self._first else "#"
            self._first = False
        return f"{self._down}{match[1]} "


class _Links:
    """Finds what a page names. A setting or a command becomes a link where it is named first in a section."""

    def __init__(self, page: str, files: Files) -> None:
        self._page = page
        self._files = files
        self._named: set[str] = set()

    def in_text(self, text: str) -> str:
        lines = []
        for line in text.split("\n"):
            if _HEADING.match(line):
                self._named.clear()
                lines.append(line)
                continue
            lines.append("".join(self._of_span(part) for part in _SPAN.split(line)))
        return "\n".join(lines)

    def _of_span(self, part: str) -> str:
        if part.startswith(("[", "![")):
            return self._of_link(part)
        if not part.startswith("`"):
            return _PATH.sub(lambda match: self._to_page(match, match[0]), part)
        said = part.strip("`")
        if match := _TEST.fullmatch(said):
            sentence = match[2].replace("_", " ")
            return f'<span title="{said}">{sentence}</span><br><small>{match[1]}</small>'
        if match := _PATH.fullmatch(said):
            return self._to_page(match, part)
        for page, source in ELSEWHERE.items():
            if said == source and page != self._page:
                return f"[{part}]({self._relative(page)})"
        if said in settings_page.setting_names() and "." in said:
            return self._once(part, said, settings_page.PAGE, said)
        command = " ".join(said.split(" ")[:3])
        for name in (command, command.rpartition(" ")[0]):
            if name in command_line_page.command_names():
                return self._once(part, name, command_line_page.PAGE, command_line_page.command_anchor(name))
        return part

    def _of_link(self, part: str) -> str:
        """A link that is called as its file is called as the page."""
        match = _LINK.fullmatch(part)
        if match is None:
            return part
        file = self._files.get_file_from_path(normpath(f"{Path(self._page).parent}/{match[1]}"))
        return part if file is None else f"[{_title(file)}]({match[1]}{match[2] or ''})"

    def _to_page(self, match: re.Match[str], otherwise: str) -> str:
        path = _FOLDERS.get(match[1].rstrip("/"), match[1])
        file = self._files.get_file_from_path(path)
        if file is None or path == self._page:
            return otherwise
        name = _title(file) if path.endswith(".md") else path.rpartition("/")[2]
        return f"[{name}]({self._relative(path)}{match[2] or ''})"

    def _once(self, text: str, name: str, page: str, place: str) -> str:
        if name in self._named or page == self._page:
            return text
        self._named.add(name)
        return f"[{text}]({self._relative(page)}#{place})"

    def _relative(self, path: str) -> str:
        return relpath(path, str(Path(self._page).parent))


def _title(file: File) -> str:
    """The first heading of a page."""
    heading = next((line for line in file.content_string.splitlines() if line.startswith("# ")), "")
    return heading.removeprefix("# ").partition(" {")[0].strip() or file.src_uri
