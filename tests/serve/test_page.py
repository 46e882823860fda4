"""The page in a real browser; skipped where there is no Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Service

playwright = pytest.importorskip("playwright.sync_api", reason="playwright comes with the extra test")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    # asyncio's sockets of the browser's driver, which playwright itself leaves to the collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    opened = browser.new_page()
    problems: list[str] = []
    opened.on("console", lambda line: problems.append(line.text))
    asked: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(service.url)
    playwright.expect(opened.locator("#model")).to_contain_text("40 users, 60 items")
    yield opened
    opened.close()
    assert not problems
    assert all(url.startswith((service.url, "data:")) for url in asked)


def listed(page: Any, name: str = "list") -> list[str]:
    return page.locator(f"#{name} > li .name" if name == "list" else f"#{name} > li").all_inner_texts()


def test_a_known_user_by_keyboard_alone(page: Any, service: Service) -> None:
    page.locator("#user").focus()
    page.keyboard.type("u3")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#about")).to_contain_text("10 items from the model")
    answer = service.post("/v1/recommend", {"user": "u3", "titles": True}).json()
    assert listed(page) == answer["titles"]
    assert (
        listed(page, "history")
        == service.post("/v1/history", {"user": "u3", "titles": True}).json()["titles"]
    )
    assert page.inner_text("#history-title") == f"History: {len(listed(page, 'history'))}"
    for _ in range(40):  # to the first "Why?"
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Why?":
            break
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#list .why").first).to_contain_text("Because of Title of")


def test_an_unknown_user_sees_that_the_list_is_the_popular_one(page: Any) -> None:
    page.fill("#user", "nobody")
    page.click("button[type=submit]")
    playwright.expect(page.locator("#about")).to_contain_text("by popularity")
    assert len(listed(page)) == 10
    assert all(count.isdigit() for count in page.locator("#list .score").all_inner_texts())
    assert page.locator("#list button").count() == 0


def test_a_history_is_ticked_and_answered(page: Any) -> None:
    page.check("input[value=history]")
    page.fill("#find", "of i5")
    playwright.expect(page.locator("#found li")).to_have_count(11)
    for place in (0, 3):
        page.locator("#found input").nth(place).check()
    page.click("button[type=submit]")
    playwright.expect(page.locator("#about")).to_contain_text("from the history")
    assert len(listed(page, "history")) == 2
    assert not set(listed(page)) & set(listed(page, "history"))


def test_a_filter_is_kept_and_a_vain_one_is_an_error(page: Any) -> None:
    page.fill("#user", "u3")
    page.fill("#only", "of i5")
    page.click("button[type=submit]")
    playwright.expect(page.locator("#about")).to_contain_text("from the model")
    assert listed(page)
    assert all("of i5" in name for name in listed(page))
    page.fill("#only", "nothing like it")
    page.click("button[type=submit]")
    playwright.expect(page.locator("#message")).to_contain_text("No item has")
    assert not listed(page)


def test_what_a_screen_reader_needs_is_there(page: Any) -> None:
    for name in ("User id", "Length", "Only items with"):
        assert page.get_by_label(name).is_visible()
    assert page.locator("html[lang]").count() == 1
    assert page.locator("[role=alert], [role=status]").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(
    browser: Any, service: Service, tmp_path: Path, scheme: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(service.url)
    page.fill("#user", "u3")
    page.click("button[type=submit]")
    playwright.expect(page.locator("#about")).to_contain_text("from the model")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    path = Path(os.environ.get("NCF_SCREENSHOTS", tmp_path)) / f"{scheme}-{width}.png"
    page.screenshot(path=path, full_page=True)
    page.close()
    assert path.stat().st_size > 5000
