"""Runs a training and keeps what a reader needs to check it: `benchmarks/records/NAME/`.

    python benchmarks/record.py cifar10-default-5min -- cifar10 --minutes 5

What stands behind `--` is given to `vitreous train`. A record holds `record.json` (command, commit, versions,
machine, seed, figures), the run's `recipe.toml` and its `log.txt`. A commit that does not hold the code that ran
is marked as such.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from vitreous.machine import instruction_sets
from vitreous.run import Run

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the record")
    parser.add_argument("words", nargs="+", metavar="-- ARGUMENT", help="for vitreous train")
    args = parser.parse_args()
    target = RECORDS / args.name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / args.name
        command = [sys.executable, "-m", "vitreous", "train", *args.words, "--out", str(path)]
        subprocess.run(command, check=True)
        run = Run(path)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        # Where things lay on this machine says nothing of the result.
        source = Path(run.resolved["data_source"])
        places = [f"{folder}/", *([f"{source.parent}/"] if source.is_absolute() else [])]
        for name in ("recipe.toml", "log.txt"):
            text = (path / name).read_text(encoding="utf-8")
            for place in places:
                text = text.replace(place, "")
            lines = [line for line in text.splitlines() if not line.startswith("data_dir = ")]
            (target / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.copy(path / "metrics.csv", target)
        figures, resolved = run.summary, run.resolved
    record = {
        "command": f"python benchmarks/record.py {args.name} -- {' '.join(args.words)}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "changed_since": [line[3:] for line in git("status", "--porcelain", "--", "src").splitlines()],
        "machine": resolved["machine"] | {"instruction_sets": instruction_sets()},
        "versions": resolved["versions"],
        "figures": figures,
    }
    (target / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target}")


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=RECORDS.parent, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
