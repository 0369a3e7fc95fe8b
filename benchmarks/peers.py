"""Plain Vision Transformers of equal size: ours beside timm's, transformers', torchvision's and vit-pytorch's.

    make bench-peers

It runs in an environment of its own that has the peers installed. Every peer runs as shipped (eager, float32, torch's
default AdamW) and in its best mode here: our memory settings, fused AdamW, and the fastest combination of precision,
attention and compilation, found by a short race. Ours runs as `vitreous train` runs it, and once more with equal work:
the peers compute every token in the last layer, of which the head reads only the class token, and our kernels skip
what the head does not read.

Where the machine is faster in bf16, the inference rows of ours compare the kernels in bf16. `vitreous predict`
always computes in float32: the row "vitreous, predict (float32)" times it.

Both networks in training and inference take about 22 minutes on two cores. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import record
from arms import NETS, Mode
from race import add_race_options, compare, comparison_text, race, surroundings

from vitreous import machine as machines
from vitreous.wording import duration

PEERS = ("timm", "transformers", "torchvision", "vit-pytorch")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "vit-pytorch")
PEERS_WITH_TWO_ATTENTIONS = ("timm", "transformers")
OURS, EQUAL_WORK, PREDICT = "vitreous", "vitreous, all tokens", "vitreous, predict (float32)"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=["vit-xs4", "vit-ti16"], choices=list(NETS))
    parser.add_argument("--tasks", nargs="+", default=["train", "infer"], choices=["train", "infer"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    add_race_options(parser)
    record.add_replace_option(parser)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    command = record.this_command("peers.py")
    for net in args.nets:
        for task in args.tasks:
            record.check_replacement(f"peers-{net}-{task}", command, args.replace)
    source_state = record.state()
    machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
    print("\n".join(machine.reasons))
    for net in args.nets:
        for task in args.tasks:
            print(f"\n{net}, {task}", flush=True)
            began = time.monotonic()
            figures = measure(
                net, task, args.peers, args.rounds, args.seconds, args.seed, machine.precision == "bf16"
            )
            print(f"{net}, {task}: {duration(time.monotonic() - began)}", flush=True)
            record.add(
                f"peers-{net}-{task}",
                study="peers",
                arm=f"{net} {task}",
                command=command,
                seed=args.seed,
                **surroundings(machine, PACKAGES),
                figures=figures,
                source_state=source_state,
                replace=args.replace,
            )


def measure(
    net: str, task: str, peers: Sequence[str], rounds: int, seconds: float, seed: int, bf16: bool
) -> dict[str, Any]:
    """Races one network in one task and returns the record's figures.

    `equal_work` and `as_it_runs` say how many times as long as ours a step of each peer takes, beside ours with every
    token of the last layer computed and beside ours as it runs.
    """
    base = {"net": net, "task": task}
    arms: dict[str, dict[str, Any]] = {
        OURS: {**base, "by": "ours"},
        EQUAL_WORK: {**base, "by": "ours", "all_tokens": True},
    }
    if task == "infer":
        arms[PREDICT] = {**base, "by": "ours", "predict": True}
    own = list(arms)
    for by in peers:
        modes = [asdict(mode) for mode in best_mode_candidates(by, task, bf16)]
        arms[f"{by}, as shipped"] = {**base, "by": by}
        arms[f"{by}, best mode"] = {**base, "by": by, "modes": modes}
    result = race(arms, rounds, seed=seed, round_seconds=seconds, required=own)
    others = [name for name in result.ms if name not in own]
    equal_work = {name: compare(result.ms[name], result.ms[EQUAL_WORK]) for name in others}
    as_it_runs = {name: compare(result.ms[name], result.ms[OURS]) for name in others}
    for name in others:
        print(
            f"{name:28} {statistics.median(result.ms[name]):7.0f} ms a step; times ours: "
            f"equal work {comparison_text(equal_work[name])}, as it runs {comparison_text(as_it_runs[name])}"
        )
    best_modes = {
        name.removesuffix(", best mode"): {"mode": ready["mode_text"], "ms_by_mode": ready["ms_by_mode"]}
        for name, ready in result.ready.items()
        if "mode" in ready
    }
    for by, choice in best_modes.items():
        print(f"{by}: best mode is {choice['mode']}")
    return {
        **result.record(),
        "batch": NETS[net][-1],
        "equal_work": equal_work,
        "as_it_runs": as_it_runs,
        "all_tokens": compare(result.ms[EQUAL_WORK], result.ms[OURS]),
        "best_modes": best_modes,
    }


def best_mode_candidates(by: str, task: str, bf16: bool) -> list[Mode]:
    """The modes that race for a peer's best; `bf16` where this machine multiplies faster in it.

    Weights in bf16 are a candidate for inference only: AdamW would lose its small updates in them.
    """
    precisions = ["float32"] if not bf16 else ["autocast", "bf16"] if task == "infer" else ["autocast"]
    attentions = (True, False) if by in PEERS_WITH_TWO_ATTENTIONS else (True,)
    return [
        Mode(tuned=True, fused_attention=fused, precision=precision, compiled=compiled)
        for precision in precisions
        for fused in attentions
        for compiled in (False, True)
    ]


if __name__ == "__main__":
    main()
