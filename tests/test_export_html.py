"""The page that predicts in a browser: its arithmetic against torch and Pillow, and itself in real browsers."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from browsers import (
    CHROMIUM,
    FIREFOX,
    Chromium,
    chromium,
    chromium_is_here,
    firefox,
    firefox_is_here,
)
from vitreous.attribution import heat_map
from vitreous.bundle import Bundle, Confusion
from vitreous.coverage import coverage_of
from vitreous.data.decode import read_image
from vitreous.errors import VitreousError
from vitreous.export import Material, Picture, html
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer, create_model
from vitreous.preprocess import Preprocess, fit

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><b>", "=1+1", "été 🐜")
SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
CONV = {"stem": "conv", "stem_dims": (12, 20)}
# Fields of the architecture, image size and number of classes; all sizes that the products' blocks do not divide.
VARIANTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "paper": ({}, 17, 3),
    "mean": ({"pool": "mean"}, 16, 2),
    "attention, normalised, sine": ({"pool": "attention", "qk_norm": True, "pos_embed": "sine"}, 13, 11),
    "conv": (CONV, 17, 3),
    "conv with a stride": ({**CONV, "patch_size": 8, "stem_stride": 2}, 40, 3),
    "conv with a stride, odd side": ({**CONV, "patch_size": 4, "stem_stride": 2}, 23, 3),
    "conv of more stages than widths": ({**CONV, "patch_size": 16, "pool": "attention"}, 50, 5),
    "conv of fewer stages": ({**CONV, "patch_size": 2, "pool": "mean", "qk_norm": True}, 9, 5),
    "notebook": (
        {"embed_activation": "relu", "final_norm": False, "head_hidden": 20, "norm_eps": 1e-3},
        32,
        4,
    ),
    "no bias": ({"qkv_bias": False}, 16, 2),
    "narrow": ({"embed_dim": 4, "num_heads": 4, "mlp_dim": 1, "depth": 1}, 3, 1),
    "one token": ({"patch_size": 32, "pool": "mean"}, 32, 9),
    "wide": ({"embed_dim": 48, "num_heads": 3, "mlp_dim": 100}, 32, 10),
}


def make_bundle(
    fields: dict[str, Any], size: int, classes: int | tuple[str, ...] = 3, **settings: Any
) -> Bundle:
    """A bundle with random weights, large enough that every part of the network matters."""
    names = tuple(f"kind {i}" for i in range(classes)) if isinstance(classes, int) else classes
    torch.manual_seed(0)
    model = VisionTransformer(Architecture(**{**SMALL, **fields}), size, len(names)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(0.3 * torch.randn_like(parameter) + shift)
    return Bundle(
        model, names, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), Preprocess(size, **settings), temperature=0.8
    )


def page_of(bundle: Bundle, folder: Path, samples: tuple[Picture, ...] = ()) -> str:
    html.write(Material(bundle, None, samples, tuple(0 for _ in samples)), folder)
    return (folder / html.PAGE).read_text(encoding="utf-8")


def noise(seed: int, width: int, height: int) -> Image.Image:
    """Blobs and hard edges in random colours."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels[: height // 3, : width // 2] = generator.integers(0, 256, 3)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def arithmetic(browser: Chromium) -> Chromium:
    """A browser with the page's functions, without the page."""
    browser.open("about:blank")
    browser.run(html._script(("product.js", "network.js", "pixels.js")))
    browser.run("bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)); 1")
    return browser


def network_in(arithmetic: Chromium, bundle: Bundle, simd: bool) -> None:
    """Makes the bundle's network in the browser, as `network`."""
    tensors, weights = html.weights_of(bundle)
    model, text = json.dumps(html.model_of(bundle, tensors)), base64.b64encode(weights).decode()
    arithmetic.run(f"network = makeNetwork({model}, bytes('{text}'), {json.dumps(simd)}); 1")


def pixels_in(pixels: np.ndarray) -> str:
    return f"bytes('{base64.b64encode(pixels.tobytes()).decode()}')"


# ---- the arithmetic


