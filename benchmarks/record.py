"""Trains by `vitreous train` and adds the result to `records.jsonl`, one line a run.

    python benchmarks/record.py cifar10-mine-seed42 -- cifar10 --minutes 5 --seed 42

Everything after `--` goes to `vitreous train`. A line holds the command, commit, versions, machine and seed, every
figure of the run, its whole recipe and a short learning curve. A rerun of the same command replaces its line. Another
command may replace a line only with `--replace`. `docs/results.md` explains each key.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitreous.files import atomic_write
from vitreous.machine import instruction_sets
from vitreous.run import Run

HERE = Path(__file__).parent
RECORDS = HERE / "records.jsonl"
CURVE_POINTS = 40
# The order of the keys in a line; a key without a value is left out, except for `command`.
KEYS = (
    *(
        "id",
        "study",
        "arm",
        "data",
        "seed",
        "path",
        "command",
        "note",
        "timing",
        "date",
        "commit",
        "changed_since",
    ),
    *("versions", "machine", "figures", "recipe", "curve"),
)


def main() -> None:
    args = make_parser().parse_args()
    before = next((record for record in load() if record["id"] == args.id), {})
    training(
        args.id,
        args.words,
        command(args.id, args.words),
        study=args.study or before.get("study", "other"),
        arm=args.arm or before.get("arm", "default"),
        keep=args.keep,
        replace=args.replace,
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("id", help="of the record")
    parser.add_argument("--study", help="default: that of the record which is replaced, or 'other'")
    parser.add_argument("--arm", help="default: that of the record which is replaced, or 'default'")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the run folder here, and continue an interrupted one"
    )
    add_replace_option(parser)
    parser.add_argument("words", nargs="+", metavar="-- ARGUMENT", help="for vitreous train")
    return parser


def add_replace_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replace", action="store_true", help="replace a record with this id that another command made"
    )


def command(id: str, words: Sequence[str]) -> str:
    """The command of this script that records `vitreous train` with `words`."""
    return shlex.join(["python", "benchmarks/record.py", id, "--", *words])


def this_command(script: str) -> str:
    """The command that runs `script` with the arguments of this process, without `--replace`."""
    words = [word for word in sys.argv[1:] if word != "--replace"]
    return shlex.join(["python", f"benchmarks/{script}", *words])


def load(study: str | None = None) -> list[dict[str, Any]]:
    """All records, or those of one study, in the order of their ids."""
    if not RECORDS.exists():
        return []
    records = [json.loads(line) for line in lines_of(RECORDS)]
    return [record for record in records if study in (None, record["study"])]


def lines_of(file: Path) -> list[str]:
    """The lines of a JSON Lines file. Only a line feed ends a line: a text may hold U+2028 or U+0085."""
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line]


def check_replacement(id: str, command: str | None, replace: bool = False) -> None:
    """Refuses to replace a record that another command made. Call it before a long run, too.

    Args:
        id: of the new record.
        command: of the new record; it may be quoted differently.
        replace: allows any replacement.

    Raises:
        SystemExit: a record with this id has another command, and `replace` is false.
    """
    old = next((record for record in load() if record["id"] == id), None)
    if old is None or replace or split(old["command"]) == split(command):
        return
    raise SystemExit(
        f"The record {id} was made by another command ({old['command']}), so it stays. "
        "Choose another id, or replace it with --replace."
    )


def split(command: str | None) -> list[str] | None:
    return None if command is None else shlex.split(command)


def add(
    id: str,
    *,
    study: str,
    arm: str,
    command: str | None,
    data: str | None = None,
    seed: int | None = None,
    path: str = "",
    machine: dict[str, Any],
    versions: dict[str, Any],
    figures: dict[str, Any],
    recipe: dict[str, Any] | None = None,
    curve: dict[str, Any] | None = None,
    source_state: dict[str, Any],
    replace: bool = False,
    **extra: Any,
) -> dict[str, Any]:
    """Adds a line to `records.jsonl`, or replaces the line with the same id; returns the record.

    The file is locked while it is rewritten, so that runs which end at the same time all keep their lines.

    Args:
        id: unique; pages cite the record by it.
        study: what the record belongs to, e.g. "law".
        arm: what was tried in that study, e.g. "128 wide".
        command: makes the record today. None where no command can, and then `note` says why.
        path: how it was computed, e.g. "native, bf16".
        figures: the results, with all their digits.
        recipe: all tables of the recipe as it was trained.
        curve: see `short_curve`.
        source_state: what `state` returned when the run began. The sources may change during a long run.
        replace: replaces a record with this id even if another command made it.
        extra: more keys, e.g. `date`, `note`, or `timing=False` where the run's times mean nothing.

    Raises:
        SystemExit: a record with this id has another command, and `replace` is false.
    """
    fields = {
        "date": datetime.now(UTC).date().isoformat(),
        **source_state,
        **extra,
        **{
            "id": id,
            "study": study,
            "arm": arm,
            "data": data,
            "seed": seed,
            "path": path,
            "command": command,
        },
        **{"versions": versions, "machine": machine, "figures": figures, "recipe": recipe, "curve": curve},
    }
    keys = [*KEYS, *sorted(set(fields) - set(KEYS))]
    filled = {key: fields.get(key) for key in keys}
    record = {key: value for key, value in filled.items() if key == "command" or value not in (None, "")}
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    with locked(RECORDS.parent):
        check_replacement(id, command, replace)
        lines = lines_of(RECORDS) if RECORDS.exists() else []
        lines = [*(other for other in lines if json.loads(other)["id"] != id), line]
        lines.sort(key=lambda text: json.loads(text)["id"])
        atomic_write(RECORDS, "\n".join(lines) + "\n")
    print(f"record: {id} in {RECORDS.name}")
    return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out until the block ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def training(
    id: str,
    words: Sequence[str],
    command: str,
    *,
    study: str,
    arm: str,
    more: Callable[[Run], dict[str, Any]] = lambda run: {},
    keep: Path | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Runs `vitreous train` and adds its record.

    Args:
        words: the arguments of `vitreous train`.
        command: makes this record again.
        more: further figures, computed while the run folder is there.
        keep: where the run folder stays; by default it is removed. A run that was interrupted there is continued. One
            that finished there without being recorded is recorded.
        replace: replaces a record with this id even if another command made it.

    Raises:
        SystemExit: the training failed, or `check_replacement` or `begin` refused it before it began.
    """
    check_replacement(id, command, replace)
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / id
        start = begin(path, words)
        if interrupted(path):
            start["peak_memory_mib"] = vitreous_train(id, ["--resume", str(path)])
        elif not (path / "summary.json").exists():
            start["peak_memory_mib"] = vitreous_train(id, [*words, "--out", str(path)])
        write_start(path, start)  # a crash in `more` does not lose the peak
        run = Run(path)
        figures = run.summary | more(run)
        if "peak_memory_mib" in start:
            figures["peak_memory_mib"] = start["peak_memory_mib"]
        recipe = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
        resolved = recipe.pop("resolved")
        machine = resolved["machine"] | {"instruction_sets": instruction_sets()}
        return add(
            id,
            study=study,
            arm=arm,
            command=command,
            data=figures["data"],
            seed=figures["seed"],
            path=computed_by(machine),
            machine=machine,
            versions=resolved["versions"],
            figures=figures,
            recipe=recipe,
            curve=short_curve((path / "metrics.csv").read_text(encoding="utf-8")),
            source_state={key: start[key] for key in ("commit", "changed_since")},
            replace=replace,
            fingerprint=resolved["fingerprint"],
        )


