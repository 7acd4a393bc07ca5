"""Both kinds of page in headless Chromium: no console error, all figures, legible on a phone."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report import samples

from paredown import report

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]
PHONE, DESK = 390, 1200
PAGES = {"down": samples.down_doc, "profile": lambda: samples.profile_doc(repeat=17)}
FIGURES = {
    "down": ["waterline-before", "waterline-after", "gap", "pareto", "memory", "agreement"],
    "profile": ["waterline", "gap", "memory", "agreement"],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        why = "no chromium and chromedriver: apt-get install chromium chromium-driver"
        if os.environ.get("PAREDOWN_BROWSER") == "required":
            pytest.fail(why)
        pytest.skip(why)
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = selenium.ChromeService(executable_path=driver)
        running = selenium.Chrome(options=options, service=service)
        try:
            yield running
        finally:
            running.quit()


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    return report.write(PAGES[name](), tmp_path_factory.mktemp("pages") / f"{name}.html")


def open_at(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser")
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_no_console_message_and_nothing_sticks_out(browser: Any, page: Path, width: int) -> None:
    open_at(browser, page, width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_every_figure_is_drawn_with_its_data(browser: Any, page: Path, width: int) -> None:
    open_at(browser, page, width)
    for name in FIGURES[page.stem]:
        found = browser.execute_script(
            """
            const svg = document.getElementById(arguments[0]);
            const box = svg.getBoundingClientRect();
            const marks = [...svg.querySelectorAll('g.data > *')];
            const seen = marks.filter(m => m.getBoundingClientRect().width > 0
                || m.getBoundingClientRect().height > 0);
            const texts = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
            return {width: box.width, height: box.height, marks: marks.length, seen: seen.length,
                    text: texts.length,
                    cut: texts.filter(t => t.left < box.left - 1 || t.right > box.right + 1).length,
                    small: Math.min(...texts.map(t => Math.min(t.width, t.height)))};
            """,
            name,
        )
        assert found["width"] > 250, name
        assert found["height"] > 90, name
        assert found["marks"] >= 3, name
        assert found["seen"] == found["marks"], name
        assert found["cut"] == 0, name
        assert found["text"] >= 4, name


def test_text_stands_out_from_its_ground_in_both_schemes(browser: Any, page: Path) -> None:
    """WCAG's contrast of 4.5 for every colour that text takes, light and dark."""
    for scheme in ("light", "dark"):
        open_at(browser, page, DESK, scheme)
        poor = browser.execute_script(
            """
            const parse = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
            const light = c => { const [r, g, b] = parse(c).map(v => { v /= 255;
                return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const ground = e => { for (; e; e = e.parentElement) {
                const c = getComputedStyle(e).backgroundColor;
                if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
            const out = new Set();
            for (const e of document.querySelectorAll('body *')) {
                const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
                if (!own || e.closest('title, desc, style')) continue;
                const svg = e.closest('svg');
                const ink = getComputedStyle(e)[svg ? 'fill' : 'color'];
                const a = light(ink), b = light(ground(svg ? svg.parentElement : e));
                const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                const name = `${e.tagName}.${e.className.baseVal ?? e.className}`;
                if (ratio < 4.5) out.add(`${name} ${ratio.toFixed(2)}`);
            }
            return [...out];
            """
        )
        assert poor == [], scheme


def test_a_table_that_is_too_wide_scrolls_by_keyboard(browser: Any, page: Path) -> None:
    open_at(browser, page, PHONE)
    found = browser.execute_script(
        """
        return [...document.querySelectorAll('table')].map(t => {
            const box = t.closest('.scroll');
            return box && box.tabIndex === 0 && !!box.getAttribute('aria-label');
        });
        """
    )
    assert found
    assert all(found)


def test_it_prints_with_every_table_open(browser: Any, page: Path) -> None:
    open_at(browser, page, DESK)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shut = (
        "return [...document.querySelectorAll('details:not([open]) table')]"
        ".filter(t => !t.checkVisibility({contentVisibilityAuto: true})).length"
    )
    deadline = time.monotonic() + 10
    while browser.execute_script(shut) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert browser.execute_script(shut) == 0
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert len(pdf) > 20_000