@chromium_is_here
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_answers_as_torch(arithmetic: Chromium, variant: str) -> None:
    fields, size, classes = VARIANTS[variant]
    bundle = make_bundle(fields, size, classes)
    pixels = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    for simd in (True, False):
        network_in(arithmetic, bundle, simd)
        assert arithmetic.run("network.simd") is simd
        for image, expected in zip(pixels, bundle.predict_proba(pixels), strict=True):
            found = arithmetic.run(f"Array.from(network.probabilities({pixels_in(image)}))")
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_variants_differ_in_every_choice() -> None:
    """Every value that a field of the architecture can have, and another where it is a number, is in `VARIANTS`."""
    used = [Architecture(**{**SMALL, **fields}) for fields, _, _ in VARIANTS.values()]
    for name, choices in {
        "stem": ("linear", "conv"),
        "pool": ("cls", "mean", "attention"),
        "pos_embed": ("learned", "sine"),
        "embed_activation": ("none", "relu"),
        **dict.fromkeys(("final_norm", "qkv_bias", "qk_norm"), (True, False)),
    }.items():
        assert {getattr(each, name) for each in used} == set(choices)
    assert len({each.head_hidden for each in used}) == len({each.norm_eps for each in used}) == 2


@chromium_is_here
def test_the_heat_map_is_the_one_of_explain(arithmetic: Chromium) -> None:
    bundle = replace(make_bundle({"pool": "mean"}, 30, 4), temperature=0.3)
    pixels = np.asarray(noise(3, 30, 30))
    maps = heat_map(bundle, np.repeat(pixels[None], 4, axis=0), np.arange(4), method="occlusion")
    chosen = int(np.abs(maps).max(axis=(1, 2)).argmax())
    assert np.ptp(maps[chosen]) > 0.01
    network_in(arithmetic, bundle, True)
    ask = f"heatMap(network, 30, {pixels_in(pixels)}, {chosen}, async (cell) => cell !== LAST)"
    found = arithmetic.run(ask.replace("LAST", "-1") + ".then(({ map }) => Array.from(map))")
    np.testing.assert_allclose(np.reshape(found, maps[chosen].shape), maps[chosen], atol=1e-4)
    assert arithmetic.run(ask.replace("LAST", "3")) == {"map": None}


@chromium_is_here
def test_the_error_function_is_exact_enough(arithmetic: Chromium) -> None:
    points = np.linspace(-7, 7, 1001)
    found = arithmetic.run(f"{json.dumps(points.tolist())}.map(complementaryError)")
    assert max(abs(a - math.erfc(x)) for a, x in zip(found, points, strict=True)) < 1e-7


@chromium_is_here
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_pictures_are_resized_bit_for_bit_as_by_pillow(arithmetic: Chromium, how: str) -> None:
    generator = np.random.default_rng(5)
    shapes = [(int(w), int(h)) for w, h in generator.integers(1, 120, (40, 2))]
    shapes += [(1, 1), (1, 90), (90, 1), (32, 32), (33, 32), (32, 33), (640, 31), (31, 640), (301, 449)]
    for number, (width, height) in enumerate(shapes):
        size = 32 if number % 3 else int(generator.integers(1, 70))
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 2:  # overshoots on both sides
            pixels = (pixels > 127).astype(np.uint8) * np.uint8(255)
        settings = html.settings_of(Preprocess(size, fit=how, ground="grey"))
        left, top, right, bottom = arithmetic.run(f"keptBox({width}, {height}, '{how}')")
        kept = pixels_in(np.ascontiguousarray(pixels[top:bottom, left:right]))
        found = arithmetic.run(
            f"Array.from(fitPixels({kept}, {right - left}, {bottom - top}, {json.dumps(settings)}))"
        )
        expected = fit(Image.fromarray(pixels), size, "bicubic", how, "grey")
        assert np.array_equal(np.reshape(found, expected.shape), expected), (width, height, size)


# ---- the file


def test_only_samples_that_were_asked_for_are_in_the_page(tmp_path: Path) -> None:
    bundle = make_bundle({}, 16)
    private = Picture("a.png", "validation split", encoded(noise(1, 40, 30)))
    without = page_of(bundle, tmp_path)
    assert "data:image" not in without and 'id="samples"' not in without
    checks = json.loads(re.findall(r'id="data">(.*?)</script>', without, re.DOTALL)[0])["checks"]
    assert len(checks) == html.CHECKS
    small = bundle.preprocess.batch([private.content], read_image)[0]
    for check in checks:
        assert not np.array_equal(
            np.asarray(read_image(base64.b64decode(check["image"])).resize((16, 16))), small
        )
    assert page_of(bundle, tmp_path, (private,) * 2).count("data:image") == 2


