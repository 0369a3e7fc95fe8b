"""`vitreous explain`: maps lie where the network looked, pictures say what they show, and files of others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitreous import attribution, explain
from vitreous.bundle import Bundle, save_bundle
from vitreous.cli import main
from vitreous.errors import VitreousError
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.preprocess import Preprocess

CLASSES = ("cat", "a $very$ long name of a class that no picture has room for", "dog\x1b[31m", "日本")


@pytest.fixture
def bundle() -> Bundle:
    torch.manual_seed(0)
    model = VisionTransformer(Architecture(4, 16, 2, 2, 16), 16, len(CLASSES)).eval()
    return Bundle(model, CLASSES, (0.5,) * 3, (0.25,) * 3, Preprocess(16, fit="pad"))


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_bundle(bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bundle"


def photo(path: Path, size: tuple[int, int] = (60, 30)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(300, 100), (100, 300), (160, 160)])
def test_a_map_lies_where_the_network_saw_the_image(fit: str, size: tuple[int, int]) -> None:
    """One dark spot on a white image: the brightest place of a map of darkness is that spot."""
    settings = Preprocess(64, fit=fit)
    width, height = size
    middle, radius = (width // 2 + 20, height // 2 - 20), 12
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[middle[1] - radius : middle[1] + radius, middle[0] - radius : middle[0] + radius] = 0
    image = Image.fromarray(pixels)
    square = settings.batch(image)[0]
    darkness = 255 - square.astype(np.float32).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3, 4))
    laid = explain.spread(darkness, size, settings)
    assert laid.shape == (height, width)
    rows, columns = np.nonzero(laid.filled(0) > 0.6 * laid.max())
    assert columns.mean() == pytest.approx(middle[0], abs=4)
    assert rows.mean() == pytest.approx(middle[1], abs=4)
    hidden = np.ma.getmaskarray(laid)
    if fit == "crop" and width != height:
        side = min(size)
        assert (~hidden).sum() == side * side and not hidden[height // 2, width // 2]
        assert hidden[0, 0] and hidden[-1, -1]
    else:
        assert not hidden.any()


def test_a_map_keeps_its_range_and_its_corners() -> None:
    map_ = np.zeros((4, 4), np.float32)
    map_[0, 0], map_[3, 3] = 1, -1
    laid = explain.spread(map_, (80, 80), Preprocess(16))
    assert laid.min() == -1 and laid.max() == 1
    assert laid[5, 5] > 0.9 and laid[-6, -6] < -0.9
    assert abs(laid[5, -6]) < 0.05


@pytest.mark.filterwarnings("ignore:Glyph")
def test_colours_of_the_picture_follow_the_map(bundle: Bundle) -> None:
    map_ = np.zeros((4, 4), np.float32)
    map_[0, 0], map_[3, 3] = 0.5, -0.5
    grey = Image.new("RGB", (400, 400), (128, 128, 128))
    found = explain.Explanation(
        "x", grey, np.zeros((16, 16, 3), np.uint8), np.array([0.7, 0.2, 0.1, 0]), 0, map_, None
    )
    figure = explain.draw(bundle, found, "occlusion")
    canvas = explain.FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba()).astype(int)
    middle = figure.axes[1].get_window_extent()
    top, left = drawn.shape[0] - middle.y1, middle.x0

    def colour(row: float, column: float) -> np.ndarray:
        return drawn[int(top + row * middle.height), int(left + column * middle.width), :3]

    red, _, blue = colour(0.1, 0.1)
    assert red - blue > 100  # orange
    red, _, blue = colour(0.9, 0.9)
    assert blue - red > 100
    assert np.ptp(colour(0.1, 0.9)) < 12  # grey


@pytest.mark.parametrize("method", ["auto", *attribution.METHODS])
def test_every_method_draws(saved: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = photo(Path("images/photo.jpg"))
    before = image.read_bytes()
    assert main(["explain", str(saved), str(image), "--method", method]) == 0
    name = attribution.AUTO if method == "auto" else method
    written = Path(f"explained/photo-{name}.png")
    assert str(written) in capsys.readouterr().out
    with Image.open(written) as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert image.read_bytes() == before


def test_every_class_can_be_named(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photo(Path("photo.png"))
    for name in CLASSES:
        assert main(["explain", str(saved), str(image), "--class", name, "--out", "out.png"]) == 0
    assert main(["explain", str(saved), str(image), "--class", "catt"]) == 2
    assert "did you mean 'cat'" in capsys.readouterr().err
    assert main(["explain", str(saved), "--network", "--out", "network.png"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_some_broken_images_are_named_and_the_others_drawn(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, broken = photo(Path("good.png")), Path("broken.png")
    broken.write_bytes(b"no image")
    assert main(["explain", str(saved), str(broken), str(good), "missing.png"]) == 3
    out, err = capsys.readouterr()
    assert "broken.png" in err and "missing.png" in err and "2 of 3 images" in err
    assert out.count("written") == 1
    assert main(["explain", str(saved), str(broken)]) == 2
    assert main(["explain", str(saved), "."]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_images_of_one_name_get_pictures_of_their_own(saved: Path) -> None:
    images = [photo(Path(folder) / "a.png") for folder in ("one", "two")]
    assert main(["explain", str(saved), *map(str, images)]) == 0
    assert main(["explain", str(saved), *map(str, images)]) == 0
    assert sorted(path.name for path in Path("explained").iterdir()) == [
        f"a-{attribution.AUTO}-2.png",
        f"a-{attribution.AUTO}.png",
    ]


def test_files_of_others_stay(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photo(Path("a.png"))
    theirs = photo(Path("explained") / f"a-{attribution.AUTO}.png")
    before = theirs.read_bytes()
    assert main(["explain", str(saved), str(image)]) == 0
    assert theirs.read_bytes() == before
    assert Path(f"explained/a-{attribution.AUTO}-2.png").exists()
    notes = Path("notes.txt")
    notes.write_text("mine")
    assert main(["explain", str(saved), str(image), "--out", "notes.txt"]) == 2
    notes.rename("notes.png")
    assert main(["explain", str(saved), str(image), "--out", "notes.png"]) == 2
    assert Path("notes.png").read_text() == "mine"
    photo_before = image.read_bytes()
    assert main(["explain", str(saved), str(image), "--out", str(image)]) == 2
    assert image.read_bytes() == photo_before
    assert main(["explain", str(saved), str(image), str(theirs), "--out", "both.png"]) == 2
    assert "give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "1"], "add --method attention"),
        (["--method", "attention", "--layer", "3"], "has 2 layers"),
        (["--method", "attention", "--layer", "0"], "counted from 1"),
        (["--method", "attention", "--head", "1"], "add --layer"),
        (["--method", "atention"], "did you mean 'attention'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    saved: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(saved), str(photo(Path("a.png"))), *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("explained").exists()


def test_one_head_is_drawn_alone(bundle: Bundle, saved: Path) -> None:
    image = photo(Path("a.png"))
    heads = explain.explain_image(bundle, image, "attention", None, None, None).heads
    assert heads is not None
    one = explain.explain_image(bundle, image, "attention", None, 2, 1).map
    np.testing.assert_allclose(one, heads[1, 0] * 16, rtol=1e-5)
    assert (
        main(["explain", str(saved), str(image), "--method", "attention", "--layer", "2", "--head", "1"]) == 0
    )


def test_principal_filters_are_those_of_the_patches(bundle: Bundle) -> None:
    """Against the eigenvectors of the filters' second moments."""
    filters, title = explain.first_filters(bundle)
    flat = bundle.model.patch_embed.proj.weight.detach().flatten(1).double().numpy()
    _, vectors = np.linalg.eigh(flat.T @ flat)
    strongest = vectors[:, -1].reshape(3, 4, 4).transpose(1, 2, 0)
    drawn = (filters[0] - 0.5) * 2
    similarity = (drawn * strongest).sum() / np.linalg.norm(drawn)
    assert abs(similarity) == pytest.approx(1, abs=1e-4)
    assert "4 × 4" in title


