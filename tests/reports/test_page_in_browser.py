"""The report's page in a real browser: sorting, popovers, zooming, widths, colours, requests."""

import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import IN_BROWSER, browsing
from matplotlib.figure import Figure
from selenium.webdriver import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from reports.document import Claim, Document, Listing, Picture, RunLink
from reports.layouts import detection_table
from reports.page import to_html
from reports.published import beside, published_table

pytestmark = IN_BROWSER
WIDE, NARROW = 1280, 400


def document() -> Document:
    """Ours beside the paper's: gaps, means, two datasets, and values that the rounding ties."""
    rng = np.random.default_rng(3)
    rows = [
        (f"r{dataset}{loss}{seed}", seed, dataset, "unsupervised", loss, ood, score,
         round(rng.uniform(0.7, 0.99), 2), f"auroc/{ood}/{score}")
        for dataset, ood in itertools.product(("cifar10", "cifar100"), ("svhn", "lsun"))
        for loss in ("none", "binary")
        for score in ("raw", "last_scale", "diff")
        for seed in range(2)
        if (dataset, ood, score) != ("cifar100", "lsun", "diff")
    ]  # fmt: skip
    columns = ["run_id", "seed", "dataset", "setting", "outlier_loss", "ood", "score", "auroc",
               "metric"]  # fmt: skip
    figure, image = Figure(figsize=(4, 2)), io.BytesIO()
    figure.subplots().plot([0, 1])
    figure.savefig(image, format="png")
    return Document(
        title="Report",
        notes=("Two datasets.",),
        claims=tuple(
            Claim("So it is.", verdict, "99 %")
            for verdict in ("holds", "does not hold", "undecided", "not measured")
        ),
        paper=("A paper", "https://arxiv.org/abs/2006.10848"),
        ran=(Listing("Trainings", "Of runs.", ("Training", "Settings"), (("a", "b " * 50),)),),
        glossary={"Raw": "It is raw."},
        tables={
            "detection": beside(detection_table(pd.DataFrame(rows, columns=columns)), ["S2"]),
            "S1": published_table("S1"),
        },
        pictures=(Picture("line", "A line", "Rising.", image.getvalue(), (rows[0][0],)),),
        runs={row[0]: RunLink(row[0], f"http://127.0.0.1:5000/#/runs/{row[0]}") for row in rows},
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    yield from browsing(tmp_path_factory.mktemp("browser"))


@pytest.fixture
def page(driver, tmp_path) -> Path:
    """The report, opened wide and light; the logs begin with it."""
    file = tmp_path / "report.html"
    file.write_text(to_html(document()), encoding="utf-8")
    # Away from the browser's own first page, which asks for icons of its own.
    driver.get("about:blank")
    appear(driver, WIDE, "light")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(file.as_uri())
    return file


def appear(driver, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def find(driver, selector: str, place: int = 0):
    return driver.find_elements(By.CSS_SELECTOR, selector)[place]


def press(driver, key: str) -> None:
    ActionChains(driver).send_keys(key).perform()


def table_rows(driver) -> list[list[str]]:
    """Of the first table: the labels and then the values to sort by, row by row."""
    return driver.execute_script("""
        return [...document.querySelector("table").tBodies[0].rows].map((row) =>
            [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent))""")


def in_order(rows: list[list[str]], column: int, descending: bool) -> list[list[str]]:
    """By Python's sort, which leaves equal rows in their order; empty last."""
    key = str.casefold if column < 2 else float
    full = [row for row in rows if row[column]]
    full.sort(key=lambda row: key(row[column]), reverse=descending)
    return full + [row for row in rows if not row[column]]


def test_nothing_is_requested_and_the_console_is_silent(driver, page):
    find(driver, "th button", 2).click()
    find(driver, "td button").click()
    press(driver, Keys.ESCAPE)
    find(driver, "figure button").click()
    asked = [
        event["params"]["request"]["url"]
        for entry in driver.get_log("performance")
        if (event := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    outside = [url for url in asked if url != page.as_uri() and not url.startswith("data:")]
    assert page.as_uri() in asked and not outside
    assert driver.get_log("browser") == []


def test_the_policy_stops_requests_and_foreign_scripts(driver, page):
    stopped = driver.execute_async_script("""
        const done = arguments[0], stopped = [];
        document.addEventListener("securitypolicyviolation", (event) => {
            stopped.push(event.effectiveDirective);
            if (stopped.length === 2) done(stopped.sort());
        });
        const [image, script] = ["img", "script"].map((tag) => document.createElement(tag));
        image.src = "http://127.0.0.1:9/x.png";
        script.textContent = "document.title = 'taken over'";
        document.body.append(image, script);""")
    assert stopped == ["img-src", "script-src-elem"]
    assert driver.title == "Report"


def test_every_column_sorts_up_down_and_back(driver, page):
    first = table_rows(driver)
    headers = driver.find_elements(By.CSS_SELECTOR, "#table-1 thead th:has(> button)")
    assert len(headers) == len(first[0]) == 24
    # Differences have either sign.
    assert {row[8][:1] for row in first} >= {"-", "0"}
    changed = 0
    for column, header in enumerate(headers):
        for order, expected in (
            ("ascending", in_order(first, column, descending=False)),
            ("descending", in_order(first, column, descending=True)),
            (None, first),
        ):
            # By key: Enter on the header's button.
            header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
            assert table_rows(driver) == expected
            assert header.get_attribute("aria-sort") == order
            changed += expected != first
    # Columns of gaps only stay as they are.
    assert changed > 24


def test_another_column_starts_anew(driver, page):
    first = table_rows(driver)
    for column in (8, 3):
        find(driver, "#table-1 th button", column).click()
        assert table_rows(driver) == in_order(first, column, descending=False)
    assert len(driver.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def test_sorted_rows_all_show_their_dataset(driver, page):
    def opacities() -> set[str]:
        labels = driver.find_elements(By.CSS_SELECTOR, "table .again span")
        return {label.value_of_css_property("opacity") for label in labels}

    button = find(driver, "th button", 2)
    assert opacities() == {"0"}
    seen = []
    for _ in range(3):
        button.click()
        seen.append(opacities())
    assert seen == [{"1"}, {"1"}, {"0"}]


@pytest.mark.parametrize("width", (WIDE, NARROW))
def test_a_number_opens_its_runs(driver, page, width):
    appear(driver, width, "light")
    button = find(driver, "td button")
    popover = find(driver, f"[id='{button.get_attribute('popovertarget')}']")
    assert not popover.is_displayed()
    button.send_keys(Keys.ENTER)
    assert popover.is_displayed()
    links = popover.find_elements(By.TAG_NAME, "a")
    assert [link.text for link in links] == ["rcifar10none0", "rcifar10none1"]
    # Below or above its number, wholly in view.
    place, number = popover.rect, button.rect
    below = place["y"] - number["y"] - number["height"]
    above = number["y"] - place["y"] - place["height"]
    assert 0 <= max(below, above) < 20
    assert place["x"] >= 0 and place["x"] + place["width"] <= width
    press(driver, Keys.ESCAPE)
    assert not popover.is_displayed()


def scale(driver) -> float:
    """How much larger than fitting the figure is."""
    return driver.execute_script("""
        const image = document.querySelector("dialog img");
        return new DOMMatrix(getComputedStyle(image).transform).a""")


def sides(driver, selector: str) -> dict[str, float]:
    """Where an element is in the window, as painted."""
    return driver.execute_script(
        "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector
    )


def test_a_figure_opens_zooms_and_closes(driver, page):
    dialog, opener = find(driver, "dialog"), find(driver, "figure button")
    assert not dialog.is_displayed()
    opener.send_keys(Keys.ENTER)
    assert dialog.is_displayed() and scale(driver) == 1
    # 400 pixels wide, it grows to the window.
    width = sides(driver, "dialog img")["width"]
    assert find(driver, "dialog img").get_property("naturalWidth") == 400 and width > 1000
    find(driver, "dialog button[value=in]").click()
    press(driver, "+")
    assert scale(driver) == pytest.approx(1.25**2)
    assert sides(driver, "dialog img")["width"] == pytest.approx(1.25**2 * width, rel=1e-3)
    find(driver, "dialog button[value=out]").click()
    assert scale(driver) == pytest.approx(1.25)
    assert find(driver, "dialog output").text == "125 %"
    press(driver, "0")
    assert scale(driver) == 1
    press(driver, Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert driver.switch_to.active_element == opener
    opener.click()
    find(driver, "dialog button[value=close]").click()
    assert not dialog.is_displayed()


def test_the_wheel_zooms_about_the_pointer_and_dragging_moves(driver, page):
    find(driver, "figure button").click()
    for _ in range(6):
        press(driver, "+")
    stage, frame = find(driver, "dialog .stage"), sides(driver, "dialog .stage")
    pointer = {"x": 120, "y": -80}

    def under_the_pointer() -> list[float]:
        """Which point of the figure, as fractions of its width and height."""
        image = sides(driver, "dialog img")
        return [
            (frame[axis] + frame[size] / 2 + pointer[axis] - image[axis]) / image[size]
            for axis, size in (("x", "width"), ("y", "height"))
        ]

    point, before = under_the_pointer(), scale(driver)
    origin = ScrollOrigin.from_element(stage, pointer["x"], pointer["y"])
    ActionChains(driver).scroll_from_origin(origin, 0, -100).perform()
    assert scale(driver) == pytest.approx(1.25 * before, rel=1e-4)
    assert under_the_pointer() == pytest.approx(point, abs=1e-3)

    def drag(right: int, down: int) -> None:
        actions = ActionChains(driver, duration=50).click_and_hold(stage)
        actions.move_by_offset(right, down).release().move_by_offset(-30, 0).perform()

    start = sides(driver, "dialog img")
    drag(40, 25)
    moved = sides(driver, "dialog img")
    assert [moved["x"], moved["y"]] == pytest.approx([start["x"] + 40, start["y"] + 25], abs=0.1)
    # However far it is dragged, the figure covers the stage.
    for _ in range(6):
        drag(600, 0)
    assert sides(driver, "dialog img")["left"] == pytest.approx(frame["left"], abs=1)


def test_a_narrow_page_scrolls_its_tables_only(driver, page):
    appear(driver, NARROW, "light")
    assert driver.execute_script("return innerWidth") == NARROW
    assert driver.execute_script("return document.scrollingElement.scrollWidth") <= NARROW
    frame = find(driver, ".scroll")
    assert frame.get_property("scrollWidth") > NARROW
    cells = [*frame.find_elements(By.CSS_SELECTOR, "tbody tr:first-child > *")][:3]
    before = [cell.rect["x"] for cell in cells]
    driver.execute_script("arguments[0].scrollLeft = 150", frame)
    after = [cell.rect["x"] for cell in cells]
    assert after == pytest.approx([before[0], before[1], before[2] - 150], abs=1)


COLOURS = """
    const seen = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
        let below = element;
        while (getComputedStyle(below).backgroundColor === "rgba(0, 0, 0, 0)")
            below = below.parentElement;
        seen.add(getComputedStyle(element).color + getComputedStyle(below).backgroundColor);
    }
    return [...seen]"""


def luminance(red: int, green: int, blue: int) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [value / 255 for value in (red, green, blue)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_every_text_stands_out_from_its_ground(driver, page, scheme):
    appear(driver, WIDE, scheme)
    find(driver, "td button").click()
    pairs = [list(map(int, re.findall(r"\d+", pair))) for pair in driver.execute_script(COLOURS)]
    assert len(pairs) >= 5
    for pair in pairs:
        text, ground = luminance(*pair[:3]), luminance(*pair[3:])
        assert (ground < 0.05) if scheme == "dark" else (ground > 0.8)
        high, low = max(text, ground), min(text, ground)
        assert (high + 0.05) / (low + 0.05) >= 7, pair
    # Figures are drawn for white paper.
    ground = find(driver, "figure img").value_of_css_property("background-color")
    assert ground == "rgba(255, 255, 255, 1)"


def test_verdicts_differ_in_more_than_their_colour(driver, page):
    signs = driver.execute_script("""
        return [...document.querySelectorAll(".claims strong")].map((verdict) =>
            getComputedStyle(verdict, "::before").content)""")
    assert len(set(signs)) == 4


def test_print_leaves_out_what_paper_cannot_do_and_cuts_no_table(driver, page):
    find(driver, "td button").click()
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    try:
        for selector in ("nav", ".controls", "[popover]:popover-open", "details"):
            assert not find(driver, selector).is_displayed(), selector
        for selector in (".claims", "#glossary", "#ran", "figure img"):
            assert find(driver, selector).is_displayed(), selector
        for frame in driver.find_elements(By.CSS_SELECTOR, ".scroll"):
            assert frame.value_of_css_property("overflow") == "visible"
            assert frame.value_of_css_property("max-height") == "none"
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