def test_samples_lose_what_else_their_files_say(tmp_path: Path) -> None:
    exif = turned(1)
    exif[0x010E] = "the owner's house"
    content = encoded(noise(1, 400, 300), "JPEG", exif=exif, comment=b"secret")
    assert b"house" in content
    uri = re.findall(
        r"data:image/jpeg;base64,([^\"]+)",
        page_of(make_bundle({}, 16), tmp_path, (Picture("", "", content),)),
    )[0]
    kept = base64.b64decode(uri)
    assert b"house" not in kept and b"secret" not in kept
    assert max(read_image(kept).size) == html.SAMPLE_SIDE


def test_the_default_network_takes_less_than_three_megabytes(tmp_path: Path) -> None:
    model = create_model("compact", embed_dim=128, num_heads=2, mlp_dim=256, stem_dims=(40, 128))
    assert sum(parameter.numel() for parameter in model.parameters()) > 700_000
    bundle = Bundle(model.eval(), tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3, Preprocess(32))
    pictures = tuple(Picture(str(i), "", encoded(noise(i, 500, 400), "JPEG")) for i in range(12))
    assert len(page_of(bundle, tmp_path, pictures)) < 3_000_000


def test_a_network_of_values_that_are_not_numbers_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle({}, 16)
    with torch.no_grad():
        bundle.model.pos_embed[0, 0, 0] = torch.nan
    with pytest.raises(VitreousError, match="pos_embed"):
        page_of(bundle, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_policy_allows_no_request_and_no_other_script(tmp_path: Path) -> None:
    page = page_of(make_bundle({}, 16), tmp_path)
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    assert "default-src &#39;none&#39;" in policy and "connect-src" not in policy and "http" not in policy
    assert re.findall(r"script-src ([^;]*(?:&#39;[^;]*)*);", policy)
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition("worker-src")[0]
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_the_threshold_turns_half_of_the_mistakes_away() -> None:
    confidence = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.55])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    coverage = coverage_of(probabilities, np.array([0, 1, 0, 0, 1, 0]))  # those of 0.9 and 0.6 are wrong
    assert html.default_threshold(coverage) == 601
    assert html.default_threshold(coverage_of(probabilities, np.zeros(6, int))) == 500


def test_the_page_says_what_the_model_is_how_good_and_where_it_fails(tmp_path: Path) -> None:
    bundle = replace(
        make_bundle({}, 16, ("ant", "bee")),
        figures={"test_acc": 0.875},
        images={"train": 900, "val": 100, "test": 200},
        confused=(Confusion("ant", "bee", 14, 90),),
        data={"name": "insects"},
    )
    text = re.sub(r"<[^>]+>", "", page_of(bundle, tmp_path))
    assert "trained from scratch on 900 images of insects" in text
    assert "Its accuracy on 200 test images is 88 % (95 %: 82 to 91)." in text
    assert "Most often it takes ant for bee (14 of 90)." in text
    assert "The page never says “not sure”." in text


# ---- in browsers


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle whose names would do harm as HTML or in a spreadsheet, and the folder with its page."""
    folder = tmp_path_factory.mktemp("page")
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4) / 4, 50)
    bundle = replace(
        make_bundle(CONV, 20, HOSTILE),
        data={"name": HOSTILE[0]},
        confused=(Confusion(HOSTILE[0], HOSTILE[1], 1, 2),),
        coverage=coverage_of(probabilities, generator.integers(0, 4, 50)),
    )
    page_of(bundle, folder, (Picture("s.png", "", encoded(noise(9, 64, 48))),))
    return bundle, folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures and a file that is none, with names that a spreadsheet would compute."""
    folder = tmp_path_factory.mktemp("pictures")
    contents = {
        "=photo(1).png": encoded(noise(1, 45, 70)),
        "<b>bold.jpg": encoded(noise(2, 90, 61), "JPEG", exif=turned(6)),
        "plain.webp": encoded(noise(3, 33, 33), "WEBP", lossless=True),
        "text.png": b"This is no picture.",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def text_of(browser: Any, name: str) -> str:
    return str(browser.run(f"document.getElementById('{name}').textContent"))


@chromium_is_here
def test_the_page_works_from_the_disk_in_chromium(
    browser: Chromium, hostile: tuple[Bundle, Path], files: list[Path]
) -> None:
    bundle, folder = hostile
    browser.requests.clear()
    browser.complaints.clear()
    browser.open((folder / html.PAGE).as_uri())
    check = browser.run("vitreous.check")
    assert check["passed"] and check["place"] == "worker" and check["simd"]
    assert re.match(
        r"Checked on this device: 20 of 20 answers agree, largest difference", text_of(browser, "check")
    )

    expected = bundle.predict_proba([file.read_bytes() for file in files[:3]])
    browser.choose("#files", files[:1])
    browser.wait_for("!document.getElementById('result').hidden")
    best = int(expected[0].argmax())
    assert HOSTILE[best] in text_of(browser, "answer")
    assert text_of(browser, "name") == "=photo(1).png"

    browser.run("document.getElementById('map').click()")
    browser.wait_for("!document.getElementById('heat').hidden")
    assert "With the strongest part covered" in text_of(browser, "explained")

    browser.choose("#files", files)
    browser.wait_for("document.getElementById('stop').hidden && !document.getElementById('many').hidden")
    assert "4 pictures, 1 of them could not be read" in text_of(browser, "progress")
    rows = list(csv.reader(io.StringIO(browser.run("vitreous.csv()").removeprefix("\ufeff"))))
    assert rows[0] == ["file", "class", "confidence", "sure", "problem", *HOSTILE[:2], "'=1+1", HOSTILE[3]]
    assert [row[0] for row in rows[1:]] == ["'=photo(1).png", "<b>bold.jpg", "plain.webp", "text.png"]
    found = np.array([row[5:] for row in rows[1:4]], float)
    np.testing.assert_allclose(found, expected, atol=html.NETWORK_BOUND)
    assert rows[4][1] == "" and "not a picture" in rows[4][4]

    browser.choose("#files", files[3:])
    browser.wait_for("!document.getElementById('trouble').hidden")
    assert "text.png: This is not a picture" in text_of(browser, "trouble")

    assert browser.run("document.querySelectorAll('main b, img[src=x]').length") == 0
    assert browser.complaints == []
    assert {url.partition(":")[0] for url in browser.requests} == {"file", "blob", "data"}
    # Even a script of the page could not call out.
    assert browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)


