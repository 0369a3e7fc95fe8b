"""Recipes: read back as written, and refused with the nearest name where they are wrong."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vitreous import recipe as recipes
from vitreous.errors import VitreousError
from vitreous.model.variants import VARIANTS
from vitreous.recipe import Budget, Recipe, dump, load, parse

ROOT = Path(recipes.__file__).parent / "recipes"


@pytest.fixture
def default() -> Recipe:
    return load("default")


@pytest.mark.parametrize("file", sorted(ROOT.glob("*.toml")), ids=lambda file: file.stem)
def test_every_recipe_file_loads_and_says_its_command(file: Path) -> None:
    recipe = load(file.stem)
    assert recipe.name == file.stem
    assert recipe == load(str(file))
    assert "vitreous train" in recipes.text(file.stem)
    headline = recipes.headline(file.stem)
    assert headline.endswith(".") and "vitreous train" not in headline and headline.count(". ") == 0


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_reads_back_as_it_was_written(name: str) -> None:
    recipe = load(name)
    assert parse(tomllib.loads(dump(recipe.tables()))) == recipe


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_reads_back_as_it_was_written(variant: str) -> None:
    recipe = load("default", {"model.variant": variant})
    assert recipe.model == VARIANTS[variant].architecture
    assert parse(tomllib.loads(dump(recipe.tables()))) == recipe


def test_the_notebooks_values() -> None:
    recipe = load("notebook-cifar10")
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (3e-4, 0.03)
    assert recipe.budget == Budget(180.0, "epochs") and recipe.training.batch_size == 256
    assert (recipe.model.dropout, recipe.model.depth) == (0.2, 6)
    assert (load("notebook-cifar100").model.dropout, load("notebook-cifar100").model.depth) == (0.1, 24)
    assert "3e-4" in recipes.text("notebook-cifar10")


def test_a_runs_recipe_loads_as_a_recipe(default: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(dump({**default.tables(), "resolved": {"fingerprint": "00", "machine": {"threads": 1}}}))
    assert load(str(file)) == default


@pytest.mark.parametrize(
    "value",
    [
        'say "hello"',
        "back\\slash \\n",
        r"C:\Users\new\table",
        "tab\tline\nreturn\r null\x00 bell\x07 escape\x1b delete\x7f",
        "Zürich 猫 🐈 \u2028 \ufeff",
        "'''",
        '"""',
        "# no comment",
        " = [x]",
        "",
    ],
)
def test_odd_strings_survive_the_file(value: str) -> None:
    tables = {"text": value, "list": [value, value], "a table": {value: value, "deeper": {"x": {"y": value}}}}
    assert tomllib.loads(dump(tables)) == tables


def test_a_name_that_is_no_text_is_written_all_the_same() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")  # a file name of another encoding
    assert tomllib.loads(dump({"path": name})) == {"path": "caf\\udce9"}


@pytest.mark.parametrize(
    "value", [3e-4, 1e-6, 0.1, 6e13, 1e22, 5e-324, 1 / 3, -2.5, 7, -7, 2**60, True, False]
)
def test_numbers_keep_their_precision_and_type(value: Any) -> None:
    back = tomllib.loads(dump({"x": value, "list": [value]}))
    assert back == {"x": value, "list": [value]} and type(back["x"]) is type(value)


