import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, draw
from PIL import Image

from candid.annotating import SMALLEST_EXPLAINED_PX, NewFolder, with_label
from candid.data.decoding import decode
from candid.errors import InputError
from candid.explaining import overlay
from candid.predict import load
from candid.report.theme import installed_cjk_fonts


def ink(image: Image.Image) -> int:
    """Rows that the letters of a label take, in px."""
    return int((np.asarray(image.convert("L")) > 128).any(axis=1).sum())


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (500, 375), (375, 500), (4000, 30), (30, 4000), (6000, 4000)])
def test_a_label_can_be_read_whatever_the_size_of_the_picture(size: tuple[int, int]):
    labelled = with_label(Image.new("RGB", size, "white"), "European honey bee 98.76 %")
    width, height = size
    bar = labelled.crop((0, height, labelled.width, labelled.height))
    assert bar.height >= 20
    assert labelled.width >= width
    assert ink(bar) >= max(10, min(width / 60, 60))
    edges = np.asarray(bar.convert("L"))
    assert edges[:, 0].max() == edges[:, -1].max() == edges[0].max() == edges[-1].max() == 0  # nothing is cut off
    left = (labelled.width - width) // 2
    assert np.asarray(labelled.crop((left, 0, left + width, height))).min() == 255


def test_chinese_names_are_written_where_a_font_has_them():
    cat, dog = (np.asarray(with_label(Image.new("RGB", (50, 50)), name)) for name in ("猫", "狗"))
    assert np.array_equal(cat, dog) == (not installed_cjk_fonts())  # without one, each sign is the same box


def test_long_labels_keep_both_ends():
    short, long = (with_label(Image.new("RGB", (50, 50)), "a" * length + " 99.00 %") for length in (200, 2000))
    assert short.size == long.size
    assert long.width < 2000


def test_nothing_is_overwritten_whatever_the_pictures_are_called(tmp_path: Path):
    image = Image.new("RGB", (4, 4))
    folder = NewFolder(tmp_path / "new" / "folder")
    names = {
        "a/bee.JPG": "bee.jpg",
        "b/bee.jpg": "bee-2.jpg",
        "bee.gif": "bee.png",
        "album.zip/in/bee.png": "bee-2.png",
        "https://example.org/x/the%20bee.jpeg?size=2#top": "the bee.jpeg",
        "https://example.org/": "picture.png",
        "-": "picture-2.png",
        "..": "picture-3.png",
        "a/.bee": "picture-4.png",
        "a/b\x1be:e*.png": "b_e_e_.png",
        f"{'long' * 100}.webp": f"{'long' * 12}lo.png",
        "a/bienen-蜂.webp": "bienen-蜂.png",
    }
    assert [folder.save(image, name).name for name in names] == list(names.values())
    assert {path.name for path in folder.path.iterdir()} == set(names.values())
    wide = folder.save(Image.new("RGB", (65_501, 1)), "wide.jpg")
    assert wide.name == "wide.png"


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path):
    NewFolder(tmp_path / "empty")
    NewFolder(tmp_path / "empty")
    (tmp_path / "empty" / ".hidden").touch()
    for path in (tmp_path / "empty", tmp_path / "empty" / ".hidden"):
        with pytest.raises(InputError) as caught:
            NewFolder(path)
        assert str(caught.value) == (
            f"{path} is not empty; expected a new or empty folder, so that nothing is overwritten."
        )


def test_copies_are_the_pictures_with_the_answer_below(capsys, here: Path, run: Path, pictures: Path):
    (here / "in").mkdir()
    draw("cross", 3, side=90).convert("L").save(here / "in" / "grey.png")
    draw("circle", 3, side=300).save(here / "in" / "circle.jpg")
    (here / "in" / "broken.png").write_text("no picture")
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in (here / "in").iterdir()}
    code, out, _ = call(capsys, "predict", run, "in", pictures / "circle", "--save-annotated", "out", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert len(answers) == len(list((here / "out").iterdir())) + 1 == 27
    copy = np.asarray(Image.open(here / "out" / "grey.png"))
    picture = np.asarray(Image.open(here / "in" / "grey.png").convert("RGB"))
    left = (copy.shape[1] - 90) // 2
    assert np.array_equal(copy[:90, left : left + 90], picture)
    best = next(answer["classes"][0] for answer in answers if answer["file"].endswith("grey.png"))
    label = f"{best['class']} {100 * best['probability']:.2f} %"
    assert np.array_equal(copy, np.asarray(with_label(Image.open(here / "in" / "grey.png").convert("RGB"), label)))
    assert (here / "out" / "circle.jpg").read_bytes().startswith(b"\xff\xd8")  # a JPEG
    assert before == {path: hashlib.sha256(path.read_bytes()).digest() for path in (here / "in").iterdir()}
    code, out, err = call(capsys, "predict", run, "in", "--save-annotated", "out")
    assert (code, out) == (2, "")
    assert err == "out is not empty; expected a new or empty folder, so that nothing is overwritten.\n"


def test_copies_stand_upright(capsys, here: Path, run: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw("circle", 1, side=40).resize((60, 40)).save(here / "a.jpg", exif=exif, quality=95)
    call(capsys, "predict", run, "a.jpg", "--save-annotated", "out")
    copy = np.asarray(Image.open(here / "out" / "a.jpg")).astype(int)
    upright = decode((here / "a.jpg").read_bytes(), 3, "a.jpg").permute(1, 2, 0).numpy()
    left = (copy.shape[1] - 40) // 2
    assert abs(copy[:60, left : left + 40] - upright).mean() < 8


def test_explained_pictures_show_what_the_network_sees_and_why(capsys, here: Path, run: Path):
    draw("circle", 3, side=200).resize((300, 120)).save(here / "wide.png")
    code, out, _ = call(capsys, "predict", run, "wide.png", "--explain", "why", "--save-annotated", "out", "--json")
    assert code == 0
    predictor = load(run)
    data, best = (here / "wide.png").read_bytes(), json.loads(out)["classes"][0]["class"]
    heat = predictor.explain(data, best)
    side = predictor.preprocessing.image_size
    assert heat.shape == (side, side)
    assert heat.max() == 1
    shown = np.asarray(Image.open(here / "why" / "wide.png")).astype(int)
    assert shown.shape[1] == SMALLEST_EXPLAINED_PX < shown.shape[0]
    colorful = np.ptp(shown[:SMALLEST_EXPLAINED_PX], axis=2)  # the picture itself is grey
    hottest, coldest = (divmod(int(place), side) for place in (heat.flatten().argmax(), heat.flatten().argmin()))
    middle = SMALLEST_EXPLAINED_PX / side / 2
    hot, cold = (
        colorful[int(2 * row * middle + middle), int(2 * column * middle + middle)]
        for row, column in (hottest, coldest)
    )
    assert hot > 60
    assert hot > 2 * cold
    assert (here / "out" / "wide.png").is_file()


def test_hot_places_are_bright_and_cold_ones_grey():
    pixels = torch.tensor([30, 60, 90], dtype=torch.uint8)[:, None, None].expand(3, 2, 3)
    heat = torch.tensor([[0.0, 0.25, 0.5], [0.75, 1.0, 0.0]])
    shown = overlay(pixels, heat)
    assert shown[:, 0, 0].tolist() == shown[:, 1, 2].tolist() == [60, 60, 60]
    assert shown[:, 1, 1].tolist() == [214, 216, 143]  # a fifth of 60, four of the hottest colour
    lightness = [int(shown[:, row, column].sum()) for row, column in ((0, 2), (1, 0), (1, 1))]
    assert lightness == sorted(lightness)
