"""Real images of several sizes: our recipe beside two ResNet-9 and the notebook's recipe, at equal training FLOPs.

    make bench-folders                                               # everything, judged on validation
    python benchmarks/folders.py --only trashnet --arms vitreous     # a part of it
    python benchmarks/folders.py --name mixup mixup=0.5              # another recipe, as an arm of that name
    python benchmarks/folders.py --final                             # train on everything and read test, once an arm
    python benchmarks/folders.py --minutes                           # the time of a step on this CPU, arms in turns

`folder_sets.py` has the table of data sets. Sets of fewer than 5,000 training images validate in five folds. The others
hold out the tenth that `vitreous train` holds out. TrashNet has no test split, so a tenth of it is test from the start.
A ResNet-9 gets the best of three learning rates, chosen once for each set on validation at 1e13 FLOPs.

Each (data, budget, arm, seed) is one record with all its folds. The bench does not train a record again. Ctrl-C stops
it, and the same command goes on. Finished folds of unfinished records wait in a file beside the records.
`make leaderboard` then makes the tables and the plot.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import shlex
import signal
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import folders_page
import numpy as np
import record
import resnet9
import torch
from folder_sets import SETS, Images, open_set

import vitreous
from vitreous import api
from vitreous import machine as machines
from vitreous import recipe as recipes
from vitreous.balance import is_unequal
from vitreous.data import splits as splits_module
from vitreous.data.module import ImageData
from vitreous.errors import VitreousError
from vitreous.plan import fit_to_data, make_plan
from vitreous.progress import ProgressLine
from vitreous.recipe import Budget, Recipe
from vitreous.request import Request
from vitreous.training.cost import measure_seconds
from vitreous.wording import count, duration

RECIPES = {"vitreous": "default", "notebook": "notebook"}  # arms that vitreous trains
WIDTHS = {"resnet9": 32, "resnet9-narrow": 16}  # arms that resnet9.py trains; width of the first layer
ARMS = ("vitreous", "resnet9", "resnet9-narrow", "notebook")
RATES = ("1e-3", "3e-3", "1e-2")  # learning rates of a ResNet-9 that are tried
RATES_AT, RATES_SEED = "1e13", 42
SEEDS = (42, 43, 44)
MINUTES_ROUNDS = 5
PATHS = {  # of the data sets that vitreous does not know by name
    "trashnet": Path("trash.zip"),
    "fashion-mnist": Path("/usr/share/datasets/fashion-mnist"),
}
SOURCES = (".py", ".toml", ".cpp", ".h")  # suffixes of files that can change a result
LOGS = Path("runs/bench-folders")
ERROR_LINES = 3
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Entry:
    """The training of one record: an arm on a data set at a budget with a seed.

    Attributes:
        budget: training FLOPs of each training, as people write them.
        rate: learning rate of a ResNet-9 that is being chosen; "" for the chosen one and for other arms.
        overrides: changes to the recipe.
        final: all images train, and test judges.
    """

    data: str
    budget: str
    arm: str
    seed: int
    rate: str = ""
    overrides: tuple[str, ...] = ()
    final: bool = False

    @property
    def id(self) -> str:
        arm = f"{self.arm}-lr{self.rate}" if self.rate else self.arm
        return f"folders-{self.data}-{self.budget}-{arm}{'-test' if self.final else ''}-seed{self.seed}"

    @property
    def split(self) -> str:
        return "test" if self.final else "val"


@dataclass(frozen=True)
class Task:
    """One training: an entry's fold, None for the final training."""

    entry: Entry
    fold: int | None
    rate: str = ""  # the learning rate of a ResNet-9

    @property
    def key(self) -> str:
        """Tells the training apart from all others, also from those of another recipe under the same name."""
        changes = f" {shlex.join(self.entry.overrides)}" if self.entry.overrides else ""
        return f"{self.entry.id}{changes}, fold {'all' if self.fold is None else self.fold}"

    @property
    def flops(self) -> float:
        return float(self.entry.budget)