def test_plain_keys_come_before_tables_and_nothing_is_lost() -> None:
    tables = {"table": {"x": 1, "inner": {}}, "plain": 2, "none": None, "empty": {}}
    assert tomllib.loads(dump(tables)) == {"plain": 2, "table": {"x": 1, "inner": {}}, "empty": {}}


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("depth=6", "model", "depth", 6),
        ("model.depth=6", "model", "depth", 6),
        (" depth = 6 ", "model", "depth", 6),
        ("dropout=0.1", "model", "dropout", 0.1),
        ("dropout=.1", "model", "dropout", 0.1),
        ("dropout=0", "model", "dropout", 0.0),
        ("weight_decay=3e-4", "optimizer", "weight_decay", 3e-4),
        ("flip=random", "augment", "flip", "random"),
        ('flip="random"', "augment", "flip", "random"),
        ("qk_norm=false", "model", "qk_norm", False),
        ("stem_dims=[32, 64]", "model", "stem_dims", (32, 64)),
        ("resized_crop=[0.5, 1]", "augment", "resized_crop", (0.5, 1.0)),
        ("schedule.name=onecycle", "schedule", "name", "onecycle"),
    ],
)
def test_overrides(override: str, section: str, key: str, value: Any) -> None:
    changed = load("default", [override])
    assert getattr(getattr(changed, section), key) == value
    assert type(getattr(getattr(changed, section), key)) is type(value)
    restored = dataclasses.replace(
        getattr(changed, section), **{key: getattr(getattr(load("default"), section), key)}
    )
    assert dataclasses.replace(changed, **{section: restored}) == load("default")  # nothing else has changed


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (["learning_rate=4e-3"], (4e-3, 0.04)),  # the recipe has 2e-3 and 0.02
        (["learning_rate=4e-3", "muon_learning_rate=0.03"], (4e-3, 0.03)),
        (["muon_learning_rate=0.03"], (2e-3, 0.03)),
        (["learning_rate=4e-3", "optimizer.name=adamw"], (4e-3, 0.02)),
        ({"optimizer.learning_rate": 0.0}, (0.0, 0.0)),
    ],
)
def test_one_learning_rate_scales_both(overrides: Any, rates: tuple[float, float]) -> None:
    optimizer = load("default", overrides).optimizer
    assert (optimizer.learning_rate, optimizer.muon_learning_rate) == pytest.approx(rates)


def test_a_learning_rate_in_a_file_is_meant_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(recipes.text("default").replace("learning_rate = 2e-3", "learning_rate = 4e-3"))
    assert load(str(file)).optimizer.muon_learning_rate == 0.02
    assert load("notebook-cifar10", ["learning_rate=1"]).optimizer.muon_learning_rate == 0.02  # AdamW's


def test_overrides_as_a_mapping(default: Recipe) -> None:
    changed = load("default", {"model.depth": 6, "batch_size": 64, "stem_dims": (8, 16)})
    assert (changed.model.depth, changed.training.batch_size, changed.model.stem_dims) == (6, 64, (8, 16))


def test_a_budget_takes_the_place_of_the_recipes_own() -> None:
    assert load("default", ["epochs=3"]).budget == Budget(3.0, "epochs")
    assert load("default", ["budget.flops=6e13"]).budget == Budget(6e13, "flops")


