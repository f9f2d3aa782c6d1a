"""A real Chromium for the tests of pages; without it they are left out."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IN_BROWSER = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs chromium and chromedriver, such as Debian's"
    ),
]
ARGUMENTS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync"""


def browsing(folder: Path, *arguments: str) -> Iterator[Chrome]:
    """A browser without a window, as long as its fixture lasts."""
    options = Options()
    options.binary_location = str(BROWSER)
    for argument in (*ARGUMENTS.split(), f"--user-data-dir={folder}", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With the driver's path given, selenium looks for none.
    browser = Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    yield browser
    browser.quit()
