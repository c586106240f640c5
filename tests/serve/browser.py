"""Chromium for the tests of the page: Debian's, else the build that Playwright installs."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips where there is none, unless ``DMPT_TEST_BROWSER`` is set, as CI does."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(found).exists():
            missing = "no Chromium; apt-get install chromium, or python -m playwright install chromium"
            if os.environ.get("DMPT_TEST_BROWSER"):
                pytest.fail(missing)
            pytest.skip(missing)
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def quiet(page: Page, base: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """What should not happen on a page, as it happens: errors, and requests to somebody else."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: wrong.append(said.text) if not any(a in said.text for a in allowed) else None)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((base, "blob:", "data:")) else wrong.append(f"asked {asked.url}"),
    )
    return wrong
