import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import call
from torch import Tensor, nn
from torchvision.transforms import functional

from candid.checkpoint import RunFolder, restore_network
from candid.data.decoding import decode_file
from candid.data.preprocessing import Preprocessing
from candid.kept_evaluation import load_evaluation
from candid.views import Views, five_crops, prepare

TEN = Views(mirror=True, five_crops=True)


class Corner(nn.Module):
    """Logits that depend on the pixels above and left alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :3, :3].flatten(1)


@pytest.mark.parametrize(("height", "width", "side"), [(256, 256, 224), (37, 37, 32), (9, 12, 5)])
def test_five_crops_are_those_of_torchvision(height: int, width: int, side: int):
    x = torch.rand(2, 3, height, width)
    for ours, theirs in zip(five_crops(x, side), functional.five_crop(x, [side]), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("side", [*range(28, 65), 96, 224, 299, 512])
def test_the_crops_of_the_larger_picture_have_the_networks_side(side: int):
    preprocessing = Preprocessing(image_size=side, channels=1, fit="crop", mean=(0.5,), std=(0.3,))
    large = TEN.enlarge(preprocessing).image_size
    views = TEN.of(torch.zeros(1, 1, large, large))
    assert [view.shape for view in views] == [(1, 1, side, side)] * 10
    if side == 224:
        assert large == 256


def test_ten_crops_are_averaged_as_probabilities():
    x = torch.randn(4, 1, 8, 8)
    expected = torch.stack(
        [
            view[:, :, :3, :3].flatten(1).softmax(dim=1)
            for crop in functional.five_crop(x, [7])
            for view in (crop, crop.flip(3))
        ]
    ).mean(dim=0)
    assert torch.allclose(prepare(Corner().eval(), TEN)(x).softmax(dim=1), expected)


def test_one_view_is_the_picture_itself():
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(prepare(Corner().eval())(x), Corner()(x))
    assert Views().text() == ""
    assert Views().names == []


def test_ten_crops_give_a_number_of_their_own(run: Path, pictures: Path, tmp_path: Path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    code, said, _ = call(capsys, "evaluate", copy, "--five-crops", "--mirror")
    assert code == 0
    assert " % averaged over five crops and mirror images (95 % interval " in said.splitlines()[0]
    folder = copy / "evaluation-validation-five-crops-mirrored"
    assert said.splitlines()[-1] == f"Written to {folder}"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["mirror"], summary["five_crops"], summary["preprocessing"]["image_size"]) == (True, True, 32)
    evaluation, checkpoint = load_evaluation(folder), RunFolder.open(run).load()
    network = restore_network(checkpoint)
    large = checkpoint.preprocessing.model_copy(update={"image_size": 32})
    with torch.inference_mode():
        for file, confidence in list(zip(evaluation.files, evaluation.confidences.tolist(), strict=True))[:3]:
            x = large(decode_file(pictures / file, 3)[None])
            crops = [view for crop in functional.five_crop(x, [28]) for view in (crop, crop.flip(3))]
            probabilities = torch.stack([network(crop).softmax(dim=1) for crop in crops]).mean(dim=0)
            assert confidence == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_an_evaluation_says_how_its_pixels_came_about(run: Path):
    summary = json.loads((run / "evaluation-validation" / "summary.json").read_text())
    assert summary["preprocessing"]["fit"] == "crop"
    assert summary["resizing"] == "bilinear, antialiased"
    assert summary["decoder"].startswith("candid ")
