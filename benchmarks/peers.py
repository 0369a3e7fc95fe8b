"""Plain Vision Transformers of equal size: ours beside timm's, transformers', torchvision's and vit-pytorch's.

    make bench-peers

Runs in an environment of its own, which has the peers. Each runs as shipped (eager float32, torch's AdamW as it
comes), and in its best mode here: our memory settings, fused AdamW, autocast to bf16 where this machine multiplies
faster in it, and what a shorter race finds of its fused attention or not, compiled or not. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from arms import NETS
from race import race, ratio
from record import RECORDS, write

from vitreous import machine as machines
from vitreous.machine import instruction_sets

PEERS = ("timm", "transformers", "torchvision", "vit-pytorch")
TWO_ATTENTIONS = ("timm", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=["vit-xs4", "vit-ti16"], choices=list(NETS))
    parser.add_argument("--tasks", nargs="+", default=["train", "infer"], choices=["train", "infer"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="peers", help="of the record (default: peers)")
    args = parser.parse_args()
    machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
    print("\n".join(machine.reasons))
    results: dict[str, Any] = {}
    for net in args.nets:
        for task in args.tasks:
            print(f"\n{net}, {task}")
            results[f"{net} {task}"] = compare(
                net, task, args.peers, args.rounds, machine.precision == "bf16"
            )
    target = RECORDS / args.name
    plot(results, target / "peers.svg")
    packages = ("torch", "torchvision", "timm", "transformers", "vit-pytorch")
    write(
        target,
        f"python benchmarks/peers.py --nets {' '.join(args.nets)} --tasks {' '.join(args.tasks)} "
        f"--peers {' '.join(args.peers)} --rounds {args.rounds} --name {args.name}",
        machine=machine.record() | {"instruction_sets": instruction_sets()},
        versions={"python": sys.version.split()[0]}
        | {name: importlib.metadata.version(name) for name in packages},
        results=results,
    )


def compare(net: str, task: str, peers: list[str], rounds: int, bf16: bool) -> dict[str, Any]:
    """Each peer as shipped and in its best mode, beside ours, in one race; ratios of step times to ours."""
    arms: dict[str, dict[str, Any]] = {"vitreous": {"by": "ours", "net": net, "task": task}}
    best = {}
    for by in peers:
        base = {"by": by, "net": net, "task": task}
        arms[f"{by}, as shipped"] = {**base, "mode": "shipped"}
        best[by] = best_mode(base, bf16)
        arms[f"{by}, best"] = {**base, "mode": "best", **best[by]}
    times = race(arms, rounds)
    ratios = {name: ratio(each, times["vitreous"]) for name, each in times.items() if name != "vitreous"}
    for name, (middle, low, high) in ratios.items():
        print(f"{name:28} takes {middle:.2f} times as long as ours ({low:.2f} to {high:.2f})")
    return {"ms_a_step": times, "times_ours_median_low_high": ratios, "best_modes": best}


def best_mode(base: dict[str, Any], bf16: bool) -> dict[str, Any]:
    """The fastest of a peer's modes, in the machine's faster precision, by a race of two rounds."""
    attentions = (True, False) if base["by"] in TWO_ATTENTIONS else (True,)
    modes = [
        {"fused": fused, "bf16": bf16, "compile": compiled}
        for fused in attentions
        for compiled in (False, True)
    ]
    times = race({str(mode): {**base, "mode": "best", **mode} for mode in modes}, 2, say=lambda line: None)
    modes = [mode for mode in modes if str(mode) in times]  # without a compiler none is compiled
    mode = min(modes, key=lambda mode: statistics.median(times[str(mode)]))
    print(f"{base['by']}: best is {mode}", flush=True)
    return mode


def plot(results: dict[str, Any], path: Any) -> None:
    """How many times as long as ours each takes, a panel for each network and task."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "vitreous"
    chart, axes = plt.subplots(
        1, len(results), figsize=(3.2 * len(results), 3), layout="constrained", squeeze=False
    )
    for axis, (title, result) in zip(axes[0], results.items(), strict=True):
        for row, (name, (middle, low, high)) in enumerate(result["times_ours_median_low_high"].items()):
            axis.barh(row, middle, color="C0" if "best" in name else "C7")
            axis.plot([low, high], [row, row], "k-", lw=1)
            axis.text(0.05, row, f"{name}: {middle:.2f}", va="center", fontsize=7)
        axis.axvline(1, color="C3", lw=1)
        axis.set(yticks=[], title=title, xlabel="time, ours = 1")
        axis.invert_yaxis()
    chart.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
