"""The screenshots of docs/report.md: a red and a green report, light and dark, wide and narrow.

    python suites/bench/screenshots.py [--results DIR] [--out docs/screenshots]

Without ``--results`` the runs are made first, which takes some minutes; DIR/red and DIR/green are
results of earlier ones. Needs Debian's chromium, chromium-driver and pngquant.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "selftest"))

from browser import Browser, browser, missing  # noqa: E402

RUNS = {
    "red/deepstack-kwarg": ["--bug", "deepstack-kwarg"],
    "red/deepstack-shift": ["--bug", "deepstack-shift"],
    "green": ["--target", "qwen3-vl-tiny"],
}
WIDTHS = {"wide": 1280, "narrow": 390}
TALLEST = {"wide": 2600, "narrow": 2400}  # pixels: the rest of a page is cut off


def main() -> None:
    """Make the runs that are not there, the pages, and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="results of earlier runs")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs/screenshots")
    given = parser.parse_args()
    if problem := missing() or ("" if shutil.which("pngquant") else "pngquant not installed"):
        raise SystemExit(problem)
    with tempfile.TemporaryDirectory() as folder, browser() as tab:
        results = given.results or Path(folder)
        for name, arguments in {} if given.results else RUNS.items():
            _vlm_ci("run", *arguments, "--out", str(results / name))
        given.out.mkdir(parents=True, exist_ok=True)
        for colour in ("red", "green"):
            page = Path(folder) / f"{colour}.html"
            # Relative paths: the page repeats them.
            _vlm_ci("report", colour, "--html", str(page), cwd=results)
            for width in WIDTHS:
                for dark in (False, True):
                    name = f"{colour}-{'dark' if dark else 'light'}-{width}.png"
                    _shoot(tab, page, given.out / name, width, dark)


def _vlm_ci(*arguments: str, cwd: Path | None = None) -> None:
    done = subprocess.run([sys.executable, "-m", "vlm_ci.cli", *arguments], cwd=cwd)
    if done.returncode not in (0, 1):
        raise SystemExit(f"vlm-ci {' '.join(arguments)}: exit code {done.returncode}")


def _shoot(tab: Browser, page: Path, file: Path, width: str, dark: bool) -> None:
    tab.show(page, width=WIDTHS[width], dark=dark)
    high = tab.run("return document.documentElement.scrollHeight")
    tab.resize(WIDTHS[width], min(int(high), TALLEST[width]))
    file.write_bytes(tab.picture())
    quant = ["pngquant", "--force", "--skip-if-larger", "--quality=80-100", "--output", file, file]
    subprocess.run(quant, check=True)
    print(f"{file.name}: {file.stat().st_size // 1024} KB, page {high} px high")


if __name__ == "__main__":
    main()
