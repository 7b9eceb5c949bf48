"""The page: whole, self-contained, the same for the same result, and nothing that a stranger wrote is markup in it."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from models.errors import SidstreamError
from retriever.evaluation.evaluation import Evaluation, SystemFigures
from retriever.evaluation.metrics import METRICS
from retriever.evaluation.report.page import require_writable, write_json, write_page

pytest.importorskip("matplotlib")

HOSTILE = "brand=<script>alert(1)</script>$x_1$&\x1b[2J"
VOID = {"meta", "br", "path", "use"}


def result(groups: tuple[str, ...] = ("all", "new", HOSTILE)) -> Evaluation:
    figures = {
        group: {f"{metric}@{k}": (0.3, 0.35 if group == "new" else 0.2, 0.4) for metric in METRICS for k in (1, 10)}
        for group in groups
    }
    product = SystemFigures(name="sidstream", figures=figures, coverage={1: 0.1, 10: 0.5}, unanswered=0.25)
    reference = msgspec.structs.replace(product, name="popularity", differences=figures, settings="<b>bold</b>")
    return Evaluation(
        source="<i>examples</i>", training="histories", cases=dict.fromkeys(groups, 4), groups={name: name for name in groups},
        at=[1, 10], main=10, systems=[product, reference], unanswered={"NothingFound": 1}, found_by={"model": 0.5, "dense": 0.5},
        remarks=["1 item <img>"], about={"model": "abc"}, seconds=1.0, resamples=100, level=0.95, seed=0,
    )  # fmt: skip


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_page_is_whole_has_its_plots_and_no_markup_of_strangers(tmp_path: Path) -> None:
    write_page(result(), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<svg") == 3
    assert {"script", "img", "i"} & parser.seen == set()
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "http" not in page.replace("http://www.w3.org/", "")
    write_page(result(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_page_of_one_group_and_no_reference_has_what_there_is(tmp_path: Path) -> None:
    alone = msgspec.structs.replace(result(("all",)), systems=result(("all",)).systems[:1], found_by={})
    write_page(alone, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<svg") == 1


def test_json_reads_back_equal_and_a_figure_without_cases_is_null(tmp_path: Path) -> None:
    write_json(result(), tmp_path / "deep" / "result.json")
    assert msgspec.json.decode((tmp_path / "deep" / "result.json").read_bytes(), type=Evaluation) == result()
    nothing = (float("nan"),) * 3
    system = msgspec.structs.replace(result().systems[0], figures={"all": {"recall@1": nothing}})
    write_json(msgspec.structs.replace(result(), systems=[system]), tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text
    assert "null" in text


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SidstreamError, match=r"result.json cannot be written"):
        write_json(result(), tmp_path / "file" / "result.json")


def test_page_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_writable(tmp_path / "result.json", tmp_path / "page.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    require_writable(tmp_path / "result.json", None)
    with pytest.raises(SidstreamError, match="--page draws with Matplotlib"):
        require_writable(None, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
