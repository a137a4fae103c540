"""The pages in a real browser: nothing breaks, nothing is asked for outside, nothing is cut off."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import make_pictures, silent, small_recipe
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from test_side_by_side import write_seed
from written_run import write_run

from candid.audit import audit
from candid.report.audit_page import write_audit_page
from candid.report.comparison_page import write_comparison
from candid.report.side_by_side import read_side_by_side
from candid.report.writing import write_report

DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(DRIVER is None, reason="no chromedriver here: install chromium and chromium-driver")

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    copy = Path(shutil.copytree(run, folder / "run"))
    many = write_run(folder / "many", tuple(f"class number {k}" for k in range(120)), num_images=480)
    write_report(many)
    seeds = [write_seed(folder / name, seed, wrong) for name, seed, wrong in (("zero", 0, (0, 1)), ("one", 1, (2,)))]
    shapes = make_pictures(folder / "shapes", per_class=12)
    suspects = audit(small_recipe(shapes, training__epochs=1), folder / "audit", 2, reporter=silent())
    return {
        "report": write_report(copy),
        "many classes": many / "report.html",
        "comparison": write_comparison(folder / "comparison.html", read_side_by_side([*seeds, many, copy])),
        "audit": write_audit_page(suspects, folder / "audit", small_recipe(shapes)),
    }


@dataclass
class Browser:
    """Chromium, and what it wrote down about the page that it shows."""

    driver: webdriver.Chrome

    def show(self, page: Path, width: int, theme: str) -> None:
        """Open a page in a window of so many px; its theme is light or dark."""
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for log in ("performance", "browser"):
            self.driver.get_log(log)
        self.driver.get(page.as_uri())

    def print(self) -> bytes:
        """The page as PDF, as wide as paper; Chromium's printer is sometimes not ready at once."""
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        for _ in range(2):
            with suppress(WebDriverException):
                return base64.b64decode(self._print())
        return base64.b64decode(self._print())

    def _print(self) -> str:
        return self.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]

    def requests(self) -> list[str]:
        """All addresses that the page asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def ask(self, script: str) -> object:
        """What a piece of JavaScript gives; the page itself may have none."""
        return self.driver.execute_script(f"return {script}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = Options()
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield Browser(driver)
    driver.quit()


KINDS = ("report", "many classes", "comparison", "audit")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_in_every_window(kind: str, width: int, theme: str, pages: dict[str, Path], browser: Browser):
    browser.show(pages[kind], width, theme)
    assert browser.driver.get_log("browser") == []
    asked = browser.requests()
    assert asked[0] == pages[kind].as_uri()
    assert {address.partition(":")[0] for address in asked[1:]} <= {"data"}
    assert browser.ask("document.documentElement.scrollWidth") == width  # nothing sticks out at the side
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    assert browser.ask(broken) == []
    assert browser.ask("document.images.length > 0")
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[theme]
    links = "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"
    assert [link for link in browser.ask(links) if not browser.ask(f"document.querySelector({link!r})")] == []  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["many classes", "comparison"])
def test_what_is_folded_opens_by_the_keyboard(kind: str, pages: dict[str, Path], browser: Browser):
    browser.show(pages[kind], 1280, "light")
    assert browser.ask("document.querySelectorAll('details[open]').length") == 0
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    for _ in range(5):
        if browser.ask("document.activeElement.tagName") == "SUMMARY":
            break
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.ask("document.querySelectorAll('details[open]').length") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_prints(kind: str, pages: dict[str, Path], browser: Browser):
    browser.show(pages[kind], 1280, "light")
    document = browser.print()
    assert document.startswith(b"%PDF")
    assert document.count(b"/Type /Page\n") + document.count(b"/Type /Page ") >= 1


def test_pages_are_small(pages: dict[str, Path]):
    assert {kind: page.stat().st_size < 5_000_000 for kind, page in pages.items()} == dict.fromkeys(KINDS, True)
