"""Comparisons of runs whose answers are known, and of broken, hostile and unfinished ones."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

import vitreous
from vitreous import recipe as recipes
from vitreous.cli import main
from vitreous.compare import (
    aligned,
    cells,
    compare,
    list_runs,
    points,
    runs_text,
    text,
    write_page,
)
from vitreous.errors import VitreousError
from vitreous.run import Predictions, write_json, write_predictions

HOSTILE = '<script>alert("1")</script>\x1b[31m & \'"'


def make_run(
    path: Path,
    right: np.ndarray,
    *,
    seed: int = 1,
    names: list[str] | None = None,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = ("ant", "bee", "cow"),
    split: str = "val",
    overrides: dict[str, Any] | None = None,
    fingerprint: str = "f" * 64,
    rows: int = 8,
    dial: dict[str, Any] | None = None,
    **request: Any,
) -> Path:
    """Writes a finished run that classifies exactly the images correctly that `right` says, bool [N]."""
    recipe = recipes.load("default", {"steps": 100, **(overrides or {})})
    resolved = {
        "fingerprint": fingerprint,
        "image_size": 32,
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {"name": "a processor", "device": "cpu", "threads": 2},
        "versions": {"vitreous": "0.1.0", "torch": "2.13.0"},
        "request": {"data": "insects", "seed": seed, "judge": "both", **request},
        "dial": dial or {},
    }
    path.mkdir(parents=True)
    (path / "recipe.toml").write_text(
        recipes.dump({**recipe.tables(), "resolved": resolved}), encoding="utf-8"
    )
    labels = np.arange(len(right)) % len(classes) if labels is None else labels
    logits = np.eye(len(classes), dtype=np.float32)[np.where(right, labels, (labels + 1) % len(classes))]
    stored = np.array(names or [f"{classes[k]}/{i}.png" for i, k in enumerate(labels)], dtype=np.str_)
    write_predictions(path / "predictions.npz", {split: Predictions(stored, labels.astype(np.int64), logits)})
    scalars = {"acc": float(right.mean()), "loss": 0.5, "cat_f1": float(right.mean())}
    counts = np.bincount(labels, minlength=len(classes))
    per_class = [{"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": int(n)} for n in counts]
    entry = {"figures": scalars, "per_class": per_class, "confusion": np.diag(counts).tolist()}
    write_json(path / "evaluation.json", {"classes": list(classes), split: entry})
    summary = {
        f"{split}_acc": float(right.mean()),
        "status": "finished",
        "parameters": 1000,
        "total_seconds": 61.0,
    }
    write_json(path / "summary.json", summary)
    lines = ["step,epoch,seconds,train_loss,val_loss,val_acc", "1,0.1,0.5,2.0,,"]
    lines += [f"{10 * i},{i},{7 * i},1.0,{2 / i},{right.mean() * i / rows}" for i in range(1, rows + 1)]
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")
    (path / "bundle").mkdir()
    (path / "bundle" / "config.json").write_text("{}")
    return path


def answers(images: int, *wrong: int | range) -> np.ndarray:
    """bool [images]: all right but `wrong`."""
    right = np.ones(images, dtype=bool)
    for each in wrong:
        right[each] = False
    return right


def test_an_option_that_an_earlier_version_lacked_is_no_difference(tmp_path: Path) -> None:
    earlier = make_run(tmp_path / "earlier", answers(90, range(3)), seed=1)
    text = (earlier / "recipe.toml").read_text()
    assert "stem_stride = 1\n" in text
    (earlier / "recipe.toml").write_text(text.replace("stem_stride = 1\n", ""))
    alike = make_run(tmp_path / "alike", answers(90, range(3)), seed=1)
    other = make_run(
        tmp_path / "other", answers(90, range(5)), seed=1, overrides={"patch_size": 8, "stem_stride": 2}
    )
    assert not compare([earlier, alike]).differing
    assert compare([earlier, other]).differing["model.stem_stride"] == ["1", "2"]


def test_the_better_run_is_said_with_its_interval(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", answers(1000, range(300)))
    b = make_run(tmp_path / "b", answers(1000, range(100), range(300, 340)), overrides={"depth": 6})
    found = compare([a, b])
    (pair,) = found.pairs
    assert [group.label for group in found.groups] == ["b", "a"]
    assert pair.difference.value == pytest.approx(0.16)
    assert pair.only == (200, 40)
    assert pair.difference.p == pytest.approx(binomtest(40, 240).pvalue)
    # Agresti and Min, by hand: the same sums with half an image more in each cell
    mean = 160 / 1002
    half = 1.959964 * ((241 / 1002 - mean**2) / 1002) ** 0.5
    low, high = 100 * (mean - half), 100 * (mean + half)
    assert pair.sentence == f"b is better than a by 16.0 points (95 %: {low:.1f} to {high:.1f})."
    assert found.differing["model.depth"] == ["6", recipes_default("depth")]
    assert "seed" not in found.differing
    assert pair.sentence in text(found, 300) and "not of the seed" in text(found, 300)


def recipes_default(key: str) -> str:
    return str(recipes.load("default").tables()["model"][key])


def test_equal_runs_do_not_differ(tmp_path: Path) -> None:
    right = answers(431, range(60))
    found = compare([make_run(tmp_path / "a", right), make_run(tmp_path / "b", right)])
    assert len(found.groups) == 2  # the same seed twice is no second seed
    assert found.sentences[0].startswith(
        "No difference that these 431 images can tell between a and b (0.0 points, 95 %: −0.5 to 0.5"
    )
    assert not found.differing


def test_a_few_images_are_too_few(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", answers(60, 0, 1, 2, 3))
    b = make_run(tmp_path / "b", answers(60), overrides={"depth": 6})
    found = compare([a, b])
    assert found.pairs[0].difference.p == pytest.approx(2 / 16)
    assert found.sentences[0].startswith(
        "No difference that these 60 images can tell between b and a (6.7 points"
    )


def test_images_are_matched_by_name_whatever_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right, other = rng.random(600) < 0.7, rng.random(600) < 0.75
    a, b = make_run(tmp_path / "a", right), make_run(tmp_path / "b", other, overrides={"depth": 6})
    expected = compare([a, b]).pairs[0]
    order = rng.permutation(600)
    with np.load(b / "predictions.npz") as stored:
        turned = {name: array[order] for name, array in stored.items()}
    np.savez(b / "predictions.npz", **turned)
    found = compare([a, b]).pairs[0]
    assert found.difference == expected.difference
    assert found.only == expected.only == (int((other & ~right).sum()), int((right & ~other).sum()))


def test_a_run_on_fewer_images_is_compared_on_those(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(600)]
    a = make_run(tmp_path / "a", answers(600, range(100)), names=names)
    b = make_run(tmp_path / "b", answers(450, range(30)), names=names[:450], fingerprint="0" * 64)
    found = compare([a, b])
    (pair,) = found.pairs
    assert pair.paired and pair.images == (450, 450) and pair.only == (70, 0)
    assert any("on the 450 images that both have" in note for note in found.notes)
    assert any("matched by their names" in note for note in found.notes)


def test_a_changed_label_makes_it_another_image(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(300)]
    a = make_run(tmp_path / "a", answers(300), names=names)
    b = make_run(tmp_path / "b", answers(300), names=[*names[1:9], names[0], *names[9:]])
    assert compare([a, b]).pairs[0].images == (291, 291)


def test_places_in_other_data_are_other_images(tmp_path: Path) -> None:
    places = [f"train:{i}" for i in range(300)]
    a = make_run(tmp_path / "a", answers(300, range(30)), names=places)
    b = make_run(tmp_path / "b", answers(300, range(90)), names=places, fingerprint="0" * 64)
    found = compare([a, b])
    assert not found.pairs[0].paired
    assert "300 and 300 images" not in found.sentences[0]  # ten and thirty percent of errors can be told
    assert found.sentences[0].startswith("a is better than b by 20.0 points")
    assert any("evaluated on other images" in note for note in found.notes)


def test_runs_that_share_few_images_are_compared_unpaired(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", answers(200, range(20)), names=[f"{i}.png" for i in range(200)])
    b = make_run(tmp_path / "b", answers(200, range(23)), names=[f"{i}.png" for i in range(180, 380)])
    found = compare([a, b])
    assert not found.pairs[0].paired
    assert found.sentences[0].startswith("No difference that these 200 and 200 images can tell")


def test_other_classes_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", answers(60))
    b = make_run(tmp_path / "b", answers(60), classes=("ant", "bee", "dog"))
    with pytest.raises(VitreousError, match="only one of them has cow, dog"):
        compare([a, b])


def test_classes_in_another_order_are_the_same(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(99)]
    a = make_run(tmp_path / "a", answers(99), names=names)
    b = make_run(
        tmp_path / "b", answers(99), classes=("bee", "cow", "ant"),
        names=[names[i] for i in (np.arange(99) // 3 * 3 + (np.arange(99) + 1) % 3)],
    )  # fmt: skip
    (pair,) = compare([a, b]).pairs
    assert pair.paired and pair.images == (99, 99)


def test_an_image_whose_name_is_not_its_own_is_left_out(tmp_path: Path) -> None:
    names = [*["ant.png"] * 6, *(f"{i}.png" for i in range(6, 300))]  # two of each class
    others = [*(f"other{i}.png" for i in range(1, 6)), *names[6:299]]
    a = make_run(tmp_path / "a", answers(300), names=names)
    b = make_run(tmp_path / "b", answers(299), names=["ant.png", *others], overrides={"depth": 6})
    assert compare([a, b]).pairs[0].images == (293, 293)


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for recipe, share in (("wide", 0.9), ("deep", 0.7)):
        for seed in (1, 2, 3):
            overrides = {"depth": 7} if recipe == "deep" else {}
            path = tmp_path / f"insects-{recipe}-seed{seed}-001"
            make_run(path, rng.random(2000) < share, seed=seed, overrides=overrides)
    repeated = make_run(tmp_path / "z-again", rng.random(2000) < 0.9, seed=3)
    found = compare([tmp_path])
    assert [(group.label, len(group.runs)) for group in found.groups if len(group.runs) > 1] == [
        ("insects-wide", 3), ("insects-deep", 3),
    ]  # fmt: skip
    assert [group.runs[0].path for group in found.groups if len(group.runs) == 1] == [repeated]
    assert found.differing["seed"][
        found.groups.index(next(g for g in found.groups if g.label == "insects-deep"))
    ] == ("1, 2, 3")
    both = compare(sorted(tmp_path.glob("insects-*")))
    deviation = np.std([run.accuracy for run in both.groups[0].runs], ddof=1)
    assert both.groups[0].deviation == pytest.approx(deviation)
    assert both.sentences[0].startswith("insects-wide (3 seeds) is better than insects-deep (3 seeds) by ")
    assert any("of the images and of the seeds" in note for note in both.notes)
    near = {"learning_rate": 0.00200000001}
    other = make_run(tmp_path / "near", rng.random(2000) < 0.9, seed=4, overrides=near)
    assert len(compare([*sorted(tmp_path.glob("insects-wide-*")), other]).groups) == 2
    only = compare(sorted(tmp_path.glob("insects-wide-*")))
    assert only.pairs == [] and "differ in the seed only" in only.sentences[0]
    assert "standard deviation" in text(only, 80)


def test_with_several_seeds_the_mean_of_unequal_recalls_covers_seeds_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [600, 150, 40])
    seeds = {"wide": (0.8, 0.9, 0.7), "deep": (0.7, 0.8, 0.6)}  # a seed moves all images by 10 points
    for recipe, shares in seeds.items():
        for seed, share in enumerate(shares):
            overrides = {"depth": 7} if recipe == "deep" else {}
            right = rng.random(len(labels)) < share
            make_run(tmp_path / f"{recipe}-{seed}", right, seed=seed, labels=labels, overrides=overrides)
    found = compare([tmp_path])
    assert found.unequal and len(found.pairs) == 1
    recalls, accuracy = found.pairs[0].recalls, found.pairs[0].difference
    assert recalls is not None and recalls.over_seeds and accuracy.over_seeds
    assert any("of the images and of the seeds" in note for note in found.notes)
    # The seeds alone leave about 0.1 √(1/3 + 1/3), with Student's t of 4 degrees of freedom.
    for each in (recalls, accuracy):
        assert not each.told and each.high - each.low > 2 * 2.78 * 0.1 * math.sqrt(2 / 3) * 0.7
    alone = compare([tmp_path / "wide-0", tmp_path / "deep-0"])
    assert alone.pairs[0].recalls is not None and not alone.pairs[0].recalls.over_seeds


def test_unfinished_and_damaged_runs_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    make_run(runs / "a", answers(60))
    make_run(runs / "b", answers(60, 1), overrides={"depth": 6})
    (make_run(runs / "going", answers(60)) / "predictions.npz").unlink()
    (make_run(runs / "broken", answers(60)) / "predictions.npz").write_bytes(b"PK nothing")
    (make_run(runs / "cut", answers(60)) / "recipe.toml").write_text("[model")
    (runs / "notes").mkdir()
    strange = 'name = 3\nmodel = 4\nbudget = "x"\nresolved = [1]\n'
    (make_run(runs / "strange", answers(60)) / "recipe.toml").write_text(strange)
    assert main(["compare", "runs"]) == 3
    shown = capsys.readouterr()
    for name in ("going", "broken", "cut", "strange"):
        assert f"left out: runs/{name}: " in shown.err
    assert "notes" not in shown.err
    assert "2 runs on insects" in shown.out
    assert main(["compare", "runs/a", "runs/b", "--json"]) == 0
    assert main(["compare", "runs/a", "runs/going"]) == 2
    assert "going has no predictions.npz yet" in capsys.readouterr().err
    assert main(["compare", "runs/a", "runs/a"]) == 2
    assert main(["compare", "runs/a", "runs/none"]) == 2
    capsys.readouterr()
    assert main(["compare", "runs/a", "runs/b", "compare.html"]) == 3  # as a shell may expand *
    assert "compare.html is a file" in capsys.readouterr().err


def test_the_split_is_one_that_all_runs_predicted(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, answers(60)) for name in "ab")
    c, d = (make_run(tmp_path / name, answers(60), split="test") for name in "cd")
    assert compare([a, b]).split == "val"
    assert compare([c, d]).split == "test"
    assert any("flatter" in note for note in compare([c, d], "test").notes)
    with pytest.raises(VitreousError, match="No split was predicted by all runs"):
        compare([a, c])
    with pytest.raises(VitreousError, match="kept no predictions on test"):
        compare([a, b], "test")
    with pytest.raises(VitreousError, match="no split 'train'"):
        compare([a, b], "train")


def test_twelve_runs_are_compared_with_the_best_for_all_pairs_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    base = rng.random(1500) < 0.8
    for i in range(12):
        flipped = base ^ (rng.random(1500) < 0.02 * i)
        make_run(tmp_path / f"run{i}", flipped, overrides={"depth": i + 1})
    found = compare([tmp_path])
    assert len(found.pairs) == 11
    alone = compare([found.pairs[5].better.runs[0].path, found.pairs[5].other.runs[0].path]).pairs[0]
    assert found.pairs[5].difference.p == pytest.approx(min(1, 66 * alone.difference.p))
    assert found.pairs[5].difference.low < alone.difference.low
    assert any("66" in note for note in found.notes)
    page = write_page(found, tmp_path / "page.html")
    assert page.stat().st_size < 2_000_000
    html = page.read_text(encoding="utf-8")
    assert len(re.findall(r'<g class="line ', html)) == 3 * 12
    # Every group has a look of its own, also the ones beyond the colours.
    assert len(set(re.findall(r'<g class="line (g\d d\d)"', html))) == 12
    assert max(map(cells, text(found, 80).splitlines())) <= 80


def test_names_are_escaped_and_printable(tmp_path: Path) -> None:
    # A slash would make two folders of it.
    a = make_run(tmp_path / HOSTILE.replace("/", "|"), answers(60), value_range="<b>&</b>")
    b = make_run(tmp_path / "b", answers(60, 3), classes=("ant", "bee", "cow"), value_range="0,1")
    found = compare([a, b])
    html = write_page(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in html and "<b>" not in html and "\x1b" not in html
    assert "&lt;script&gt;" in html and "&lt;b&gt;" in html
    assert "\x1b" not in text(found, 200) + runs_text(list_runs(tmp_path), 200)
    assert "Content-Security-Policy" in html and "http://" not in html and "https://" not in html


def test_a_page_replaces_only_a_page(tmp_path: Path) -> None:
    found = compare([make_run(tmp_path / "a", answers(60)), make_run(tmp_path / "b", answers(60))])
    page = write_page(found, tmp_path / "page.html")
    assert write_page(found, page) == page
    own = tmp_path / "thesis.html"
    own.write_text("mine")
    with pytest.raises(VitreousError, match="is no page of vitreous compare"):
        write_page(found, own)
    assert own.read_text() == "mine"
    with pytest.raises(VitreousError, match="is a folder"):
        write_page(found, tmp_path)


def test_trained_runs_are_compared_without_a_read_of_test(
    tmp_path: Path, arrays: Any, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        vitreous.train(arrays, steps=4, seed=seed, judge="val", out=tmp_path / f"tiny-{seed}", **tiny)
    reads = [path.name for path in tmp_path.rglob("test_reads.json")]
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["compare", str(tmp_path), "--json", "--out", str(page)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["split"] == "val" and page.exists()
    (group,) = shown["groups"]
    for run in group["runs"]:
        assert run["accuracy"] == pytest.approx(vitreous.Run(run["run"]).summary["val_acc"])
    assert group["label"] == "tiny"
    assert [path.name for path in tmp_path.rglob("test_reads.json")] == reads == []
    records = list_runs(tmp_path)
    assert [record["status"] for record in records] == ["finished", "finished"]
    assert all("embed_dim=32" in record["changes"].split() for record in records)


def test_differences_are_not_rounded_to_nothing() -> None:
    assert points(0.012, 0.006, 0.018) == ("1.2", "0.6", "1.8")
    assert points(0.003, -0.011, 0.017) == ("0.3", "−1.1", "1.7")
    assert points(0.0007, 0.0003, 0.0011) == ("0.07", "0.03", "0.11")
    assert points(0.0, -0.004, 0.004) == ("0.0", "−0.4", "0.4")


# ---- vitreous runs


def test_all_runs_are_listed_and_what_is_wrong_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "good", answers(60, 1), overrides={"depth": 6})
    (make_run(tmp_path / "going", answers(60)) / "summary.json").unlink()
    (make_run(tmp_path / "cut", answers(60)) / "recipe.toml").write_text("[model")
    (make_run(tmp_path / "odd", answers(60)) / "summary.json").write_text(
        '{"val_acc": "x", "parameters": null}'
    )
    numbers = (
        '{"status": "finished", "val_acc": NaN, "test_acc": Infinity, "total_seconds": "x", "parameters": 1'
    )
    numbers += "0" * 400 + "}"
    (make_run(tmp_path / "nan", answers(60)) / "summary.json").write_text(numbers)
    strange = '[resolved]\nimage_size = "x"\nstarted = 5\nfingerprint = 3\n[resolved.request]\ndata = [1]\n[budget]\n'
    (make_run(tmp_path / "strange", answers(60)) / "recipe.toml").write_text(strange)
    dated = strange.replace("[1]", '"x"').replace("started = 5", "started = 2026-01-01\nname = 1979-05-27")
    (make_run(tmp_path / "dated", answers(60)) / "recipe.toml").write_text(f'name = "default"\n{dated}')
    (make_run(tmp_path / "lost", answers(60)) / "recipe.toml").unlink()
    (make_run(tmp_path / "bare", answers(60)) / "predictions.npz").unlink()
    (tmp_path / "pictures").mkdir()
    found = {record["name"]: record for record in list_runs(tmp_path)}
    assert sorted(found) == ["bare", "cut", "dated", "going", "good", "lost", "nan", "odd", "strange"]
    good = found["good"]
    assert (
        good["val"] == pytest.approx(59 / 60)
        and good["budget"] == "100 steps"
        and good["changes"] == "depth=6"
    )
    assert found["going"]["status"] == "not finished, 80 steps"
    assert (
        found["cut"]["status"].startswith("damaged: ")
        and "recipe.toml cannot be read" in found["cut"]["status"]
    )
    assert "is not a run folder" in found["lost"]["status"]
    assert found["odd"]["val"] is found["nan"]["val"] is found["nan"]["test"] is None
    assert found["strange"]["status"].startswith("damaged: ")
    assert found["bare"]["status"] == "finished, lacks predictions.npz"
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 9
    assert main(["runs", str(tmp_path)]) == 0
    assert "98.3" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "pictures")]) == 0
    assert "holds no runs" in capsys.readouterr().err
    assert main(["runs", str(tmp_path / "none")]) == 2
    for width in (60, 80, 120, 200):
        assert max(map(cells, runs_text(list(found.values()), width).splitlines())) <= width


def test_what_the_dial_chose_is_no_change(tmp_path: Path) -> None:
    chosen = {"embed_dim": 128, "depth": 4, "num_heads": 2, "mlp_dim": 256, "stem_dims": [40, 128], "crop": 4}
    dial = {f"{'augment' if key == 'crop' else 'model'}.{key}": [value] for key, value in chosen.items()}
    make_run(tmp_path / "a", answers(60), overrides=chosen, dial=dial)
    make_run(
        tmp_path / "b", answers(60), overrides={**chosen, "learning_rate": 0.004, "cutout": 8}, dial=dial
    )
    changes = [record["changes"] for record in list_runs(tmp_path)]
    assert changes[0] == ""
    assert changes[1] == "cutout=8 learning_rate=0.004 muon_learning_rate=0.04"


def test_a_table_fits_its_width() -> None:
    rows = [["a-very-long-name-of-a-run-seed1", "one", "two"], ["犬" * 20, "three", "four"]]
    lines, out = aligned(["name", "first", "second"], rows, 40, ("first",))
    assert out == [] and max(map(cells, lines)) <= 40
    assert lines[1].startswith("a-very-long") and "…" in lines[1] and "seed1" in lines[1]
    narrow, out = aligned(["name", "first", "second"], rows, 30, ("first",))
    assert out == ["first"] and max(map(cells, narrow)) <= 30
    wide, _ = aligned(["name", "first", "second"], rows, 1000, ("first",))
    assert wide[1] == "a-very-long-name-of-a-run-seed1           one    two"


# ---- in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_phone_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(9):
        name = f"an-extraordinarily-long-name-of-a-run-that-does-not-end-{i}" + "w" * 60
        make_run(tmp_path / "runs" / name, rng.random(900) < 0.8, overrides={"depth": i + 1})
    page = write_page(compare([tmp_path / "runs"]), tmp_path / "page.html")
    # The page itself has no script, so a frame of a phone's width is measured from outside.
    (tmp_path / "frame.html").write_text(
        """<iframe id="f" src="page.html" style="width:390px;height:2000px;border:0"></iframe><script>onload = () => {
        const d = document.getElementById("f").contentDocument, html = d.documentElement;
        document.title = html.scrollWidth + " of " + html.clientWidth + ", h1: " + d.querySelector("h1").textContent;
        }</script>"""
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,2100"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "CONSOLE" not in done.stderr
    width = re.search(r"<title>(\d+) of (\d+), h1: an-extra", done.stdout)
    assert width and width[1] == width[2] and int(width[2]) <= 390, done.stdout[:300]
    assert page.stat().st_size < 2_000_000
