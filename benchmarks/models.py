"""The networks that we share with torchvision: building them, and a forward pass, ours against theirs.

Run: python -m benchmarks.models
"""

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import nn

from benchmarks.measuring import describe_machine, fastest
from candid.models import build_model

BUILT = {"resnet152": "resnet152", "densenet201": "densenet201", "mobilenetv2-1.0": "mobilenet_v2", "vgg16": "vgg16"}
RUN = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnext50-32x4d": "resnext50_32x4d",
    "densenet121": "densenet121",
    "googlenet-bn": "googlenet",
    "mobilenetv2-1.0": "mobilenet_v2",
    "shufflenetv2-1.0": "shufflenet_v2_x1_0",
    "vgg11": "vgg11",
    "alexnet": "alexnet",
}
BATCH_SIZE, IMAGE_SIZE, ROUNDS = 8, 224, 3


def main() -> None:
    """Print both tables."""
    measure(BATCH_SIZE, IMAGE_SIZE, ROUNDS)


def measure(batch_size: int, image_size: int, rounds: int) -> None:
    """Print seconds and ratios, a line for each network."""
    print(f"candid's networks against torchvision's; fastest of {rounds} rounds\n{describe_machine()}")
    print("Building, with weights drawn")
    for name, their_name in BUILT.items():
        compare(name, partial(build_model, name, 1000), partial(build_theirs, their_name), rounds=1)  # takes long
    print(f"Forward pass in evaluation, {batch_size} images of {image_size} px")
    images = torch.randn(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    for name, their_name in RUN.items():
        networks = build_model(name, 1000), build_theirs(their_name)
        compare(name, *(partial(forward, network.eval(), images) for network in networks), rounds)


def build_theirs(name: str) -> nn.Module:
    """torchvision's network, with weights drawn as it does."""
    options = {"init_weights": True} if name == "googlenet" else {}  # else it warns that it may change its mind
    return torchvision.models.get_model(name, **options)


@torch.inference_mode()
def forward(network: nn.Module, images: torch.Tensor) -> None:
    """A pass without anything for the way back."""
    network(images)


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    """Print a line, both sides measured in turn."""
    seconds = fastest({"ours": ours, "theirs": theirs}, rounds)
    print(
        f"  {name:<18} candid {seconds['ours']:8.3f} s   torchvision {seconds['theirs']:8.3f} s"
        f"  {seconds['ours'] / seconds['theirs']:6.2f}x the time"
    )


if __name__ == "__main__":
    main()
