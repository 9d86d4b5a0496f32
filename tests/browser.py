"""A headless Chromium, for pages that tests open from files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["DESKTOP", "PHONE", "Browser", "asked_for", "chromium", "fits", "resize"]

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
DESKTOP, PHONE = 1280, 390
"""Widths in pixels."""

Browser = Any
"""A selenium.webdriver.Chrome, which has no types of its own for much of it."""


def chromium(folder: Path) -> Iterator[Browser]:
    """For a fixture: a browser with its profile in a folder, which ends with it; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no chromium, or no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=service.Service(driver))
    yield chrome
    chrome.quit()


def resize(browser: Browser, width: int) -> None:
    """Makes the window as wide as a screen, or as a phone."""
    window = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)


def fits(browser: Browser, width: int) -> bool:
    """Whether all of the page is within a window that is so wide: one for phones grows with what is not, another one
    gets a bar to scroll by."""
    script = "const root = document.documentElement; return [innerWidth, root.scrollWidth - root.clientWidth]"
    return bool(browser.execute_script(script) == [width, 0])


def asked_for(browser: Browser) -> set[str]:
    """What was requested since the last call, but for what stands in a page itself."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"}
    return {url for url in asked if not url.startswith("data:")}