@chromium_is_here
def test_the_page_is_usable_by_the_keyboard_and_with_a_threshold(
    browser: Chromium, hostile: tuple[Bundle, Path]
) -> None:
    _, folder = hostile
    browser.open((folder / html.PAGE).as_uri())
    browser.run("vitreous.check")
    order = []
    for _ in range(5):
        browser.press("Tab")
        order.append(
            browser.run("document.activeElement.id || document.activeElement.parentElement.parentElement.id")
        )
    assert [name for name in order if name != "camera"][:3] == ["files", "samples", "threshold"]
    browser.run("document.querySelector('#samples button').focus()")
    browser.press("Enter")
    browser.wait_for("!document.getElementById('result').hidden")
    assert text_of(browser, "truth")
    for level, word in ((999, True), (0, False)):
        browser.run(
            f"(() => {{ const slider = document.getElementById('threshold'); slider.value = {level};"
            "slider.dispatchEvent(new Event('input')); })()"
        )
        assert text_of(browser, "answer").startswith("Not sure: perhaps") is word
    assert "On 50 validation images it is sure of 50 (100 %)" in text_of(browser, "accepted")


@chromium_is_here
def test_a_dropped_picture_is_classified(browser: Chromium, hostile: tuple[Bundle, Path]) -> None:
    bundle, folder = hostile
    browser.open((folder / html.PAGE).as_uri())
    content = encoded(noise(4, 50, 30))
    browser.run(
        f"(() => {{ const text = atob('{base64.b64encode(content).decode()}');"
        "const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));"
        "const dropped = new DataTransfer();"
        "dropped.items.add(new File([bytes], 'dropped.png', { type: 'image/png' }));"
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: dropped, cancelable: true })); })()"
    )
    browser.wait_for("!document.getElementById('result').hidden")
    assert text_of(browser, "name") == "dropped.png"
    assert HOSTILE[int(bundle.predict([content])[0])] in text_of(browser, "answer")


@chromium_is_here
def test_without_workers_the_page_computes_itself_and_says_so(
    browser: Chromium, hostile: tuple[Bundle, Path]
) -> None:
    _, folder = hostile
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.Worker")
    try:
        browser.open((folder / html.PAGE).as_uri())
        check = browser.run("vitreous.check")
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
    assert check["passed"] and check["place"] == "page"
    assert "No Web Worker is available" in text_of(browser, "check")