def test_another_variant_brings_its_own_sizes_even_to_a_complete_recipe(default: Recipe) -> None:
    complete = default.tables()
    changed = parse(complete, ["variant=vit-ti4", "depth=2"])
    assert changed.model == dataclasses.replace(VARIANTS["vit-ti4"].architecture, depth=2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("depht=6", ["'depht'", "'depth'"]),
        ("modle.depth=6", ["'modle.depth'", "'model.depth'"]),
        ("model.dept=6", ["'model.dept'", "'model.depth'"]),
        ("optimizer.depth=6", ["'optimizer.depth'"]),
        ("model=vit-ti4", ["'model'", "section", "model.variant"]),
        ("name=adamw", ["optimizer.name", "schedule.name"]),
        ("variant=vit-ti5", ["'vit-ti5'", "'vit-ti4'"]),
        ("variant=3", ["model.variant", "a word", "3"]),
        ("flip=randm", ["augment.flip", "'randm'", "'random'"]),
        ("optimizer.name=adam", ["optimizer.name", "'adamw'"]),
        ("depth=6.5", ["model.depth", "a whole number", "6.5"]),
        ("depth=true", ["model.depth", "a whole number"]),
        ("depth=six", ["model.depth", "a whole number", "'six'"]),
        ("depth=", ["model.depth", "a whole number"]),
        ("depth=0", ["depth", "at least 1"]),
        ("learning_rate=-1", ["optimizer.learning_rate", "from 0 to 10"]),
        (
            "learning_rate=5",
            ["optimizer.learning_rate 5", "optimizer.muon_learning_rate to 50", "at most 10"],
        ),
        ("learning_rate=11", ["optimizer.learning_rate is 11", "from 0 to 10"]),
        ("learning_rate=nan", ["optimizer.learning_rate", "nan"]),
        ("learning_rate=inf", ["optimizer.learning_rate", "inf"]),
        ("norm_eps=nan", ["model.norm_eps", "nan"]),
        (f"learning_rate={10**400}", ["optimizer.learning_rate", "a number"]),
        ("beta1=1", ["optimizer.beta1", "0.9999"]),
        ("drop_last=yes", ["training.drop_last", "true or false", "'yes'"]),
        ("drop_last=1", ["training.drop_last", "true or false"]),
        ("stem_dims=32", ["model.stem_dims", "a list"]),
        ("stem_dims=[32, x]", ["model.stem_dims", "a list"]),
        ("stem_dims=[32, 1.5]", ["model.stem_dims", "a whole number"]),
        ("resized_crop=[1.0, 0.5]", ["resized_crop", "[0.08, 1.0]"]),
        ("resized_crop=[0.5]", ["resized_crop", "[0.08, 1.0]"]),
        ("epochs=2.5", ["2.5 epochs", "whole"]),
        ("minutes=0", ["0 minutes", "above zero"]),
        ("minutes=nan", ["budget.minutes", "nan"]),
        ("split_seed=4294967296", ["data.split_seed", "4294967295"]),
        ("val_fraction=0", ["data.val_fraction", "from 0.001"]),
        ("val_fraction=0.6", ["data.val_fraction", "to 0.5"]),
        ("depth", ["'depth'", "key=value"]),
        ("=6", ["'=6'", "key=value"]),
    ],
)
def test_wrong_overrides_are_refused_in_a_sentence(override: str, words: list[str]) -> None:
    with pytest.raises(VitreousError) as failure:
        load("default", [override])
    sentence = str(failure.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence


def test_two_budgets_are_refused() -> None:
    with pytest.raises(VitreousError, match="exactly one"):
        load("default", ["epochs=1", "minutes=1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[model]\nvariant = "compact"\ndepht = 3\n[budget]\nsteps = 1', ["[model]", "'depht'", "'depth'"]),
        ('[modell]\nvariant = "compact"', ["'modell'", "'model'"]),
        ('[model]\nvariant = "compakt"\n[budget]\nsteps = 1', ["'compakt'", "'compact'"]),
        ("[budget]\nsteps = 1", ["[model]", "variant", "compact"]),
        ('[model]\nvariant = "compact"', ["[budget]", "minutes, epochs, steps, flops"]),
        ('[model]\nvariant = "compact"\n[budget]\nsteps = 1\nepochs = 2', ["[budget]", "exactly one"]),
        ('[model]\nvariant = "compact"\n[budget]\nstepps = 1', ["[budget]", "'stepps'", "'steps'"]),
        ('model = "compact"', ["model", "[model]"]),
        ('name = 3\n[model]\nvariant = "compact"\n[budget]\nsteps = 1', ["name", "a word"]),
        ('[model]\nvariant = ["compact"]\n[budget]\nsteps = 1', ["model.variant", "a word"]),
        ("[model\n", ["not valid TOML", "line 1"]),
    ],
)
def test_wrong_files_are_refused_in_a_sentence(text: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(VitreousError) as failure:
        load(str(file))
    sentence = str(failure.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("defualt", ["'defualt'", "'default'"]),
        ("notebook-cifar01", ["'notebook-cifar10'"]),
        ("notebook", ["notebook-cifar10", "notebook-cifar100"]),
        ("nowhere/mine.toml", ["nowhere/mine.toml", "check the path"]),
    ],
)
def test_unknown_recipes_are_refused_in_a_sentence(name: str, words: list[str]) -> None:
    with pytest.raises(VitreousError) as failure:
        load(name)
    assert all(word in str(failure.value) for word in words), failure.value


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(VitreousError, match="UTF-8"):
        load(str(tmp_path / "picture.toml"))
    with pytest.raises(VitreousError, match="cannot be read"):
        (tmp_path / "folder.toml").mkdir()
        load(str(tmp_path / "folder.toml"))


def test_every_key_has_a_place_in_the_help_and_in_the_written_file(default: Recipe) -> None:
    tables = default.tables()
    for section, keys in recipes.keys().items():
        if section != "budget":
            assert list(keys) == list(tables[section])
