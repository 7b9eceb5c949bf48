"""The page in a real browser: by the keyboard alone, at two sizes, light and dark, and found accessible by axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from documentation.browser import chromium, sandbox
from support.gateways import Served
from support.patience import PATIENCE_SECONDS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it drives the browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

SIZES = {"wide": (1280, 900), "narrow": (400, 800)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: install chromium to test the page")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=sandbox())
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, filled: Served, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, ready; what the browser complains of fails the test."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = context.new_page()
    complaints: list[str] = []
    # That a query was refused, the browser calls an error too.
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://127.0.0.1:{filled.settings.gateway.port}/")
    page.locator("#health", has_text="ready").wait_for()
    page.locator("#add", has_text="Add a condition").wait_for()
    yield page
    context.close()
    assert [said for said in complaints if "status of 400" not in said] == []


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))


def tab_to(page: Any, name: str) -> None:
    """Presses Tab until the element of this id or label has the focus."""
    for _ in range(40):
        if focused(page) == name:
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{name} is not reached by Tab")


@pytest.mark.parametrize("opened", [("wide", "light"), ("narrow", "dark")], indirect=True, ids="-".join)
def test_query_with_a_condition_and_explanations_is_asked_by_keyboard_alone(opened: Any) -> None:
    page = opened
    tab_to(page, "text")
    page.keyboard.type("thing 7")
    tab_to(page, "limit")
    page.keyboard.press("Control+A")
    page.keyboard.type("5")
    tab_to(page, "explain")
    page.keyboard.press("Space")
    tab_to(page, "why")
    page.keyboard.type("never")
    page.keyboard.press("Enter")
    page.locator("#told", has_text="5 items in").wait_for()
    assert page.locator("#found tbody tr").count() == 5
    assert "Why not never: not indexed" in page.locator("#why_not").inner_text()
    assert "in all, seen from here" in page.locator("#milliseconds").inner_text()
    page.locator("#found summary").first.focus()
    page.keyboard.press("Enter")
    assert "log P of the SID" in page.locator("#found").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
    assert_accessible(page)

    page.locator("#add").focus()
    page.keyboard.press("Enter")
    assert focused(page) == "attribute of condition 1"
    page.keyboard.press("Enter")  # the condition has no value yet: nothing is asked
    tab_to(page, "value of condition 1")
    page.keyboard.press("Enter")
    page.locator("#fault", has_text="value of condition 1 is empty").wait_for()
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    page.locator("#told", has_text="NothingEligible").wait_for()
    assert_accessible(page)
    tab_to(page, "remove condition 1")
    page.keyboard.press("Enter")
    assert focused(page) == "add"
    page.locator("#slate").focus()
    page.keyboard.type("colour:2")
    page.keyboard.press("Enter")
    page.locator("#fault", has_text="colour").wait_for()
    assert_accessible(page)


@pytest.mark.parametrize("opened", [("wide", "dark"), ("narrow", "light")], indirect=True, ids="-".join)
def test_page_as_it_opens_is_accessible_and_shows_what_the_monitor_has_told(opened: Any) -> None:
    assert opened.locator("#firing").inner_text() == "0"
    assert "The monitor has told nothing yet." in opened.locator("#layers").inner_text()
    assert "curl -X POST" in opened.locator("#request").text_content()
    assert_accessible(opened)


def assert_accessible(page: Any) -> None:
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
