"""Pages of ours in Debian's Chromium, without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser; skips the test where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(
    browser: Browser, url: str, *, seen: str = "#model option[value]", **options: Any
) -> Iterator[Page]:
    """The page at an address, which must ask that server alone and have no error of its own.

    seen: what is there when the page can be used; by default, the model's name.
    """
    context = browser.new_context(**{"locale": "en-US", "color_scheme": "light"} | options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Policy" in said.text else None)
    page.goto(url)
    page.wait_for_selector(seen, state="attached")
    yield page
    context.close()
    assert not wrong
    assert {urlsplit(each).netloc for each in asked if not each.startswith("data:")} == {
        urlsplit(url).netloc
    }