def vitreous_train(id: str, words: Sequence[str]) -> int:
    """Runs `vitreous train` and returns the peak of its memory in MiB."""
    process = subprocess.Popen([sys.executable, "-m", "vitreous", "train", *words])
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.wait()
        raise
    if status:
        raise SystemExit(f"The training of {id} failed; the output above says why.")
    return usage.ru_maxrss // 1024


def begin(path: Path, words: Sequence[str]) -> dict[str, Any]:
    """Words, commit and changed files with which the training in the folder `path` began.

    A file beside the folder keeps them, so that a record of a continued run names the sources of its start. Sources
    that have changed before an interrupted run goes on are added to `changed_since`.

    Raises:
        SystemExit: the folder holds a training of other words, or nothing tells which.
    """
    file = start_file(path)
    if not (path / "recipe.toml").exists():
        start = {"words": list(words), **state()}
    elif not file.exists():
        raise SystemExit(
            f"{path} holds a run, and no {file.name} tells what began it; delete the folder or give another --keep."
        )
    else:
        start = json.loads(file.read_text(encoding="utf-8"))
        if start["words"] != list(words):
            raise SystemExit(
                f"{path} holds a run of other arguments ({shlex.join(start['words'])}); "
                "delete the folder or give another --keep."
            )
        if interrupted(path):
            later = {*state()["changed_since"], *differing_files(start["commit"])}
            start["changed_since"] = sorted({*start["changed_since"], *later})
    write_start(path, start)
    return start


def start_file(path: Path) -> Path:
    """The file of `begin`. It is beside the run folder, which `vitreous train` makes itself."""
    return path.with_name(f"{path.name}.start.json")


def write_start(path: Path, start: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(start_file(path), json.dumps(start, indent=1) + "\n")


def interrupted(path: Path) -> bool:
    """Whether a run folder holds a training that has begun and not finished."""
    if not (path / "summary.json").exists():
        return (path / "recipe.toml").exists()
    return bool(Run(path).summary.get("status") == "interrupted")


def computed_by(machine: dict[str, Any]) -> str:
    """Backend and precision of a training, e.g. "native, bf16" or "torch, float32, compiled"."""
    precision = {"32": "float32"}.get(machine["precision"], machine["precision"])
    return f"{machine['backend']}, {precision}{', compiled' if machine['compile'] else ''}"


def short_curve(metrics: str) -> dict[str, Any]:
    """The curve of a `metrics.csv` to five digits: `train` [step, loss], thinned, and `val` [step, loss, accuracy]."""
    rows = list(csv.DictReader(metrics.splitlines()))
    train = [[int(row["step"]), digits(row["train_loss"])] for row in rows if row["train_loss"]]
    val = [
        [int(row["step"]), digits(row["val_loss"]), digits(row["val_acc"])] for row in rows if row["val_acc"]
    ]
    last = len(train) - 1
    chosen = sorted({round(last * point / (CURVE_POINTS - 1)) for point in range(CURVE_POINTS)})
    return {"train": [train[index] for index in chosen]} | ({"val": val} if val else {})


def digits(number: str) -> float:
    return float(f"{float(number):.5g}")


def state() -> dict[str, Any]:
    """The commit, and the files of `src` and of the benchmarks that differ from it."""
    return {
        "commit": git("rev-parse", "HEAD").strip(),
        "changed_since": changed_files("../src", ":(glob)*.py"),
    }


def changed_files(*paths: str, folder: Path = HERE) -> list[str]:
    """The files under `paths`, seen from `folder`, that differ from the commit."""
    status = git("status", "--porcelain", "--", *paths, folder=folder)
    return [line[3:] for line in status.split("\n") if line]


def differing_files(commit: str) -> list[str]:
    """The files of `src` and of the benchmarks in which today's commit differs from an earlier one."""
    return git("diff", "--name-only", commit, "HEAD", "--", "../src", ":(glob)*.py").split()


def git(*words: str, folder: Path = HERE) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
