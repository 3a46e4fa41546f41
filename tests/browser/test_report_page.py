"""The report's page in a real browser: `nox -s browser` brings Chromium and axe-core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import html
from pipeline.report.records import Report
from tests.making import reports
from tests.making.markup import ODD_NAMES
from tests.making.reports import OLDER

CHROMIUM, AXE = os.environ.get("POCKETNEST_CHROMIUM"), os.environ.get("POCKETNEST_AXE")
if CHROMIUM is None or AXE is None:
    pytest.skip("run by `nox -s browser`, which brings a browser", allow_module_level=True)

sync_api = pytest.importorskip("playwright.sync_api")

WIDTHS = (390, 820, 1400)
SERIOUS = ("serious", "critical")


def hostile() -> Report:
    return reports.full(3, [*ODD_NAMES, *reports.DIGITS[len(ODD_NAMES) :]])


PAGES = {
    "six targets": lambda: reports.full(6),
    "hostile names": hostile,
    "a thousand classes": lambda: reports.full(
        2, [f"class {n}" for n in range(1000)], images=50_000, right=0.76
    ),
    "nothing that runs here": lambda: reports.report(reports.target("x", top1=None)),
    "an older report": lambda: Report.model_validate_json(OLDER.read_text(encoding="utf-8")),
}


@dataclass
class Shown:
    """A page that is open, and what the browser said of it."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs rights that root in a container does not have.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for number, (name, make) in enumerate(PAGES.items()):
        written[name] = folder / f"{number}.html"
        written[name].write_text(html.render(make()), encoding="utf-8")
    return written


def opened(browser: Any, file: Path, width: int, scheme: str = "light") -> Shown:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown = Shown(page)
    page.on("console", lambda message: shown.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: shown.said.append(str(error)))
    page.on("dialog", lambda dialog: (shown.said.append("dialog"), dialog.dismiss()))
    page.on("request", lambda request: shown.asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    return shown


@pytest.fixture
def shown(request: pytest.FixtureRequest, browser: Any, files: dict[str, Path]) -> Iterator[Shown]:
    name, width, scheme = request.param
    found = opened(browser, files[name], width, scheme)
    yield found
    found.page.close()


EVERY = pytest.mark.parametrize(
    "shown",
    [(name, width, "light") for name in PAGES for width in WIDTHS]
    + [("six targets", width, "dark") for width in WIDTHS],
    indirect=True,
    ids=lambda given: "-".join(map(str, given)),
)
ONE = pytest.mark.parametrize(
    "shown", [("six targets", 1400, "light")], indirect=True, ids=["six targets"]
)


@EVERY
def test_nothing_is_complained_of_and_nothing_leaves(shown: Shown) -> None:
    assert shown.said == []
    assert [url for url in shown.asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in shown.asked if url.startswith("file:")]) == 1


@EVERY
def test_the_layout_holds(shown: Shown) -> None:
    wide = shown.page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          const inside = (element) => element.closest('.scroll, svg, .skip');
          const out = [...document.body.querySelectorAll('*')].filter(
            (e) => !inside(e) && e.getBoundingClientRect().right > width + 1);
          const beyond = document.documentElement.scrollWidth - width;
          return [beyond, out.map((e) => e.outerHTML.slice(0, 80))];
        }"""
    )
    assert wide == [0, []]


@EVERY
def test_no_table_but_a_matrix_scrolls_sideways(shown: Shown) -> None:
    hidden = shown.page.evaluate(
        """() => [...document.querySelectorAll('.scroll')]
          .filter((e) => !e.querySelector('.matrix') && !e.closest('details:not([open])'))
          .filter((e) => e.scrollWidth > e.clientWidth + 1)
          .map((e) => e.getAttribute('aria-label'))"""
    )
    assert hidden == []


@EVERY
def test_names_of_recipes_do_not_break_inside_a_word(shown: Shown) -> None:
    """A word of a heading or a card's title stands on one line, unless a line is too short."""
    broken = shown.page.evaluate(
        """() => [...document.querySelectorAll('h1, .card h3, .rows tbody th')]
          .filter((e) => getComputedStyle(e).overflowWrap !== 'break-word')
          .map((e) => e.textContent.slice(0, 40))"""
    )
    assert broken == []


