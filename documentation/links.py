"""Holds a built site together: every link leads to a page and a place that is there, and no page asks anybody else for anything.

    python -m documentation.links build/site

MkDocs looks at the links of the sources; this looks at what was made of them: generated pages, pictures, the theme.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urldefrag, urlsplit

# What a browser fetches by itself, and not only when a person follows it.
_FETCHED: Final = {
    ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("link", "href"), ("video", "src"), ("use", "href"),
}  # fmt: skip
_IN_STYLES: Final = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")
# The theme draws such blocks by a program that it fetches: a picture in a file takes their place.
_MERMAID: Final = "mermaid"
_NOT_FETCHED: Final = {"canonical", "alternate", "prev", "next"}


@dataclass
class _Document(HTMLParser):
    """The places of a page, what it links to and what it fetches."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if _MERMAID in (given.get("class") or "").split():
            self.fetched.append("//mermaid")
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        for name, value in attrs:
            if value is None or name not in ("href", "src"):
                continue
            if (tag, name) in _FETCHED and given.get("rel") not in _NOT_FETCHED:
                self.fetched.append(value)
            self.links.append(value)


def _read(page: Path) -> _Document:
    document = _Document()
    document.feed(page.read_text())
    return document


def faults(site: Path) -> Iterator[str]:
    """A sentence for each link that leads nowhere, and for each thing that comes from elsewhere."""
    pages = {page: _read(page) for page in sorted(site.rglob("*.html"))}
    for page, document in pages.items():
        name = page.relative_to(site)
        if name.name == "404.html":  # its links are those of the site's root
            continue
        for link in document.links:
            if reason := _leads_nowhere(link, page, site, pages):
                yield f"{name}: the link {link!r} {reason}"
        for link in document.fetched:
            if urlsplit(link).netloc:
                yield f"{name}: fetches {link}: a page needs nothing from elsewhere"
    for sheet in (*site.rglob("*.css"), *site.rglob("*.svg")):
        for link in _IN_STYLES.findall(sheet.read_text()):
            yield f"{sheet.relative_to(site)}: fetches {link}: a page needs nothing from elsewhere"


def _leads_nowhere(link: str, page: Path, site: Path, pages: Mapping[Path, _Document]) -> str:
    """Why, or nothing."""
    address, place = urldefrag(link)
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return ""
    path = unquote(parts.path)
    target = (page.parent if not path.startswith("/") else site) / path.lstrip("/") if path else page
    if target.is_dir():
        target = target / "index.html"
    target = target.resolve()
    if not target.is_file():
        return "leads to no file"
    document = pages.get(target)
    if place and document is not None and unquote(place) not in document.ids:
        return "leads to no place of its page"
    return ""


def main(site: Path) -> int:
    found = list(faults(site.resolve()))
    for fault in found:
        print(f"✗ {fault}")
    print(
        f"{site}: {len(found)} faults"
        if found
        else f"{site}: every link leads somewhere, and nothing comes from elsewhere"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
