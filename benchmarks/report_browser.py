# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Checks a report of ``genpo-report`` in a real headless browser, and takes its picture.

python benchmarks/report_browser.py RUN [RUN ...]    # writes results/report.png

The page must open from the disk with the network cut off, without a word on the console, and draw every chart in the
colour of every group that has values there. Needs Chromium (Debian: apt install chromium-headless-shell) and
playwright, which pyproject's extra ``test`` installs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Error, Page, sync_playwright
from provenance import RESULTS

from torchrl_genpo.report import write_report

EXECUTABLES = ("chromium-headless-shell", "chromium", "google-chrome")
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
# of a chart: the colours of its groups, and how many pixels inside its axes have each
PIXELS = """element => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chart = data.tasks[element.dataset.task].charts[element.dataset.column];
  const canvas = element.querySelector("canvas");
  if (!canvas) return null;
  const {width, height} = canvas;
  const probe = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  probe.drawImage(canvas, 0, 0);
  const pixels = probe.getImageData(0, 0, width, height).data;
  return chart.groups.filter((_, i) => chart.curves[i]).map(id => {
    probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--c${id % data.colors}`);
    probe.fillRect(0, 0, 1, 1);
    const [red, green, blue] = probe.getImageData(0, 0, 1, 1).data;
    let count = 0;
    for (let i = 0; i < pixels.length; i += 4)
      if (Math.abs(pixels[i] - red) + Math.abs(pixels[i + 1] - green) + Math.abs(pixels[i + 2] - blue) < 24
          && pixels[i + 3] > 200) count++;
    return count;
  });
}"""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium: the machine's, or else the one that playwright has installed.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        except Error as error:
            raise FileNotFoundError(
                "No Chromium. Debian: apt install chromium-headless-shell; elsewhere: playwright install chromium."
            ) from error
        yield browser
        browser.close()


@contextmanager
def open_report(browser: Browser, path: Path, **context: Any) -> Iterator[tuple[Page, list[str]]]:
    """A report opened from the disk, and what its console says from now on; ``context`` as playwright's."""
    with browser.new_context(**{"offline": True, "viewport": {"width": 1300, "height": 900}} | context) as tab:
        page, said = tab.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(".chart canvas")
        assert said == [path.resolve().as_uri()], said  # the page itself, and nothing else
        said.clear()
        yield page, said


def open_sections(page: Page) -> None:
    """Opens every section of charts, which draws what is in it."""
    page.evaluate("document.querySelectorAll('details.charts').forEach(section => { section.open = true })")
    # two frames later; the page's own policy forbids what playwright's wait_for_function does
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def drawn(page: Page) -> dict[str, list[int] | None]:
    """Of every chart, by task and column: pixels in the colour of each of its groups; ``None`` without a canvas."""
    charts = page.query_selector_all(".chart")
    names = [f"{chart.get_attribute('data-task')} {chart.get_attribute('data-column')}" for chart in charts]
    return {name: chart.evaluate(PIXELS) for name, chart in zip(names, charts, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        path = Path(folder) / "report.html"
        write_report(options.runs, path)
        size = {"width": 1240, "height": 900}
        with open_report(browser, path, viewport=size, color_scheme="light") as (page, said):
            picture = Image.open(BytesIO(page.screenshot()))
            picture.quantize(128).save(RESULTS / "report.png", optimize=True)
            open_sections(page)
            pixels = drawn(page)
            assert not said, said
    empty = [name for name, counts in pixels.items() if not counts or not all(counts)]
    print(f"{len(pixels)} charts; a group is not to be seen in: {', '.join(empty) or 'none'}")


if __name__ == "__main__":
    main()
