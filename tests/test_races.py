"""Speed benchmarks: what a race records, what the competitors compute, and the page of results."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vitreous import recipe as recipes
from vitreous.model.variants import variant
from vitreous.model.vit import VisionTransformer
from vitreous.native.accelerate import accelerate, plain, unsupported
from vitreous.training.cost import encoder_flops_share

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def small_network(**fields: Any) -> VisionTransformer:
    architecture = dataclasses.replace(variant("vit-xs4").architecture, depth=2, **fields)
    torch.manual_seed(0)
    return VisionTransformer(architecture, image_size=32, num_classes=10).eval()


# ---- races


def test_a_comparison_is_the_median_of_the_ratios_of_the_rounds() -> None:
    from race import compare

    comparison = compare([4.0, 9.0, 2.0], [2.0, 3.0, 2.0])
    assert (comparison["median"], comparison["lowest"], comparison["highest"]) == (2.0, 1.0, 3.0)
    assert compare([8.0, 2.0, 3.0], [4.0, 1.0, 1.0])["median"] == 2.0  # the ratio of the medians is 3
    steady = compare([3.0, 6.0, 9.0], [2.0, 4.0, 6.0])
    assert {steady["median"], steady["lowest"], steady["highest"], *steady["interval"]} == {1.5}


def test_the_interval_holds_the_median_of_most_samples() -> None:
    from race import median_interval

    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(200, 15, generator=generator).add(5).tolist()
    intervals = [median_interval(sample) for sample in samples]
    covered = sum(low <= 5 <= high for low, high in intervals) / len(intervals)
    assert 0.9 <= covered <= 1.0
    assert all(
        min(sample) <= low < high <= max(sample)
        for sample, (low, high) in zip(samples, intervals, strict=True)
    )


def test_the_order_is_a_permutation_that_differs_between_rounds() -> None:
    from race import random_orders

    names = list("abcdefgh")
    orders = random_orders(names, 7, seed=3)
    assert len(orders) == 7 and all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) == 7
    assert orders == random_orders(names, 7, seed=3) != random_orders(names, 7, seed=4)


def test_a_race_runs_every_competitor_in_the_recorded_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import race

    log = tmp_path / "log"
    (tmp_path / "arms.py").write_text(
        "import json, sys\n"
        "arm = json.loads(sys.argv[1])\n"
        "if arm.get('broken'): sys.exit()\n"
        "print(json.dumps({'ready': 1}), flush=True)\n"
        "for line in sys.stdin:\n"
        f"    open({str(log)!r}, 'a').write(arm['name'] + ' ' + line)\n"
        "    print(arm['seconds'] * int(line), flush=True)\n"
    )
    monkeypatch.setattr(race, "HERE", tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    arms = {
        name: {"name": name, "seconds": seconds} for name, seconds in (("a", 0.1), ("b", 0.5), ("c", 4.0))
    }
    said: list[str] = []
    result = race.race({**arms, "d": {"broken": True}}, 4, seed=1, say=said.append)
    assert result.steps == {"a": 20, "b": 4, "c": 3}  # about two seconds, and never fewer than three
    assert result.ms == {
        "a": pytest.approx([100.0] * 4),
        "b": pytest.approx([500.0] * 4),
        "c": pytest.approx([4000.0] * 4),
    }
    assert [line for line in said if line.startswith("d: left out")]
    turns = [line.split() for line in log.read_text().splitlines()][
        3:
    ]  # each runs one step to size its turns
    assert [name for name, _ in turns] == [name for order in result.orders for name in order]
    assert all(int(steps) == result.steps[name] for name, steps in turns)
    stored = json.loads(json.dumps(result.record()))
    names = list(stored["ms"])
    assert [[names[i] for i in order] for order in stored["orders"]] == result.orders


def scripted_competitors(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    import race

    (folder / "arms.py").write_text("import json, sys\narm = json.loads(sys.argv[1])\n" + script)
    monkeypatch.setattr(race, "HERE", folder)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_a_race_stops_if_a_required_competitor_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import race

    scripted_competitors(tmp_path, monkeypatch, "sys.exit()\n")
    with pytest.raises(SystemExit, match="The race needs ours, which does not run here"):
        race.race({"ours": {}, "theirs": {}}, 1, required=["ours"], say=lambda line: None)


def test_what_a_library_prints_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import race

    scripted_competitors(
        tmp_path,
        monkeypatch,
        "print('Welcome!\\n\\n[1]')\n"
        "print(json.dumps({'loss': 2.5}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    print('compiling ...')\n"
        "    print(1.5 * int(line), flush=True)\n",
    )
    result = race.race({"a": {}}, 2, say=lambda line: None)
    assert result.ready == {"a": {"loss": 2.5}} and result.ms == {"a": [1500.0, 1500.0]}


# ---- competitors


def test_the_arm_with_equal_work_computes_every_token_of_the_last_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from arms import read_all_tokens

    from vitreous.native import ops

    model = small_network()
    if reason := unsupported(model):
        pytest.skip(f"no native kernels: {reason}")
    images = torch.randn(3, 3, 32, 32)
    seen: list[torch.Tensor] = []
    encode = ops.encode

    def recording_encode(*args: Any) -> torch.Tensor:
        seen.append(encode(*args))
        return seen[-1]

    monkeypatch.setattr(ops, "encode", recording_encode)
    with torch.no_grad():
        expected = plain(model).embed(images)
        for block in model.blocks:
            expected = block(expected)
        skipping = accelerate(model)(images)
        assert seen.pop().shape[1] == 1
        read_all_tokens(model)
        logits = model(images)
    assert len(seen) == 1 and seen[0].shape == (3, 65, 256)
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits, skipping, rtol=1e-4, atol=1e-5)


def test_equal_work_fails_if_the_last_layer_skips_tokens() -> None:
    from arms import read_all_tokens

    model = small_network()
    read_all_tokens(model)
    with pytest.raises(RuntimeError, match="saw 1 of 65 tokens"):
        model.norm(torch.zeros(2, 1, 256))


@pytest.mark.parametrize(
    "arm",
    [
        {"by": "ours", "task": "train"},
        {"by": "ours", "task": "infer", "all_tokens": True},
        {"by": "ours", "task": "train", "all_tokens": True, "precision": "32"},
        {"by": "ours", "task": "infer", "predict": True},
        {"by": "plain", "task": "train"},
    ],
    ids=str,
)
def test_a_competitor_runs_a_step(arm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import arms

    monkeypatch.setitem(arms.NETS, "vit-xs4", (*arms.NETS["vit-xs4"][:-1], 4))
    step = arms.build({**arm, "net": "vit-xs4"})
    losses = [step() for _ in range(4)]
    assert abs(losses[0] - math.log(10)) < 1.5
    if arm["task"] == "train":
        assert losses[-1] < losses[0]
    else:
        assert len(set(losses)) == 1


def test_the_fastest_mode_that_runs_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    import arms

    seconds = {"float32": 0.02, "autocast": 0.005}

    def build(arm: dict[str, Any], mode: Any) -> Any:
        if mode.compiled:
            raise RuntimeError("no compiler")

        def step() -> float:
            time.sleep(seconds[mode.precision])
            return 0.0

        return step

    monkeypatch.setattr(arms, "build", build)
    monkeypatch.setattr(arms, "CHOICE_SECONDS", 0.0)
    modes = [
        arms.Mode(precision=precision, compiled=compiled)
        for compiled in (True, False)
        for precision in ("float32", "autocast")
    ]
    best, _, ms = arms.choose_mode({"by": "someone"}, modes)
    assert best == arms.Mode(precision="autocast")
    assert len(ms) == 2 and min(ms.values()) >= 5


def test_the_predict_arm_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    import arms

    from vitreous import machine as machines

    monkeypatch.setattr(
        machines, "choose_precision", lambda machine, _choice: machine.decided("", precision="bf16")
    )
    arm = {"by": "ours", "net": "vit-xs4", "task": "infer"}
    assert arms.our_network(arm)[2]
    model, _, bf16 = arms.our_network({**arm, "predict": True})
    assert not bf16 and not model.training


def test_inference_races_predict_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import peers
    from race import Race

    raced: dict[str, Any] = {}

    def race(arms: dict[str, Any], rounds: int, **options: Any) -> Race:
        raced.update(arms=arms, required=options["required"])
        return Race(ms={name: [1.0] for name in arms})

    monkeypatch.setattr(peers, "race", race)
    figures = peers.measure("vit-xs4", "infer", ["timm"], 1, 1.0, 0, bf16=True)
    assert raced["arms"][peers.PREDICT]["predict"] and peers.PREDICT in raced["required"]
    assert set(figures["equal_work"]) == {"timm, as shipped", "timm, best mode"}
    peers.measure("vit-xs4", "train", ["timm"], 1, 1.0, 0, bf16=True)
    assert peers.PREDICT not in raced["arms"]


def test_weights_in_bf16_race_for_inference_only() -> None:
    from peers import best_mode_candidates

    train, infer = (best_mode_candidates("timm", task, bf16=True) for task in ("train", "infer"))
    assert len(train) == 4 and {mode.precision for mode in train} == {"autocast"}
    assert len(infer) == 8 and {mode.precision for mode in infer} == {"autocast", "bf16"}
    assert {mode.precision for mode in best_mode_candidates("timm", "infer", bf16=False)} == {"float32"}
    assert len(best_mode_candidates("torchvision", "train", bf16=True)) == 2
    assert all(mode.tuned for mode in train + infer)


def test_the_notebooks_network_computes_the_same_with_fused_attention() -> None:
    from arms import PlainNetwork

    images = torch.randn(2, 3, 32, 32)
    networks = [PlainNetwork("notebook-cifar10", fused).eval() for fused in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    with torch.enable_grad():  # without gradients torch.nn takes another path
        logits = [network(images) for network in networks]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_the_notebooks_best_mode_has_all_that_torch_offers() -> None:
    import speed

    arms = speed.notebook_arms(bf16=True)
    assert arms[speed.AS_PUBLISHED]["modes"] == [
        {"tuned": False, "fused_attention": False, "precision": "float32", "compiled": False}
    ]
    best = arms[speed.BEST]["modes"]
    assert {(mode["fused_attention"], mode["compiled"]) for mode in best} == {
        (fused, compiled) for fused in (True, False) for compiled in (True, False)
    }
    assert all(mode["tuned"] and mode["precision"] == "autocast" for mode in best)
    assert {name for pair in speed.COMPARISONS for name in pair} == set(arms)


@pytest.mark.slow
def test_ours_and_the_notebooks_network_race() -> None:
    from race import race

    arm = {"net": "notebook-cifar10", "task": "infer"}
    result = race(
        {"ours": {**arm, "by": "ours"}, "plain": {**arm, "by": "plain"}},
        2,
        round_seconds=0.1,
        python=sys.executable,
        say=lambda line: None,
    )
    assert set(result.ms) == {"ours", "plain"}
    assert all(len(values) == 2 and min(values) > 0 for values in result.ms.values())


# ---- the page


def peer_record(median: float) -> dict[str, Any]:
    comparison = {"median": median, "lowest": 1.0, "highest": 9.0, "interval": [median - 0.05, median + 0.05]}
    return {
        "id": "peers-vit-ti16-infer",
        "study": "peers",
        "arm": "vit-ti16 infer",
        "date": "2026-01-02",
        "commit": "0123456789",
        "machine": {"name": "a processor", "threads": 2, "instruction_sets": "avx2"},
        "versions": {"torch": "2.13.0"},
        "figures": {
            "ms": {"vitreous": [90.0, 100.0, 300.0], "vitreous, all tokens": [110.0, 120.0, 130.0]},
            "equal_work": {"timm, best mode": comparison},
            "best_modes": {"timm": {"mode": "bf16 weights, explicit attention, compiled"}},
        },
    }


def cells(lines: list[str], row: str) -> list[str]:
    line = next(line for line in lines if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_shows_what_the_records_say() -> None:
    import speed_page

    tables = speed_page.tables([peer_record(1.234)])
    assert cells(tables["peers-best"], "timm") == ["timm", "–", "–", "–", "1.23 (1.18 to 1.28)"]
    assert cells(tables["peers-best"], "vitreous, as it runs")[-1] == "100 ms"
    assert cells(tables["peers-best"], "vitreous, all tokens")[-1] == "120 ms"
    assert cells(tables["peers-shipped"], "timm")[1:] == ["–"] * 4
    assert cells(tables["peers-modes"], "timm")[-1] == "bf16 weights, explicit attention, compiled"
    assert cells(tables["speed-machines"], "peers-vit-ti16-infer")[2:] == [
        "2",
        "2.13.0",
        "2026-01-02",
        "0123456",
    ]
    for lines in tables.values():
        assert len({line.count("|") for line in lines}) == 1


def test_the_machines_are_those_of_the_pages_tables() -> None:
    import speed_page

    used, superseded = peer_record(1.2), peer_record(1.2) | {"id": "peers", "arm": "all"}
    (row,) = speed_page.machines_table([used, superseded])[2:]
    assert row.startswith("| peers-vit-ti16-infer |")


def test_the_page_holds_every_table_and_is_up_to_date(tmp_path: Path) -> None:
    from speed_page import fill_page

    page = ROOT / "docs" / "speed.md"
    copy = tmp_path / "speed.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    fill_page(copy)
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), "run make leaderboard"


# ---- FLOPs of the encoder


def forward_flops(side: int, *, patch: int, dim: int, depth: int, mlp: int, classes: int) -> tuple[int, int]:
    """FLOPs of the encoder and of the whole forward pass of a plain ViT with a class token, in closed form."""
    patches = math.ceil(side / patch) ** 2
    tokens = patches + 1
    projections = 2 * tokens * dim * (3 * dim + dim + 2 * mlp)
    attention = 2 * 2 * tokens * tokens * dim
    encoder = depth * (projections + attention)
    return encoder, encoder + 2 * patches * 3 * patch**2 * dim + 2 * dim * classes


@pytest.mark.parametrize(
    ("until", "sides"), [((), ()), ((0.25, 0.75), (0.5, 0.75))], ids=["one size", "three sizes"]
)
def test_the_encoders_share_of_flops_has_a_closed_form(
    until: tuple[float, ...], sides: tuple[float, ...]
) -> None:
    schedule = dataclasses.replace(recipes.load("default").schedule, small_until=until, small_sides=sides)
    model = small_network()
    encoder_sum = forward_sum = start = 0.0
    for end, side in zip((*until, 1.0), (*sides, 1.0), strict=True):
        encoder, whole = forward_flops(round(32 * side), patch=4, dim=256, depth=2, mlp=512, classes=10)
        encoder_sum += (end - start) * encoder
        forward_sum += (end - start) * whole
        start = end
    share = encoder_sum / forward_sum
    assert encoder_flops_share(model, schedule) == pytest.approx(share, rel=1e-12)
    assert 0.9 < share < 1


def test_the_encoders_share_of_flops_leaves_the_model_alone() -> None:
    recipe = recipes.load("default")
    model = VisionTransformer(recipe.model, image_size=32, num_classes=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = time.perf_counter()
    share = encoder_flops_share(model, recipe.schedule)
    assert time.perf_counter() - start < 2  # it takes a few hundredths of a second
    assert 0.1 < share < 0.9  # the convolutional stem takes the rest
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
