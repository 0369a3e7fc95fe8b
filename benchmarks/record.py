"""Runs a training and keeps what a reader needs to check it: `benchmarks/records/NAME/`.

    python benchmarks/record.py cifar10-default-5min -- cifar10 --minutes 5

What stands behind `--` is given to `vitreous train`. A record holds `record.json` (command, commit, versions,
machine, seed, figures), the run's `recipe.toml`, `metrics.csv` and `log.txt`. Files that differed from the
commit when the run began are named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitreous.machine import instruction_sets
from vitreous.run import Run

HERE = Path(__file__).parent
RECORDS = HERE / "records"
LINES = HERE / "records.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the record")
    parser.add_argument("words", nargs="+", metavar="-- ARGUMENT", help="for vitreous train")
    args = parser.parse_args()
    command = f"python benchmarks/record.py {args.name} -- {' '.join(args.words)}"
    training(args.name, args.words, command)


def training(
    name: str, words: Sequence[str], command: str, more: Callable[[Run], dict[str, Any]] = lambda run: {}
) -> dict[str, Any]:
    """Runs `vitreous train` with `words` and writes its record; `more` adds figures while the run is there."""
    target, source_state = RECORDS / name, state()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        process = subprocess.Popen([sys.executable, "-m", "vitreous", "train", *words, "--out", str(path)])
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.wait()
            raise
        if status:
            raise SystemExit(f"The training of {name} failed; its words stand above.")
        run = Run(path)
        figures = run.summary | more(run) | {"peak_memory_mib": usage.ru_maxrss // 1024}
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        # Where things lay on this machine says nothing of the result.
        source = Path(run.resolved["data_source"])
        places = [f"{folder}/", *([f"{source.parent}/"] if source.is_absolute() else [])]
        for file in ("recipe.toml", "log.txt"):
            text = (path / file).read_text(encoding="utf-8")
            for place in places:
                text = text.replace(place, "")
            lines = [line for line in text.splitlines() if not line.startswith("data_dir = ")]
            (target / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.copy(path / "metrics.csv", target)
        resolved = run.resolved
    return write(
        target,
        command,
        **source_state,
        machine=resolved["machine"] | {"instruction_sets": instruction_sets()},
        versions=resolved["versions"],
        figures=figures,
    )


def write(target: Path, command: str, **content: Any) -> dict[str, Any]:
    """Writes `record.json`: the command, the commit and what differs from it (as now, unless given), and the rest."""
    record = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        **state(),
        **content,
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target}")
    return record


def add(
    id: str,
    *,
    study: str,
    arm: str,
    command: str,
    data: str | None = None,
    seed: int | None = None,
    path: str = "",
    machine: Mapping[str, Any],
    versions: Mapping[str, Any],
    figures: Mapping[str, Any],
    recipe: Any = None,
    curve: Any = None,
    source_state: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Writes one line of `records.jsonl`, in place of an earlier one of the same id."""
    content = {"data": data, "seed": seed, "path": path, "recipe": recipe, "curve": curve}
    line = {
        "id": id,
        "study": study,
        "arm": arm,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        **(source_state or state()),
        **{name: value for name, value in content.items() if value not in (None, "")},
        "machine": machine,
        "versions": versions,
        "figures": figures,
        **extra,
    }
    others = [other for other in load() if other["id"] != id]
    LINES.write_text("".join(json.dumps(each) + "\n" for each in [*others, line]), encoding="utf-8")
    print(f"record: {id}")
    return line


def load(study: str | None = None) -> list[dict[str, Any]]:
    """The records, of one study or of all."""
    text = LINES.read_text(encoding="utf-8") if LINES.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if study in (None, line["study"])]


def state() -> dict[str, Any]:
    """The commit, and the files of `src` and of the benchmarks that differ from it."""
    changed = git("status", "--porcelain", "--", "../src", ":(glob)*.py").splitlines()
    return {"commit": git("rev-parse", "HEAD").strip(), "changed_since": [line[3:] for line in changed]}


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