@pytest.mark.parametrize(
    "shown", [("six targets", 1400, "light")], indirect=True, ids=["six targets"]
)
def test_a_wide_screen_is_used(shown: Shown) -> None:
    used = shown.page.evaluate(
        """() => ['.pair', '.cards', '.rows'].map((kind) => {
          const box = document.querySelector(kind).getBoundingClientRect();
          return box.width / document.documentElement.clientWidth;
        })"""
    )
    assert min(used) > 0.9
    charts = shown.page.evaluate(
        "() => [...document.querySelectorAll('.pair svg')].map("
        "(e) => e.getBoundingClientRect().width)"
    )
    assert min(charts) > 550


@pytest.mark.parametrize(
    "shown", [("six targets", 390, "light")], indirect=True, ids=["six targets"]
)
def test_on_a_narrow_screen_rows_are_cards_with_their_headings(shown: Shown) -> None:
    first = shown.page.evaluate(
        """() => {
          const cell = document.querySelector('#budgets ~ .scroll .rows tbody td');
          return [getComputedStyle(cell).display, getComputedStyle(cell, '::before').content];
        }"""
    )
    assert first[0] == "block"
    assert first[1] not in ("none", "")


@EVERY
def test_charts_are_drawn(shown: Shown) -> None:
    boxes = shown.page.evaluate(
        """() => [...document.querySelectorAll('[role=img] svg')]
          .filter((e) => !e.closest('details:not([open])'))
          .map((e) => [e.getBoundingClientRect().width, e.getBoundingClientRect().height,
                       e.querySelectorAll('path, use').length])"""
    )
    assert boxes, "no chart at all"
    narrow = min(300, shown.page.viewport_size["width"] - 100)
    for width, height, parts in boxes:
        assert width >= narrow
        assert height >= 50
        assert parts >= 3


@EVERY
def test_axe_finds_nothing_serious(shown: Shown) -> None:
    assert AXE is not None
    shown.page.evaluate(
        "() => document.querySelectorAll('details').forEach((d) => { d.open = true })"
    )
    shown.page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = shown.page.evaluate("async () => (await axe.run()).violations")
    serious = [
        (one["id"], one["impact"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"])
        for one in found
        if one["impact"] in SERIOUS
    ]
    assert serious == []


@ONE
def test_the_checks_can_fail(shown: Shown) -> None:
    page = shown.page
    page.evaluate(
        """() => {
          const image = document.createElement('img');
          image.src = 'https://example.invalid/x.png';
          const wide = document.createElement('div');
          wide.style.width = '3000px';
          document.querySelector('main').append(image, wide);
        }"""
    )
    page.wait_for_timeout(200)
    assert [line for line in shown.said if "Content Security Policy" in line]
    with pytest.raises(AssertionError):
        test_the_layout_holds(shown)
    with pytest.raises(AssertionError, match="image-alt"):
        test_axe_finds_nothing_serious(shown)


@ONE
def test_the_keyboard_reaches_everything(shown: Shown) -> None:
    page = shown.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"
    page.focus("details:not([open]) > summary")
    closed = page.evaluate("document.querySelectorAll('details:not([open])').length")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == closed - 1


@ONE
def test_dark_and_light_differ_and_print_has_everything(shown: Shown, tmp_path: Path) -> None:
    page = shown.page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
    line = "getComputedStyle(document.querySelector('svg text')).fill"
    dark_text = page.evaluate(line)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(line) != dark_text, "charts take the page's colours"
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").stat().st_size > 20_000


@pytest.mark.parametrize("shown", [("hostile names", 390, "light")], indirect=True)
def test_names_are_text(shown: Shown) -> None:
    text = shown.page.inner_text("main")
    for name in ODD_NAMES[:4]:
        assert " ".join(name.split()) in " ".join(text.split())
    assert shown.page.evaluate("document.scripts.length") == 0


@pytest.mark.parametrize(
    "shown", [("a thousand classes", 1400, "light")], indirect=True, ids=["a thousand classes"]
)
def test_all_classes_go_with_the_page_as_a_file(shown: Shown) -> None:
    page = shown.page
    page.evaluate("() => document.querySelectorAll('details').forEach((d) => { d.open = true })")
    with page.expect_download() as started:
        page.click("a[download]")
    assert started.value.suggested_filename == "classes-test.csv"
    lines = Path(started.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "class,images,float,device-0,device-1"
    assert len(lines) == 1001
    assert shown.said == [], "the page's policy lets it"
