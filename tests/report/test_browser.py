"""The page in a real headless browser, opened from the disk with the network cut off."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torchrl_genpo.report import write_report

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("playwright", reason="pip install playwright")
import report_browser


@pytest.fixture(scope="module")
def browser():
    try:
        with report_browser.open_browser() as browser:
            yield browser
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def path(make_run, tmp_path):
    for seed in (1, 2, 3):
        make_run(f"flow/{seed}", seed=seed)
    make_run("gaussian/1", offset=2.0, **{"policy.name": "gaussian"})
    write_report([tmp_path], tmp_path / "report.html")
    return tmp_path / "report.html"


def picture(page):
    return page.eval_on_selector('[data-column="train/return"] canvas', "canvas => canvas.toDataURL()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_every_chart_is_drawn_without_a_word_on_the_console(browser, path, scheme, width):
    with report_browser.open_report(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900}) as (
        page,
        said,
    ):
        report_browser.open_sections(page)
        pixels = report_browser.drawn(page)
        assert len(pixels) == len(page.query_selector_all("figure")) > 20
        for name, counts in pixels.items():
            assert len(counts) == 2 and min(counts) > 20, (name, counts)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not said


def test_every_control_works_from_the_keyboard(browser, path):
    with report_browser.open_report(browser, path) as (page, said):
        before = picture(page)
        page.focus("[name=axis]:checked")
        page.keyboard.press("ArrowRight")
        assert page.input_value("[name=axis]:checked") == "clock"
        against_clock = picture(page)
        page.keyboard.press("ArrowLeft")
        assert against_clock != before == picture(page)
        for name in ("seeds", "group"):
            page.focus(f"[name={name}]")
            page.keyboard.press("Space")
            assert picture(page) != before, name
            page.keyboard.press("Space")
            assert picture(page) == before, name
        assert not said


def test_hidden_groups_are_not_drawn(browser, path):
    with report_browser.open_report(browser, path) as (page, _):
        page.uncheck('[name=group][value="1"]')
        flow, gaussian = report_browser.drawn(page)["0 train/return"]
        assert flow > 20 and gaussian == 0


def test_a_chart_tells_its_values_to_the_pointer_and_to_the_arrow_keys(browser, path):
    with report_browser.open_report(browser, path) as (page, said):
        chart = page.locator('[data-column="train/return"]')
        chart.hover()
        assert "gaussian" in chart.locator(".tip").inner_text()
        page.mouse.move(0, 0)
        page.wait_for_selector('[data-column="train/return"] .tip', state="hidden")
        chart.focus()
        page.keyboard.press("ArrowRight")
        assert "at 1000" in chart.locator(".tip").inner_text()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Tab")
        page.wait_for_selector('[data-column="train/return"] .tip', state="hidden")
        assert not said


def test_without_scripts_tables_and_configuration_remain(browser, path):
    with browser.new_context(java_script_enabled=False, offline=True) as tab:
        page = tab.new_page()
        page.goto(path.as_uri())
        assert page.locator("noscript").inner_text() and page.locator("table").count() >= 2
