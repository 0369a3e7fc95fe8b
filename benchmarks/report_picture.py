"""Draws docs/report.png, the README's picture of a report, from a run.

    make report-picture RUN=runs/cifar10-default-seed42-001

Regenerates the run's report, opens it in headless Chromium, and keeps the top of the page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from vitreous.report import write_report

TARGET = Path(__file__).parent.parent / "docs" / "report.png"
WIDTH, HEIGHT = 1180, 1400  # CSS pixels: the answers of the first screen, the curves, and the cost


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the window, in CSS pixels")
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    screenshot(write_report(args.run), args.out, args.width, args.height)
    print(f"written: {args.out}")


def screenshot(page: Path, target: Path, width: int, height: int) -> None:
    """Writes the top of `page`, as Chromium draws it in a window of that size, to `target` as a PNG."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("Chromium was not found; install it (Debian: apt install chromium).")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                f"--user-data-dir={folder}/profile", f"--window-size={width},{height}",
                f"--screenshot={picture}", page.resolve().as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(picture).convert("RGB").save(target, optimize=True)


if __name__ == "__main__":
    main()
