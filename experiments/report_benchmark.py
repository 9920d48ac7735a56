"""Time how long a browser takes to open the page of a report.

    python -m experiments.report_benchmark runs/quickstart/report.html
    python -m experiments.report_benchmark --repeats=3 runs/one/report.html runs/other/report.html

Headless Chromium of the system, driven by playwright (pip install '.[browser]'). A page is open
when all its completions are read and the first problem is drawn; the time is from the start of the
navigation, each in a fresh browser.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import launch

MARK = b'<script type="text/plain" id="data">'  # of page.html
READY = "performance.getEntriesByName('ready')[0].startTime"


def opening_seconds(page: Path, chromium: str) -> float:
    """Seconds until a page is open.

    Raises:
      ValueError: playwright, which drives the browser, is not installed, the browser does not
        start, or the page does not open.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise ValueError("playwright is not installed; pip install '.[browser]'.") from error
    try:
        with sync_playwright() as driver:
            # The sandbox wants rights that a container may not have; the page is our own.
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            opened = browser.new_page()
            opened.goto(page.resolve().as_uri())
            opened.wait_for_selector("html[data-ready=yes]", timeout=60_000)
            seconds = opened.evaluate(READY) / 1000
            browser.close()
    except Error as error:
        raise ValueError(f"{page}: {chromium} does not open it: {error.message.splitlines()[0]}"
                         ) from error
    return seconds


def flag_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pages", nargs="+", type=Path, help="what experiments.report has written")
    parser.add_argument("--repeats", type=int, default=5, help="times each is opened (default: 5)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Print a line for each page: its size, and the median and range of the times."""
    given = flag_parser().parse_args(argv)
    if given.repeats < 1:
        launch.refuse(f"repeats={given.repeats}: must be 1 or more.")
    for page in given.pages:
        if not page.is_file():
            launch.refuse(f"{page}: there is no such file.")
        if MARK not in page.read_bytes():
            launch.refuse(f"{page}: is no page of experiments.report; name one that is.")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        launch.refuse("chromium is not installed; apt-get install chromium.")
    for page in given.pages:
        with launch.refusals():
            seconds = sorted(opening_seconds(page, chromium) for _ in range(given.repeats))
        print(
            f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in "
            f"{statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