@chromium_is_here
def test_a_failed_check_is_a_red_banner_and_no_proof(
    browser: Chromium, hostile: tuple[Bundle, Path], tmp_path: Path
) -> None:
    page = (hostile[1] / html.PAGE).read_text(encoding="utf-8")
    wrong = re.sub(r'("probabilities": \[)[0-9.e-]+', r"\g<1>0.123", page, count=1)
    assert wrong != page
    (tmp_path / html.PAGE).write_text(wrong, encoding="utf-8")
    browser.open((tmp_path / html.PAGE).as_uri())
    assert not browser.run("vitreous.check")["passed"]
    assert "Do not trust this page on this device: only 19 of 20" in text_of(browser, "check")
    assert browser.run("document.getElementById('check').className") == "check failed"
    with pytest.raises(VitreousError, match="only 19 of 20"):
        html.answer(tmp_path, [], (str(CHROMIUM), False))


def awkward() -> list[Picture]:
    """Files whose pixels any browser can give exactly, then four that it has to refuse."""
    image = noise(7, 61, 40)
    contents = [
        encoded(image),
        encoded(image, "JPEG", quality=80),
        encoded(image, "JPEG") + bytes(3000),  # as from a camera that appends data
        encoded(image.convert("L")),
        *(encoded(image, kind, exif=turned(turn), **({"lossless": True} if kind == "WEBP" else {}))
          for kind in ("JPEG", "PNG", "WEBP") for turn in (3, 5, 6, 8)),
        encoded(image, "JPEG")[:-300],
        encoded(image)[:-40],
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    ]  # fmt: skip
    return [Picture(str(i), "", content) for i, content in enumerate(contents)]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param((CHROMIUM, False), marks=chromium_is_here, id="chromium"),
        pytest.param((FIREFOX, True), marks=firefox_is_here, id="firefox"),
    ],
)
def test_answers_from_files_are_those_of_the_bundle(program: tuple[str, bool], tmp_path: Path) -> None:
    bundle = make_bundle(CONV, 20, 5, fit="pad", ground="grey")
    page_of(bundle, tmp_path)
    pictures = awkward()
    answers = html.answer(tmp_path, pictures, program)
    good = [picture.content for picture in pictures[:-4]]
    assert np.array_equal(answers.pixels[:-4], bundle.preprocess.batch(good, read_image))
    np.testing.assert_allclose(
        answers.probabilities[:-4], bundle.predict_proba(good), atol=html.NETWORK_BOUND
    )
    assert np.isnan(answers.probabilities[-4:]).all()
    assert re.fullmatch(r"headless (Chromium|Firefox) \d+", answers.runtime)


@firefox_is_here
def test_the_page_works_from_the_disk_in_firefox(hostile: tuple[Bundle, Path], files: list[Path]) -> None:
    bundle, folder = hostile
    with firefox() as browser:
        browser.open((folder / html.PAGE).as_uri())
        browser.wait_for("document.getElementById('check').className !== 'check'")
        assert "20 of 20 answers agree" in text_of(browser, "check")
        assert "No Web Worker" not in text_of(browser, "check")
        browser.choose("#files", files[1:2])
        browser.wait_for("!document.getElementById('result').hidden")
        best = int(bundle.predict([files[1].read_bytes()])[0])
        assert HOSTILE[best] in text_of(browser, "answer")
        fetched = browser.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert not [name for name in fetched if not name.startswith(("blob:", "data:"))]


def test_a_bundle_with_a_range_of_values_refuses_deep_pictures_in_a_sentence(tmp_path: Path) -> None:
    bundle = make_bundle({}, 16, value_range=(0, 4095))
    assert "16 bits a channel" in page_of(bundle, tmp_path)
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    deep = Image.fromarray(np.full((9, 9), 4000, np.uint16))
    answers = html.answer(
        tmp_path,
        [Picture("", "", encoded(deep)), Picture("", "", encoded(noise(1, 9, 9)))],
        (CHROMIUM, False),
    )
    assert np.isnan(answers.probabilities).all(axis=1).tolist() == [True, False]


def test_a_browser_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page_of(make_bundle({}, 16), tmp_path)
    quits = tmp_path / "quits"
    quits.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    quits.chmod(0o755)
    with pytest.raises(VitreousError, match=r"ended with status 3 \(no display\)"):
        html.answer(tmp_path, [], (str(quits), False))
    waits = tmp_path / "waits"
    waits.write_text("#!/bin/sh\nsleep 60\n")
    waits.chmod(0o755)
    monkeypatch.setattr(html, "PATIENCE", 0.3)
    with pytest.raises(VitreousError, match="gave no answer"):
        html.answer(tmp_path, [], (str(waits), False))
    monkeypatch.setattr(html, "BROWSERS", ())
    assert html.missing()
    with pytest.raises(VitreousError, match="There is no browser; install one with"):
        html.answer(tmp_path, [])
