"""Prediction: a folder of photographs against the usual loop, and one picture against importing torch.

ResNet-18 at 224 px with random weights, in a run folder as `candid import` makes it; 500x375 JPEGs. The usual loop
opens, resizes, normalises and passes one picture at a time through the same network in evaluation mode. The second
comparison is of whole processes: `candid predict RUN PICTURE` against a program that imports torch and torchvision,
builds the network and passes one picture through it.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.measuring import describe_machine, fastest
from candid.checkpoint import RunFolder, restore_network
from candid.data.preprocessing import Preprocessing
from candid.data.sources import find_pictures
from candid.importing import import_weights
from candid.models import build_model
from candid.predict import load

MODEL, SIDE_PX, NUM_CLASSES = "resnet18", 224, 1000
NUM_PICTURES, PICTURE_SIZE_PX = 200, (500, 375)
ROUNDS, STARTS = 5, 5
FOLDER_BAR, START_BAR = 1.8, 1.3
ONE_FORWARD = """
import torch, torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as transforms
picture = transforms.pil_to_tensor(Image.open({picture!r}).convert("RGB"))
picture = transforms.center_crop(transforms.resize(picture, [{side}]), [{side}]).float() / 255
with torch.inference_mode():
    network = torchvision.models.{model}().eval()
    print(network((picture - 0.45)[None] / 0.225).topk(5).indices)
"""


def make_run(folder: Path) -> Path:
    """A run folder with random weights."""
    torch.manual_seed(0)
    save_file(build_model(MODEL, NUM_CLASSES).state_dict(), folder / "weights.safetensors")
    statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with contextlib.redirect_stderr(io.StringIO()):
        return import_weights(
            folder / "weights.safetensors",
            MODEL,
            folder / "run",
            image_size=SIDE_PX,
            mean=statistics[0],
            std=statistics[1],
        )


def make_pictures(folder: Path) -> list[Path]:
    """JPEGs with the detail of photographs: about a bit for each pixel."""
    random = np.random.default_rng(0)
    folder.mkdir()
    files = [folder / f"{number:04}.jpg" for number in range(NUM_PICTURES)]
    for file in files:
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PICTURE_SIZE_PX, Image.Resampling.BICUBIC)).astype(int)
        noisy = smooth + random.integers(-8, 9, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=85)
    return files


def usual_input(file: Path, preprocessing: Preprocessing) -> Tensor:
    """[1, 3, H, W] of one picture, by Pillow's own resizing."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale, side = preprocessing.image_size / min(image.size), preprocessing.image_size
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + side, top + side))))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return ((pixels.permute(2, 0, 1).float() / 255 - mean) / std)[None]


def compare_folders(run: Path, files: Sequence[Path]) -> dict[str, float]:
    """Seconds for all pictures, in the usual loop and by candid."""
    checkpoint = RunFolder.open(run).load()
    network = restore_network(checkpoint).to(memory_format=torch.contiguous_format)
    predictor = load(run, device="cpu")

    @torch.inference_mode()
    def usual() -> list[int]:
        return [int(network(usual_input(file, checkpoint.preprocessing)).argmax()) for file in files]

    def ours() -> int:
        return sum(1 for _ in predictor.stream(find_pictures(files)))

    return fastest({"usual": usual, "candid": ours}, ROUNDS)


def compare_starts(run: Path, file: Path) -> dict[str, float]:
    """Seconds of whole processes that say something of one picture."""
    programs = {
        "usual": ["-c", ONE_FORWARD.format(picture=str(file), side=SIDE_PX, model=MODEL)],
        "candid": ["-m", "candid", "predict", str(run), str(file)],
    }

    def start(name: str) -> None:
        subprocess.run([sys.executable, *programs[name]], check=True, capture_output=True)

    return fastest({name: lambda name=name: start(name) for name in programs}, STARTS)


def main() -> None:
    """Print both comparisons with their bars."""
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        run, files = make_run(Path(name)), make_pictures(Path(name) / "pictures")
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        seconds = compare_folders(run, files)
        print(f"{MODEL} at {SIDE_PX} px, a folder of {len(files)} JPEGs of {kilobytes:.0f} kB:")
        for what, taken in (("the usual loop", seconds["usual"]), ("candid predict", seconds["candid"])):
            print(f"  {what:15} {len(files) / taken:6.1f} images/s")
        print(f"  {seconds['usual'] / seconds['candid']:.2f}x; bar {FOLDER_BAR}x")
        seconds = compare_starts(run, files[0])
        print("One picture, the whole process:")
        for what, taken in (("torch, torchvision, a forward pass", seconds["usual"]), ("candid", seconds["candid"])):
            print(f"  {what:35} {taken:5.2f} s")
        print(f"  {seconds['candid'] / seconds['usual']:.2f}x the time; bar {START_BAR}x")


if __name__ == "__main__":
    main()