@pytest.mark.parametrize(("stride", "side"), [(1, 4), (2, 6)])
def test_the_stems_filters_are_its_first_two_layers_near_zero(stride: int, side: int) -> None:
    stem_options: dict[str, Any] = {"stem": "conv", "stem_dims": (8, 16), "stem_stride": stride}
    architecture = Architecture(4 * stride, 16, 1, 2, 16, **stem_options, pool="attention")
    torch.manual_seed(0)
    model = VisionTransformer(architecture, 16 * stride, 2)
    bundle = Bundle(model, ("a", "b"), (0.5,) * 3, (0.25,) * 3, Preprocess(16))
    filters, title = explain.first_filters(bundle)
    assert f"{side} × {side}" in title
    stem = model.patch_embed
    edge = stride - 1  # the pixels before the first patch
    x = torch.zeros(1, 3, edge + side, edge + side, requires_grad=True)
    found = []
    for channel in range(8):
        first = stem.stages[0].conv(torch.nn.functional.gelu(stem.whiten(x)))  # type: ignore[union-attr, operator, index]
        (slope,) = torch.autograd.grad(first[0, channel, 1, 1], x)  # sees all pixels but the edge
        found.append(slope[0, :, edge:, edge:].permute(1, 2, 0).numpy())
    found.sort(key=lambda picture: -np.linalg.norm(picture))
    for drawn, expected in zip(filters, found, strict=True):
        np.testing.assert_allclose((drawn - 0.5) * 2, expected / np.abs(expected).max(), atol=1e-5)


def test_positions_resemble_themselves_most(bundle: Bundle) -> None:
    similar = explain.position_similarity(bundle)
    assert similar.shape == (4, 4, 4, 4)
    for i in range(4):
        for j in range(4):
            assert similar[i, j].argmax() == 4 * i + j
            assert similar[i, j, i, j] == pytest.approx(1)


def test_nothing_to_draw_is_refused(saved: Path) -> None:
    with pytest.raises(VitreousError, match="which images"):
        explain.explain(saved, [])
