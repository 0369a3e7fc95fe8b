"""Exports answer as the model does, by the libraries that load them, and every sabotage is caught."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import vitreous
from conftest import TINY
from sample_data import encoded, write_files
from vitreous import cli
from vitreous import export as exports
from vitreous.bundle import Bundle, Confusion, save_bundle
from vitreous.data.store import Split
from vitreous.errors import VitreousError
from vitreous.evaluation import open_split
from vitreous.export import Answers, Material, Picture, Target, awkward, card, export, proof
from vitreous.export import onnx as onnx_target
from vitreous.export import timm as timm_target
from vitreous.export import transformers as transformers_target
from vitreous.export.plain import check
from vitreous.export.proof import prove
from vitreous.model.variants import VARIANTS, Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess
from vitreous.run import Run, read_test_reads
from vitreous.statistics import accuracy_text

SIZE = 16
CONV = Architecture(4, 48, 1, 3, 64, stem="conv", stem_dims=(16, 32), pool="attention", qk_norm=True)
PLAIN = Architecture(4, 48, 2, 3, 64, norm_eps=1e-6)
NAMES = ("ant", "bee", '<b>"cat"</b>', "ünï", "e: *")


def bundle_of(architecture: Architecture, **settings: Any) -> Bundle:
    torch.manual_seed(0)
    model = VisionTransformer(architecture, SIZE, len(NAMES)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # layers that start at zero would hide differences
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return Bundle(model, NAMES, mean, std, Preprocess(SIZE, **settings), temperature=1.7)


def saved(folder: Path, bundle: Bundle) -> Path:
    save_bundle(bundle, folder)
    return folder


@pytest.fixture(scope="module")
def everything() -> list[Picture]:
    return list(awkward.pictures(SIZE))


@pytest.fixture(scope="module")
def few(everything: list[Picture]) -> list[Picture]:
    """The awkward files without the largest, which take half of the time."""
    return [picture for picture in everything if picture.kind != "12 megapixels"]


@pytest.fixture
def fast(few: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "awkward_files", lambda size: iter(few))


@pytest.fixture(scope="module")
def conv_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle with its written ONNX export, to be copied."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    bundle, folder = bundle_of(CONV, fit="crop"), tmp_path_factory.mktemp("onnx")
    onnx_target.write(Material(bundle, None), folder)
    return bundle, folder


@pytest.fixture(scope="module")
def plain_transformers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    pytest.importorskip("transformers")
    bundle, folder = bundle_of(PLAIN, fit="stretch"), tmp_path_factory.mktemp("transformers")
    transformers_target.write(Material(bundle, None), folder)
    return bundle, folder


# ---- awkward files


def test_there_are_enough_awkward_files_and_always_the_same(everything: list[Picture]) -> None:
    assert len(everything) >= 200
    assert everything[:50] == list(islice(awkward.pictures(SIZE), 50))
    assert set(awkward.PLAIN) < {picture.kind for picture in everything}
    images = [Image.open(BytesIO(each.content)) for each in everything if each.kind != "damaged"]
    assert max(image.width * image.height for image in images) >= 12e6
    assert {image.format for image in images} >= {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"}
    assert {image.mode for image in images} >= {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}
    assert {image.getexif().get(0x0112) for image in images} >= set(range(1, 9))
    assert len({image.info["icc_profile"] for image in images if image.info.get("icc_profile")}) == 6


def test_the_model_reads_every_awkward_file_but_the_damaged_ones(few: list[Picture]) -> None:
    bundle = bundle_of(CONV)
    for picture in few:
        if picture.kind == "damaged":
            with pytest.raises(VitreousError):
                bundle.logits(picture.content)
        else:
            bundle.preprocess.batch(picture.content, exports.read_image)


def test_profiles_move_colours_and_plain_files_have_none(few: list[Picture]) -> None:
    applied, ignored = Preprocess(SIZE), Preprocess(SIZE, profiles="ignored")
    for picture in few:
        if picture.kind == "damaged":
            continue
        one, other = (each.batch(picture.content, exports.read_image) for each in (applied, ignored))
        if picture.kind == "colour profile":
            assert not np.array_equal(one, other), picture.name
        else:
            assert np.array_equal(one, other), picture.name


# ---- sabotage: a proof that cannot fail proves nothing


def edit_json(file: str, key: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        assert content[key] != value
        (folder / file).write_text(json.dumps({**content, key: value}))

    return edit


def edit_text(*edits: tuple[str, str, str]) -> Callable[[Path], None]:
    """Replaces in (file, old, new)."""

    def edit(folder: Path) -> None:
        for file, old, new in edits:
            text = (folder / file).read_text()
            assert text.count(old) == 1
            (folder / file).write_text(text.replace(old, new))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def swap_red_and_blue(weights: dict[str, torch.Tensor]) -> None:
    name = "vit.embeddings.patch_embeddings.projection.weight"
    weights[name] = weights[name].flip(1).contiguous()


def forget_the_temperature(weights: dict[str, torch.Tensor]) -> None:
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name] * 1.7


TRANSFORMERS_SABOTAGES = {
    "wrong mean": (
        edit_json("preprocessor_config.json", "image_mean", [0.5, 0.5, 0.6]),
        "probability differs",
    ),
    "red and blue": (edit_weights(swap_red_and_blue), "probability differs"),
    "wrong temperature": (edit_weights(forget_the_temperature), "probability differs"),
    "nearest": (edit_json("preprocessor_config.json", "resample", 0), "levels on average"),
}
PREPROCESS, DECODE = "reading/vitreous/preprocess.py", "reading/vitreous/data/decode.py"
ONNX_SABOTAGES = {
    "red and blue": (
        edit_text(("predict.py", '{"images": pixels}', '{"images": pixels[..., ::-1].copy()}')),
        "probability differs",
    ),
    # Both readers turn images, so both have to forget it.
    "no turn": (
        edit_text(
            (DECODE, "        _turn_upright(image)\n", ""),
            (PREPROCESS, "            image = upright(image)\n", ""),
        ),
        "EXIF orientation",
    ),
    "crop off by one": (
        edit_text((PREPROCESS, "left, top = (width - side) // 2,", "left, top = (width - side + 1) // 2,")),
        "levels on average",
    ),
    "nearest": (edit_text((PREPROCESS, "Resampling.BICUBIC", "Resampling.NEAREST")), "levels on average"),
    "profiles forgotten": (
        edit_text((PREPROCESS, 'if self.profiles == "applied"', 'if self.profiles == "forgotten"')),
        "colour profile",
    ),
    "half an image": (
        edit_text(
            (
                DECODE,
                "\nimport ctypes\n",
                "\nfrom PIL import ImageFile\nImageFile.LOAD_TRUNCATED_IMAGES = 1\nimport ctypes\n",
            )
        ),
        "reads .*damaged, .*and the model does not",
    ),
}


def proves(target: Target, name: str, bundle: Bundle, folder: Path) -> proof.Proof:
    return prove(target, name, bundle, folder, iter(()), 0)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("sabotage", TRANSFORMERS_SABOTAGES)
def test_a_sabotaged_transformers_export_is_caught(
    sabotage: str, plain_transformers: tuple[Bundle, Path], tmp_path: Path
) -> None:
    bundle, written = plain_transformers
    folder = shutil.copytree(written, tmp_path / "copy")
    edit, sentence = TRANSFORMERS_SABOTAGES[sabotage]
    edit(folder)
    with pytest.raises(VitreousError, match=sentence):
        proves(transformers_target.TARGET, "transformers", bundle, folder)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("sabotage", ONNX_SABOTAGES)
def test_a_sabotaged_onnx_export_is_caught(
    sabotage: str, conv_onnx: tuple[Bundle, Path], tmp_path: Path
) -> None:
    bundle, written = conv_onnx
    folder = shutil.copytree(written, tmp_path / "copy")
    edit, sentence = ONNX_SABOTAGES[sabotage]
    edit(folder)
    with pytest.raises(VitreousError, match=sentence):
        proves(onnx_target.TARGET, "onnx", bundle, folder)


# ---- the targets


def images(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("number", [1, 7])
def test_onnxruntime_gives_the_models_probabilities(conv_onnx: tuple[Bundle, Path], number: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle, folder = conv_onnx
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (probabilities,) = session.run(None, {"images": images(number)})
    np.testing.assert_allclose(probabilities, bundle.predict_proba(images(number)), atol=1e-5)
    assert [session.get_inputs()[0].type, session.get_inputs()[0].name] == ["tensor(uint8)", "images"]
    facts = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(facts["classes"])) == NAMES
    assert Preprocess(**json.loads(facts["preprocess"])) == bundle.preprocess
    assert str(Path(vitreous.__file__).parent) not in (folder / "model.onnx").read_bytes().decode("latin1")


def test_predict_py_runs_without_vitreous_and_torch(conv_onnx: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, written = conv_onnx
    folder = shutil.copytree(written, tmp_path / "export")
    picture = tmp_path / "a picture.jpg"
    picture.write_bytes(encoded(Image.fromarray(images(1)[0]).resize((60, 40)), "JPEG"))
    (tmp_path / "none.png").write_text("no image")
    # Modules that people who get the folder may not have.
    guard = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'safetensors', 'pytorch_lightning']));"
    )
    program = f"{guard} runpy.run_path({str(folder / 'predict.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-IB", "-c", program, str(picture), str(tmp_path / "none.png")],
        capture_output=True, text=True,
    )  # fmt: skip
    probabilities = bundle.predict_proba(picture)[0]
    path, name, probability = done.stdout.rstrip("\n").split("\t")
    assert [path, name] == [str(picture), NAMES[probabilities.argmax()]]
    assert float(probability) == pytest.approx(probabilities.max(), abs=1e-4)
    assert "none.png cannot be used" in done.stderr and done.returncode == 3


def test_the_8_bit_model_is_close_and_measured(conv_onnx: tuple[Bundle, Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle, written = conv_onnx
    folder = shutil.copytree(written, tmp_path / "export")
    part = Split(images(200), bundle.predict(images(200)), [""] * 200)
    sentence = onnx_target.write_int8(folder, part)
    session = onnxruntime.InferenceSession(folder / "model-int8.onnx")
    (probabilities,) = session.run(None, {"images": images(200)})
    right = int((probabilities.argmax(axis=1) == part.labels).sum())
    assert sentence.startswith(f"model-int8.onnx classifies {right:,} of 200 validation images correctly")
    assert right >= 198 and 0 < np.abs(probabilities - bundle.predict_proba(images(200))).max() < 0.1
    assert session.get_modelmeta().custom_metadata_map["classes"] == json.dumps(NAMES, ensure_ascii=False)
    assert (folder / "model-int8.onnx").stat().st_size < 0.8 * (folder / "model.onnx").stat().st_size
    assert sentence.endswith("is of model.onnx alone.")


def test_an_8_bit_model_that_cannot_be_measured_is_refused(
    conv_onnx: tuple[Bundle, Path], tmp_path: Path
) -> None:
    save_bundle(conv_onnx[0], tmp_path / "bundle")
    with pytest.raises(VitreousError, match="no validation images"):
        export(tmp_path / "bundle", "onnx", tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()


def test_an_8_bit_model_that_loses_accuracy_is_refused(
    conv_onnx: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    folder = shutil.copytree(conv_onnx[1], tmp_path / "export")
    monkeypatch.setattr(onnx_target, "INT8_POINTS", -1)  # it would have to be better
    part = Split(images(50), conv_onnx[0].predict(images(50)), [""] * 50)
    with pytest.raises(VitreousError, match="points of accuracy on validation"):
        onnx_target.write_int8(folder, part)


def test_transformers_pipeline_gives_the_models_probabilities(
    plain_transformers: tuple[Bundle, Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    bundle, folder = plain_transformers
    (tmp_path / "image.png").write_bytes(encoded(np.kron(images(1)[0], np.ones((3, 4, 1), np.uint8))))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    classify = transformers.pipeline(
        "image-classification", model=str(folder), image_processor=processor, top_k=len(NAMES)
    )
    answers = {answer["label"]: answer["score"] for answer in classify(str(tmp_path / "image.png"))}
    expected = bundle.predict_proba(tmp_path / "image.png")[0]
    assert answers == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-5)


def snippet(target: Target, folder: Path) -> str:
    """The program on the card of a written export, beside an image that it can classify."""
    (folder / "image.jpg").write_bytes(encoded(images(1)[0], "JPEG", quality=100, subsampling=0))
    result = proof.unproven(target, "name", "pip install name")
    card.write(Material(bundle_of(PLAIN), None), target, "name", result, [], folder / "README.md")
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return program


def test_the_program_on_the_card_of_an_onnx_export_runs(
    conv_onnx: tuple[Bundle, Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    bundle, written = conv_onnx
    folder = shutil.copytree(written, tmp_path / "export")
    program = snippet(onnx_target.TARGET, folder)
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=folder, capture_output=True, text=True)
    probabilities = bundle.predict_proba(folder / "image.jpg")[0]
    assert done.stdout.split()[:-1] == NAMES[probabilities.argmax()].split(), done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(probabilities.max(), abs=1e-5)


def test_the_program_on_the_card_of_a_transformers_export_runs(
    plain_transformers: tuple[Bundle, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, written = plain_transformers
    folder = shutil.copytree(written, tmp_path / "export")
    program = snippet(transformers_target.TARGET, folder)
    monkeypatch.chdir(folder)
    exec(program, {})
    best = bundle.predict_proba(folder / "image.jpg")[0]
    (answers,) = re.findall(r"^\[\{.*\}\]$", capsys.readouterr().out, re.MULTILINE)
    assert f"'label': {NAMES[best.argmax()]!r}" in answers
    assert f"{best.max():.4f}"[:-1] in answers


TIMM_NETWORKS = {
    "class token": PLAIN,
    "mean": replace(PLAIN, pool="mean", pos_embed="sine", qk_norm=True, mlp_dim=67),
    "no norm": replace(PLAIN, final_norm=False, qkv_bias=False),
}


@pytest.mark.parametrize("network", TIMM_NETWORKS)
@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.usefixtures("fast")
def test_timm_loads_its_export(network: str, fit: str, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed here; it comes with torchvision")
    bundle = bundle_of(TIMM_NETWORKS[network], fit=fit, profiles="ignored")
    timm_target.write(Material(bundle, None), tmp_path)
    result = proves(timm_target.TARGET, "timm", bundle, tmp_path)
    assert ("not square" in result.read_otherwise()) == (fit == "crop")


@pytest.mark.parametrize("network", TIMM_NETWORKS)
def test_a_timm_export_has_timms_names_and_a_calibrated_head(network: str, tmp_path: Path) -> None:
    """The names and shapes of timm's VisionTransformer, where timm itself cannot be asked."""
    bundle = bundle_of(TIMM_NETWORKS[network])
    timm_target.write(Material(bundle, None), tmp_path)
    config, weights = (
        json.loads((tmp_path / "config.json").read_text()),
        load_file(tmp_path / "model.safetensors"),
    )
    args = config["model_args"]
    tokens = (args["img_size"] // args["patch_size"]) ** 2 + args["class_token"]
    assert weights["pos_embed"].shape == (1, tokens, args["embed_dim"])
    assert ("cls_token" in weights) == args["class_token"] == (config["global_pool"] == "token")
    width = int(args["embed_dim"] * args["mlp_ratio"])
    assert weights["blocks.0.mlp.fc1.weight"].shape == (width, args["embed_dim"])
    assert ("blocks.0.attn.q_norm.weight" in weights) == args["qk_norm"]
    assert ("norm.weight" in weights) == args["final_norm"]
    torch.testing.assert_close(weights["head.bias"] * 1.7, bundle.model.state_dict()["head.bias"])
    assert tuple(config["label_names"]) == NAMES


@pytest.mark.parametrize(
    ("to", "network", "sentence"),
    [
        (
            "timm",
            CONV,
            "a convolutional stem and attention pooling; export to onnx or html, or train .* vit-xs4",
        ),
        ("transformers", CONV, "normalised queries and keys"),
        ("transformers", replace(PLAIN, pool="mean"), "no class token"),
        ("transformers", replace(PLAIN, final_norm=False), "no final norm"),
        ("transformers", replace(PLAIN, head_hidden=8), "a hidden layer in the head"),
        ("timm", replace(PLAIN, embed_activation="relu"), "an activation between"),
        ("timm", replace(PLAIN, patch_size=5), "patches of 5 pixels that do not divide 16"),
        ("timm", replace(PLAIN, norm_eps=1e-5), "layer norms of epsilon 1e-05"),
    ],
)
def test_networks_that_a_library_does_not_have_are_refused(
    to: str, network: Architecture, sentence: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "model", bundle_of(network))
    with pytest.raises(VitreousError, match=sentence):
        export(path, to, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_variants_that_a_refusal_names_can_be_exported(tmp_path: Path) -> None:
    with pytest.raises(VitreousError) as refusal:
        export(saved(tmp_path / "model", bundle_of(CONV)), "transformers", tmp_path / "out")
    named = [name for name in VARIANTS if re.search(rf"\b{name}\b", str(refusal.value))]
    assert "vit-s4" in named and "compact" not in named
    for name in named:
        variant = VARIANTS[name]
        network = replace(variant.architecture, depth=1)
        bundle = replace(bundle_of(PLAIN), preprocess=Preprocess(variant.image_size))
        with torch.device("meta"):
            bundle = replace(bundle, model=VisionTransformer(network, variant.image_size, 5))
        check(bundle, "transformers", transformers_target.inexpressible)
        check(bundle, "timm", timm_target.inexpressible)


def test_bars_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", bundle_of(PLAIN, fit="pad"))
    with pytest.raises(VitreousError, match="fit pad"):
        export(path, "timm", tmp_path / "out")


# ---- the way in


def perfect(bundle: Bundle, **changes: Any) -> Target:
    """A target that answers by the model itself."""

    def answer(folder: Path, pictures: Sequence[Picture]) -> Answers:
        assert (folder / "model").read_text() == "here"
        pixels = np.zeros((len(pictures), SIZE, SIZE, 3), np.uint8)
        probabilities = np.full((len(pictures), len(NAMES)), np.nan, np.float32)
        for i, picture in enumerate(pictures):
            if picture.kind != "damaged":
                pixels[i] = bundle.preprocess.batch(picture.content, exports.read_image)
                probabilities[i] = bundle.predict_proba(pixels[i][None])
        return Answers(probabilities, pixels, "itself 1.0")

    def write(material: Material, folder: Path) -> None:
        (folder / "model").write_text("here")

    target = Target(write, answer, lambda: "", 1e-5, lambda bundle, kind: 0.0, "itself")
    return replace(target, **changes)


@pytest.fixture
def itself(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a target in the place of the one for ONNX."""
    return lambda target: monkeypatch.setattr(onnx_target, "TARGET", target)


@pytest.mark.usefixtures("fast")
def test_a_bundle_is_proven_on_awkward_files_alone(
    tmp_path: Path, few: list[Picture], itself: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(CONV)
    itself(perfect(bundle))
    words = ["export", str(saved(tmp_path / "model", bundle)), "--to", "onnx", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert f"proven on {len(few)} awkward files with itself 1.0" in shown.out
    assert "generated files alone" in shown.out
    result = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert result["verdict"] == "proven"
    assert result["files"] == {"of the run": 0, "awkward": len(few)}
    assert sum(kind["files"] for kind in result["kinds"].values()) == len(few)
    assert all(kind["equal"] == kind["files"] for kind in result["kinds"].values())
    assert not re.search("acc", json.dumps(result))  # a proof reads no labels
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.usefixtures("fast")
def test_an_export_that_answers_differently_leaves_nothing(
    tmp_path: Path, itself: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(CONV)
    itself(perfect(replace(bundle, temperature=2.0)))
    path = saved(tmp_path / "model", bundle)
    (tmp_path / "empty").mkdir()
    for out in ("empty", "new/deep"):
        assert cli.main(["export", str(path), "--to", "onnx", "--out", str(tmp_path / out)]) == 2
        assert re.search(r"for the pixels of \d{3} .*, a probability differs", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == sorted([path, *path.iterdir(), tmp_path / "empty"])


@pytest.mark.parametrize("content", ["a file of its own", None])
def test_a_folder_with_something_in_it_stays(tmp_path: Path, content: str | None) -> None:
    path = saved(tmp_path / "model", bundle_of(CONV))
    out = tmp_path / "out"
    if content is None:
        out.write_text("a file")
    else:
        write_files(out, {"mine.txt": content.encode()})
    with pytest.raises(VitreousError, match="out is not empty; give another --out"):
        export(path, "onnx", out)
    assert (out / "mine.txt" if content else out).read_text() == content or "a file"
    assert sorted(tmp_path.iterdir()) == [path, out]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_proof_leaves_nothing(
    tmp_path: Path, itself: Callable[..., None], error: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(folder: Path, pictures: Sequence[Picture]) -> Answers:
        raise error

    bundle = bundle_of(CONV)
    itself(perfect(bundle, answer=answer))
    path = saved(tmp_path / "model", bundle)
    status = cli.main(["export", str(path), "--to", "onnx", "--out", str(tmp_path / "out")])
    assert status == (130 if error is KeyboardInterrupt else 2)
    assert sorted(tmp_path.iterdir()) == [path]


def test_without_the_runtime_an_export_is_unproven(
    tmp_path: Path, itself: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(CONV)
    itself(perfect(bundle, missing=lambda: "pip install itself"))
    words = ["export", str(saved(tmp_path / "model", bundle)), "--to", "onnx", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 3
    sentence = (
        "It is unproven, because its runtime is not installed here; install it with: pip install itself"
    )
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "out" / "README.md").read_text()
    result = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert [result["verdict"], result["prove_after"]] == ["unproven", "pip install itself"]


def test_a_model_that_diverged_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(CONV)
    with torch.no_grad():
        bundle.model.get_parameter("head.bias")[0] = torch.nan
    with pytest.raises(VitreousError, match="no finite probabilities"):
        export(saved(tmp_path / "model", bundle), "onnx", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "Say what to export to: --to html, onnx, timm or transformers."),
        ("--to onnnx", "did you mean 'onnx'?"),
        ("--to timm --int8", "--int8 writes an ONNX model"),
        ("--to html --samples -1", "--samples is -1"),
    ],
)
def test_wrong_options_are_sentences(
    words: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path), *words.split()]) == 2
    assert sentence in capsys.readouterr().err


# ---- a run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 classes with 20 images each: JPEG and PNG, wide and turned, of several sizes."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(3)
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(20):
            image = awkward.scene(generator, 40 + 4 * number, 40 if number % 2 else 60)
            kind = "JPEG" if number % 3 else "PNG"
            exif = {"exif": awkward._exif(6)} if number % 5 == 4 else {}
            write_files(folder, {f"{name}/{label}{number}.{kind.lower()}": encoded(image, kind, **exif)})
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    settings: dict[str, Any] = {"device": "cpu", "precision": "32", "overrides": dict(TINY)}
    return vitreous.train(data, steps=2, image_size=SIZE, out=out, **settings)


@pytest.mark.usefixtures("fast")
def test_a_run_is_proven_on_its_test_images_without_another_read_of_test(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    before = read_test_reads(run.path)
    written = export(run.path, "onnx", int8=True)
    assert written.folder == Path("exports/run-onnx") and written.proven
    result = json.loads((written.folder / "proof.json").read_text())
    test = run.summary["test_images"] if "test_images" in run.summary else run.bundle.images["test"]
    kinds = {name: kind["files"] for name, kind in result["kinds"].items() if name.startswith("test split")}
    assert sum(kinds.values()) == test == result["files"]["of the run"]
    assert set(kinds) == {"test split, not square", "test split, unusual files"}
    assert any("validation images correctly" in note for note in written.notes)
    assert read_test_reads(run.path) == before
    assert sorted(path.name for path in written.folder.iterdir()) == [
        "README.md", "model-int8.onnx", "model.onnx", "predict.py", "proof.json", "reading",
    ]  # fmt: skip
    assert not list(written.folder.rglob("__pycache__"))


def test_where_test_is_unread_validation_is_used(run: Run, tmp_path: Path) -> None:
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    (copied.path / "test_reads.json").unlink()
    summary = {key: value for key, value in run.summary.items() if not key.startswith("test")}
    (copied.path / "summary.json").write_text(json.dumps(summary))
    pictures, number = exports._run_files(copied, [])
    kinds = [picture.kind for picture in pictures]
    assert len(kinds) == number == run.bundle.images["val"]
    assert all(kind.startswith("validation split") for kind in kinds)


def test_a_run_whose_data_have_gone_says_so(run: Run, tmp_path: Path) -> None:
    copied = shutil.copytree(run.path, tmp_path / "run")
    recipe = (copied / "recipe.toml").read_text()
    place = json.loads(json.dumps(run.resolved["request"]["data"]))
    assert place in recipe
    (copied / "recipe.toml").write_text(recipe.replace(place, "/nowhere"))
    notes: list[str] = []
    pictures, number = exports._run_files(Run(copied), notes)
    assert (list(pictures), number) == ([], 0)
    assert notes[0].startswith("The test images of the run could not be used.")


def test_a_large_split_is_thinned_evenly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [picture.name for picture in exports._run_files(run, [])[0]]
    monkeypatch.setattr(exports, "MOST_FILES", 5)
    notes: list[str] = []
    pictures, number = exports._run_files(run, notes)
    chosen = [picture.name for picture in pictures]
    assert number == len(chosen) == 5 and [chosen[0], chosen[-1]] == [names[0], names[-1]]
    assert notes == [f"The proof ran on 5 of the {len(names)} test images."]


def test_samples_are_of_validation_one_of_each_class_first(run: Run, data: Path) -> None:
    samples, labels = exports._samples(run, run.bundle, 4, [])
    assert labels == (0, 1, 2, 0) and len({sample.name for sample in samples}) == 4
    split = set(open_split(run, "val")[1].names)
    for sample, label in zip(samples, labels, strict=True):
        assert sample.name in split and sample.name.split("/")[-2] == run.classes[label]
        assert (data / sample.name.removeprefix("train/")).read_bytes() == sample.content
    everything, _ = exports._samples(run, run.bundle, 1000, [])
    assert len(everything) == len(split)


def test_large_samples_become_small_and_upright() -> None:
    image = awkward.scene(np.random.default_rng(0), 1200, 600)
    content = encoded(image, "JPEG", quality=95, exif=awkward._exif(6))
    small = Image.open(BytesIO(exports._small(content, Preprocess(32))))
    assert small.size == (128, 256) and small.format == "JPEG" and small.getexif().get(0x0112, 1) == 1
    expected = np.asarray(image.rotate(-90, expand=True).resize((128, 256)), float)
    assert np.abs(np.asarray(small) - expected).mean() < 4
    tiny = encoded(image.resize((64, 32)), "PNG")
    assert exports._small(tiny, Preprocess(32)) == tiny


# ---- the card


def card_of(bundle: Bundle, tmp_path: Path) -> tuple[dict[str, Any], str]:
    yaml = pytest.importorskip("yaml")
    result = proof.Proof("onnx", True, 3, 4, "itself 1.0", "", 1e-3, 1e-6, {})
    card.write(
        Material(bundle, None), onnx_target.TARGET, "onnx", result, ["A note."], tmp_path / "README.md"
    )
    _, front, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_card_states_figures_with_intervals_and_limits(tmp_path: Path) -> None:
    bundle = replace(
        bundle_of(CONV),
        data={"name": "cifar10", "fingerprint": "f" * 64},
        figures={"test_acc": 0.875, "val_acc": 0.9},
        images={"train": 45000, "val": 5000, "test": 10000},
        confused=(Confusion(NAMES[2], NAMES[0], 12, 100),),
    )
    front, text = card_of(bundle, tmp_path)
    assert front["library_name"] == "onnx" and "license" not in front
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.875}]
    assert accuracy_text(8750, 10000) in text and "on 10,000 images" in text
    assert "f" * 64 in text and "45,000 training, 5,000 validation, 10,000 test" in text
    assert "12 of 100 images of" in text and "were taken for ant" in text
    assert "<b>" not in text and "Always" not in text


def test_a_card_of_a_persons_own_data_has_no_result_for_the_hub(tmp_path: Path) -> None:
    bundle = replace(bundle_of(CONV), data={"name": "a: [b]\n---\nlicense: mit"}, figures={"test_acc": 0.875})
    front, text = card_of(bundle, tmp_path)
    assert "model-index" not in front and "license" not in front
    assert "# Image classifier trained on a: \\[b\\]" in text.splitlines()[1]