def main() -> None:
    args = make_parser().parse_args()
    if args.records:
        record.RECORDS = args.records.resolve()
    if args.merge:
        merge(args.merge, args.replace)
    elif args.minutes:
        measure_minutes(args)
    else:
        bench(args)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to our recipe; needs --name"
    )
    parser.add_argument("--name", metavar="ARM", help="name of the arm that has these changes")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS), metavar="DATA")
    parser.add_argument("--arms", nargs="+", choices=[*RECIPES, *WIDTHS], metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--budgets", nargs="+", metavar="FLOPS", help="instead of those of the table")
    parser.add_argument("--rates-at", default=RATES_AT, metavar="FLOPS", help=f"default: {RATES_AT}")
    parser.add_argument(
        "--final", action="store_true", help="train on everything and read test, once a record"
    )
    parser.add_argument("--minutes", action="store_true", help="time a step of each arm on this CPU")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at once")
    parser.add_argument("--data-dir", type=Path, help="folder of packed data sets")
    parser.add_argument("--trashnet", type=Path, default=PATHS["trashnet"], help="its zip or folder")
    parser.add_argument("--fashion-mnist", type=Path, default=PATHS["fashion-mnist"], help="its IDX files")
    parser.add_argument("--records", type=Path, metavar="FILE", help="write elsewhere, for another machine")
    parser.add_argument("--merge", type=Path, metavar="FILE", help="take over the records of such a file")
    parser.add_argument("--commit", metavar="SHA", help="of these sources, where git does not know it")
    record.add_replace_option(parser)
    return parser


# ---- what is to be trained


def entries_of(args: argparse.Namespace) -> list[Entry]:
    """The records that were asked for, learning rates first, then seed by seed, the longest trainings first.

    Raises:
        SystemExit: overrides and name do not fit together.
    """
    if bool(args.overrides) != bool(args.name):
        raise SystemExit("Changes to the recipe make another arm; give KEY=VALUE together with --name ARM.")
    if args.name in RECIPES or args.name in WIDTHS:
        raise SystemExit(f"The arm {args.name} has its own recipe; give the changed one another name.")
    try:
        recipes.load("default", args.overrides)  # a wrong key is refused before anything is trained
    except VitreousError as error:
        raise SystemExit(str(error)) from None
    arms = list(args.arms or (() if args.name else ARMS)) + ([args.name] if args.name else [])
    chosen = []
    for data in args.only:
        for arm in arms:
            changes = tuple(args.overrides) if arm == args.name else ()
            for seed in args.seeds:
                for budget in args.budgets or SETS[data].budgets:
                    chosen.append(Entry(data, budget, arm, seed, "", changes, args.final))
    chosen.sort(key=lambda e: (args.seeds.index(e.seed), -float(e.budget)))
    tried = [
        Entry(data, args.rates_at, arm, RATES_SEED, rate)
        for data in args.only
        for arm in arms
        if arm in WIDTHS
        for rate in RATES
    ]
    return [*tried, *chosen]


def command(entry: Entry, args: argparse.Namespace) -> str:
    """The command that makes one record again."""
    words = ["python", "benchmarks/folders.py", *entry.overrides]
    if entry.arm in RECIPES or entry.arm in WIDTHS:
        words += ["--arms", entry.arm]
    else:
        words += ["--name", entry.arm]
    words += ["--only", entry.data, "--seeds", str(entry.seed)]
    words += [] if entry.rate else ["--budgets", entry.budget]
    words += ["--rates-at", args.rates_at] if entry.arm in WIDTHS and args.rates_at != RATES_AT else []
    return shlex.join([*words, *(["--final"] if entry.final else [])])


def chosen_rate(entry: Entry, rates_at: str, known: dict[str, dict[str, Any]]) -> str:
    """The learning rate with the best figure on validation; "" while not all are on record.

    Args:
        known: the figures of the records of learning rates, by id.
    """
    tried = {
        rate: replace(entry, budget=rates_at, seed=RATES_SEED, rate=rate, final=False).id for rate in RATES
    }
    if not all(id in known for id in tried.values()):
        return ""
    return max(tried, key=lambda rate: known[tried[rate]][known[tried[rate]]["judged_by"]])


# ---- the bench


def bench(args: argparse.Namespace) -> None:
    """Trains what is not on record, records each entry when its last fold is done, and prints a table."""
    paths = {"trashnet": args.trashnet, "fashion-mnist": args.fashion_mnist}
    data_dir = args.data_dir.resolve() if args.data_dir else None
    entries = entries_of(args)
    try:
        machines.resolve_device(args.device)
    except VitreousError as error:
        raise SystemExit(str(error)) from None
    on_record = {r["id"] for r in record.load()}
    for entry in entries:
        record.check_replacement(entry.id, command(entry, args), args.replace)
    wanted = [e for e in entries if e.id not in on_record or (args.replace and not e.rate)]
    sets: dict[str, Images] = {}
    left_out = []
    for data in dict.fromkeys(entry.data for entry in wanted):
        try:
            sets[data] = open_set(data, data_dir, paths)  # packed here once, before workers open it
        except VitreousError as error:
            left_out.append(data)
            print(f"{data} is left out: {error}")
    source_state = state(args.commit)
    sources = f"{source_state['commit']} {source_hash(record.HERE.parent)}"
    parts = Parts(record.RECORDS.with_suffix(".parts.jsonl"), sources)
    tasks_of = {
        entry: [Task(entry, fold) for fold in ([None] if entry.final else range(sets[entry.data].folds))]
        for entry in wanted
        if entry.data in sets
    }
    if args.replace:
        parts.forget(task.key for own in tasks_of.values() for task in own)
    tasks = [task for own in tasks_of.values() for task in own if task.key not in parts.results]
    print(
        f"{count(len(entries), 'record')}, {len(entries) - len(tasks_of)} on record or left out: "
        f"{count(len(tasks), 'training')} to do, {args.jobs} at a time",
        flush=True,
    )

    def finish(entry: Entry) -> None:
        """Records an entry of which every fold is done."""
        keys = [task.key for task in tasks_of[entry]]
        if all(key in parts.results for key in keys):
            add_record(entry, sets[entry.data], [parts.results[key] for key in keys], args, source_state)
            parts.forget(keys)

    for entry in tasks_of:  # an earlier process may have been killed between the last fold and the record
        finish(entry)
    failed: list[Task] = []
    setup = Setup(args.device, args.jobs, data_dir, paths)
    try:
        with workers(setup, min(args.jobs, len(tasks))) as pool:
            for task, result in results(pool, setup, tasks, args.rates_at):
                if "error" in result:
                    failed.append(task)
                    continue
                parts.add(task.key, result)
                finish(task.entry)
    except KeyboardInterrupt:
        print("\nStopped. Finished trainings are kept; the same command goes on.")
        raise SystemExit(130) from None
    print("\n".join(folders_page.text_table(record.load("folders"), args.only)))
    if failed:
        print(f"{count(len(failed), 'training')} failed; the same command tries them again:")
        print("\n".join(f"  {task.key}" for task in failed))
    if failed or left_out:
        raise SystemExit(1)


class Parts:
    """Results of single trainings until their record is complete, a line of JSON each in a file.

    Results of other sources are dropped, since the folds of a record have to be of the same code. The commit alone does
    not tell sources apart: files may have changed since, and a copy on another machine may not know its commit.

    Args:
        sources: tells the sources apart.
    """

    def __init__(self, file: Path, sources: str) -> None:
        self.file, self.sources = file, sources
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        # The last line may be one that a killed process did not finish.
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        self.results: dict[str, dict[str, Any]] = {
            part["key"]: part["result"] for part in lines if part.get("sources") == sources
        }
        if dropped := len(lines) - len(self.results):
            print(f"{count(dropped, 'finished training')} of other sources dropped from {file.name}")
        if text:
            self._write()

    def add(self, key: str, result: dict[str, Any]) -> None:
        self.results[key] = result
        with self.file.open("a", encoding="utf-8") as file:
            file.write(self._line(key, result))

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.results.pop(key, None)
        self._write()

    def _line(self, key: str, result: dict[str, Any]) -> str:
        return json.dumps({"key": key, "sources": self.sources, "result": result}) + "\n"

    def _write(self) -> None:
        if self.results:
            record.atomic_write(self.file, "".join(self._line(*part) for part in self.results.items()))
        else:
            self.file.unlink(missing_ok=True)


def source_hash(root: Path) -> str:
    """A hash of every source file of the package and of the benchmarks below `root`, committed or not."""
    files = [*(root / "benchmarks").glob("*.py"), *(root / "src").rglob("*.*")]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix in SOURCES):
        digest.update(f"{file.relative_to(root)}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def state(commit: str | None) -> dict[str, Any]:
    """The commit of the sources. A copy of them on another machine may lack git."""
    if commit:
        return {"commit": commit, "changed_since": []}
    try:
        return record.state()
    except (OSError, record.subprocess.CalledProcessError):
        return {"commit": "unknown", "changed_since": []}


def add_record(
    entry: Entry,
    images: Images,
    results: list[dict[str, Any]],
    args: argparse.Namespace,
    source_state: dict[str, Any],
) -> None:
    """Adds the record of an entry from the results of its folds.

    The figures hold whether each judged image was classified correctly, as the bits of a hexadecimal number. The images
    are sorted by class, then by position in the data set, and `images_of_class` tells where each class begins.
    """
    folds = [None] if entry.final else list(range(images.folds))
    labels = np.concatenate([images.judged_labels(fold) for fold in folds])
    positions = np.concatenate([images.positions(fold)[1] for fold in folds])
    correct = np.concatenate([unpack(r["correct"], r["judged"]) for r in results])
    order = np.lexsort((positions, labels))
    counts = np.bincount(labels, minlength=len(images.classes))
    correct = correct[order]
    shares = [part.mean() for part in np.split(correct, np.cumsum(counts)[:-1])]
    last = results[-1]
    costs = ("train_flops", "epochs", "train_seconds", "parameters", "steps", "batch")
    figures = {
        "budget": float(entry.budget),
        "split": entry.split,
        "judged_by": "balanced_acc" if is_unequal(counts) else "acc",
        "acc": float(correct.mean()),
        "balanced_acc": float(np.mean(shares)),
        **({"test_acc": float(correct.mean())} if entry.final else {}),
        **({"learning_rate": float(last["rate"])} if last.get("rate") else {}),
        **{key: statistics.mean(r[key] for r in results) for key in costs},
        "folds": [
            {"acc": float(unpack(r["correct"], r["judged"]).mean())} | {key: r[key] for key in costs[:3]}
            for r in results
        ],
        "training_images": len(images.positions(folds[0])[0]),
        "images_of_class": counts.tolist(),
        "correct": packed(correct),
    }
    record.add(
        entry.id,
        study="folders-rates" if entry.rate else "folders",
        arm=f"{entry.arm} lr {entry.rate}" if entry.rate else entry.arm,
        command=command(entry, args),
        data=entry.data,
        seed=entry.seed,
        path=last["path"],
        machine=last["machine"] | {"jobs": args.jobs},
        versions={"vitreous": vitreous.__version__, "torch": torch.__version__},
        figures=figures,
        recipe=last.get("recipe"),
        source_state=source_state,
        replace=args.replace,
        overrides=list(entry.overrides) or None,
        fingerprint=images.fingerprint,
    )


def packed(correct: np.ndarray) -> str:
    """bool [N] as hexadecimal digits, four images each, the first image in the highest bit."""
    return np.packbits(correct).tobytes().hex()


def unpack(digits: str, images: int) -> np.ndarray:
    """The inverse of `packed`: bool [`images`]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[:images].astype(bool)


# ---- workers


@dataclass(frozen=True)
class Setup:
    """The options that every worker shares."""

    device: str
    jobs: int
    data_dir: Path | None
    paths: dict[str, Path]


@dataclass
class Worker:
    """A process that trains one task after another, and this side of the pipe to it."""

    process: Any
    pipe: Connection
    number: int
    task: Task | None = None
    began: float = 0.0


@dataclass
class Forecast:
    """The time that trainings take: seconds and FLOPs of those that are done, by arm and data set."""

    done: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, task: Task, seconds: float) -> None:
        for key in self._keys(task):
            sums = self.done.setdefault(key, [0.0, 0.0])
            sums[0] += seconds
            sums[1] += task.flops

    def seconds(self, task: Task) -> float:
        for key in self._keys(task):
            if key in self.done:
                seconds, flops = self.done[key]
                return seconds / flops * task.flops
        return 0.0

    def _keys(self, task: Task) -> list[tuple[str, str]]:
        return [(task.entry.arm, task.entry.data), (task.entry.arm, ""), ("", "")]


def start_worker(setup: Setup, number: int) -> Worker:
    context = multiprocessing.get_context(
        "spawn"
    )  # a forked process cannot use a GPU that its parent has used
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, setup, number), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours, number)


@contextmanager
def workers(setup: Setup, jobs: int) -> Iterator[list[Worker]]:
    """Worker processes, ended with the block, together with the run folders that they were writing."""
    with tempfile.TemporaryDirectory(prefix="bench-folders-", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = folder  # workers inherit it
        pool: list[Worker] = []
        try:
            pool += [start_worker(setup, number) for number in range(jobs)]
            yield pool
        finally:
            for worker in pool:
                worker.process.kill()
                worker.process.join()
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def results(
    pool: list[Worker], setup: Setup, tasks: list[Task], rates_at: str
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Hands the tasks to the workers and yields each with its result as soon as it is done.

    A ResNet-9 waits until its learning rate is on record. A worker that fails is replaced by a new one.
    """
    waiting, done, forecast, line = list(tasks), 0, Forecast(), ProgressLine()
    while waiting or any(worker.task for worker in pool):
        for worker in pool:
            if worker.task is None and (task := next_task(waiting, rates_at)):
                worker.task, worker.began = task, time.monotonic()
                worker.pipe.send(task)
        busy = [worker for worker in pool if worker.task]
        if not busy:  # what remains waits for learning rates whose trainings failed
            for task in waiting:
                yield task, {"error": "no learning rate"}
            return
        for pipe in wait([worker.pipe for worker in busy], timeout=POLL_SECONDS):
            worker = next(worker for worker in busy if worker.pipe is pipe)
            result = receive(worker)
            task, seconds = worker.task, time.monotonic() - worker.began
            assert task is not None
            worker.task, done = None, done + 1
            line.close()
            print(describe(task, result, seconds), flush=True)
            if "error" in result:
                worker.process.kill()
                worker.process.join()
                pool[pool.index(worker)] = start_worker(setup, worker.number)
            else:
                forecast.add(task, seconds)
            yield task, result
        if line.due() and done:
            now = time.monotonic()
            left = sum(forecast.seconds(task) for task in waiting)
            for worker in busy:
                if worker.task:
                    left += max(0.0, forecast.seconds(worker.task) - (now - worker.began))
            parts = (f"{done} of {len(tasks)} trainings", f"about {duration(left / len(pool))} left")
            line.show(done / len(tasks), parts)
    line.close()


def next_task(waiting: list[Task], rates_at: str) -> Task | None:
    """Takes the first task that can begin out of `waiting`."""
    known = {r["id"]: r["figures"] for r in record.load("folders-rates")}
    for position, task in enumerate(waiting):
        entry = task.entry
        rate = entry.rate or (chosen_rate(entry, rates_at, known) if entry.arm in WIDTHS else "")
        if rate or entry.arm not in WIDTHS:
            return replace(waiting.pop(position), rate=rate)
    return None


def receive(worker: Worker) -> dict[str, Any]:
    """A worker's result, or the error that ended the process."""
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        return {"error": f"the process ended with {worker.process.exitcode}"}


def describe(task: Task, result: dict[str, Any], seconds: float) -> str:
    if "error" in result:
        lines = [line for line in result["error"].strip().splitlines() if line.strip()]
        return "\n  ".join([f"{task.key} FAILED:", *lines[-ERROR_LINES:], f"(all of it in {LOGS})"])
    share = unpack(result["correct"], result["judged"]).mean()
    rate = f", learning rate {task.rate}" if task.rate else ""
    return f"{task.key}: {100 * share:.1f} % of {result['judged']:,}, {duration(seconds)}{rate}"


def serve(pipe: Connection, setup: Setup, number: int) -> None:
    """A worker process: trains the tasks that come through the pipe. Its output goes to a log file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    end_with_parent()
    LOGS.mkdir(parents=True, exist_ok=True)
    log = os.open(LOGS / f"worker-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(max(1, torch.get_num_threads() // setup.jobs))
    leave_out()
    opened = functools.cache(lambda data: open_set(data, setup.data_dir, setup.paths))
    while True:
        try:
            task = pipe.recv()
        except EOFError:  # the parent is gone
            return
        try:
            pipe.send(train(task, opened(task.entry.data), setup.device))
        except BaseException:
            traceback.print_exc()
            pipe.send({"error": traceback.format_exc()})
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other workers share the memory


def end_with_parent() -> None:
    """Ends this process as soon as its parent is gone. A killed parent would leave it training for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def leave_out() -> None:
    """Leaves out what costs seconds of a run and changes no figure: the report, and the search for copies.

    The folds already keep copies together.
    """
    for module, name, stand_in in (
        (api, "write_report", lambda path: path),
        (api, "copies_record", lambda store, sources: None),
        (splits_module, "copies_of", lambda store: None),
    ):
        assert hasattr(module, name)
        setattr(module, name, stand_in)


# ---- trainings


def train(task: Task, images: Images, device: str) -> dict[str, Any]:
    """Trains a task and judges it: cost, machine, and `correct`, the bits of the judged images in their order."""
    print(f"==== {task.key}", flush=True)
    if task.entry.arm in WIDTHS:
        result, correct = train_resnet9(task, images, device)
    else:
        result, correct = train_ours(task, images, device)
    return result | {"judged": len(correct), "correct": packed(correct)}


def train_ours(task: Task, images: Images, device: str) -> tuple[dict[str, Any], np.ndarray]:
    """A training by `vitreous.train`, in a run folder that is removed afterwards."""
    entry = task.entry
    with tempfile.TemporaryDirectory() as folder:
        run = api.train(
            images.store(task.fold),
            RECIPES.get(entry.arm, "default"),
            flops=task.flops,
            out=Path(folder) / "run",
            overrides=list(entry.overrides),
            seed=entry.seed,
            device=device,
            judge=entry.split,
        )
        predictions = run.predictions[entry.split]
        tables = run.recipe.tables()
        summary, machine = run.summary, run.resolved["machine"]
    expected = images.judged_labels(task.fold)
    if not np.array_equal(predictions.labels, expected):
        raise ValueError("the run judged other images than those of the fold")
    costs = ("parameters", "steps", "epochs", "train_flops", "train_seconds")
    result = {key: summary[key] for key in costs} | {
        "batch": tables["training"]["batch_size"],
        "machine": machine | {"instruction_sets": machines.instruction_sets()},
        "path": record.computed_by(machine),
        "recipe": tables,
    }
    return result, predictions.logits.argmax(1) == expected


def train_resnet9(task: Task, images: Images, device: str) -> tuple[dict[str, Any], np.ndarray]:
    entry, store = task.entry, images.store(task.fold)
    machine = machines.choose_precision(machines.detect_machine(device), "auto")
    train, judged = store.splits["train"], store.splits[entry.split]
    batch = batch_size(store)
    trainer, costs = resnet9.train(
        task.flops,
        train.images,
        train.labels,
        store.num_classes,
        mean=store.mean,
        std=store.std,
        batch=batch,
        rate=float(task.rate),
        width=WIDTHS[entry.arm],
        seed=entry.seed,
        device=machine.device,
        bf16=machine.precision == "bf16",
    )
    result = costs | {
        "batch": batch,
        "rate": task.rate,
        "machine": machine.record() | {"instruction_sets": machines.instruction_sets()},
        "path": f"torch, {'bf16' if machine.precision == 'bf16' else 'float32'}",
    }
    return result, trainer.predict(judged.images) == np.asarray(judged.labels)


def batch_size(store: Any) -> int:
    """Images in a step, as the default recipe chooses it for these data."""
    data = ImageData(store, say=lambda line: None, train_on_val="val" not in store.splits)
    data.setup()
    fitted = fit_to_data(recipes.load("default"), data, lambda line, detail=False: None)
    return min(fitted.training.batch_size, len(data.splits.train))


# ---- minutes, and records of another machine


def measure_minutes(args: argparse.Namespace) -> None:
    """Times a step of each arm on each set on this CPU, all arms in turns, and records seconds and FLOPs of a step."""
    paths = {"trashnet": args.trashnet, "fashion-mnist": args.fashion_mnist}
    data_dir = args.data_dir.resolve() if args.data_dir else None
    id, words = "folders-minutes", "python benchmarks/folders.py --minutes"
    record.check_replacement(id, words, args.replace)
    source_state = state(args.commit)
    leave_out()
    figures: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
    for data in args.only:
        store = open_set(data, data_dir, paths).store(0)
        for budget in args.budgets or SETS[data].budgets:
            timers = {arm: timer(arm, store, budget) for arm in args.arms or ARMS}
            seconds: dict[str, list[float]] = {arm: [] for arm in timers}
            for _ in range(MINUTES_ROUNDS):
                for arm, (_, measure) in timers.items():
                    seconds[arm].append(measure())
            for arm, (flops, _) in timers.items():
                step = statistics.median(seconds[arm])
                known = {
                    "step_flops": flops,
                    "step_seconds": step,
                    "minutes": float(budget) / flops * step / 60,
                }
                figures.setdefault(data, {}).setdefault(budget, {})[arm] = known
                print(f"{data}, {budget}, {arm}: {known['minutes']:.1f} minutes", flush=True)
    record.add(
        id,
        study="folders-minutes",
        arm="all arms",
        command=words,
        path=f"cpu, {machine.precision}",
        machine=machine.record() | {"instruction_sets": machines.instruction_sets()},
        versions={"vitreous": vitreous.__version__, "torch": torch.__version__},
        figures=figures,
        source_state=source_state,
        replace=args.replace,
    )


def timer(arm: str, store: Any, budget: str) -> tuple[float, Any]:
    """FLOPs of a step of an arm, and a function that times one: mean over the run's image sizes, no augmentation."""
    if arm in WIDTHS:
        machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
        train, batch, side = store.splits["train"], batch_size(store), store.image_size
        trainer = resnet9.Trainer(
            train.images[:batch],
            train.labels[:batch],
            store.num_classes,
            store.mean,
            store.std,
            steps=1000,
            batch=batch,
            rate=1e-3,
            width=WIDTHS[arm],
            seed=0,
            device="cpu",
            bf16=machine.precision == "bf16",
        )
        x = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        labels = trainer.labels[:batch]
        trainer.step(x, labels)

        def step() -> float:
            started = time.perf_counter()
            trainer.step(x, labels).item()
            return time.perf_counter() - started

        return resnet9.step_flops(store.num_classes, side, WIDTHS[arm], batch), step
    plan = make_plan(
        our_recipe(arm, store.name, budget),
        Request(store, judge="val", device="cpu"),
        lambda line, detail=False: None,
    )
    bf16 = plan.machine.precision == "bf16"

    def measure() -> float:
        return measure_seconds(plan.cost, plan.model, plan.recipe, plan.sizes.batch, "cpu", bf16=bf16).mean()[
            1
        ]

    return plan.cost.mean()[0], measure


def our_recipe(arm: str, data: str, budget: str) -> Recipe:
    name = RECIPES[arm]
    recipe = recipes.load(recipes.notebook(data) if name == "notebook" else name)
    return replace(recipe, budget=Budget(float(budget), "flops"))


def merge(file: Path, replaces: bool) -> None:
    """Takes the bench's records of another file over, each unless another record has its id."""
    with record.locked(record.RECORDS.parent):
        lines = {json.loads(line)["id"]: line for line in record.lines_of(record.RECORDS)}
        new = {json.loads(line)["id"]: line for line in record.lines_of(file) if '"folders' in line}
        kept = [id for id in new if id in lines and lines[id] != new[id] and not replaces]
        taken = {id: line for id, line in new.items() if id not in kept and lines.get(id) != line}
        lines |= taken
        text = "\n".join(lines[id] for id in sorted(lines)) + "\n"
        record.atomic_write(record.RECORDS, text)
    print(f"{count(len(taken), 'record')} of {len(new)} taken over from {file}")
    if kept:
        print(
            f"{len(kept)} of them are on record already and stay (--replace takes the new ones): {', '.join(kept)}"
        )


if __name__ == "__main__":
    main()
