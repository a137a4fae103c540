"""Tables of results in papers, as printed, each row with the network of the zoo that it is about."""

from dataclasses import dataclass

from candid.errors import InputError, did_you_mean

COLUMNS = ("C10", "C10+", "C100", "C100+", "SVHN")
"""CIFAR-10, CIFAR-100 and SVHN; a plus stands for shifts and mirroring."""
DATA_SETS = {"C10": "cifar10", "C100": "cifar100", "SVHN": "svhn-extra"}
"""The catalog's name for the data of each column, without the plus; papers train on SVHN's extra pictures too."""
Errors = tuple[float | None, float | None, float | None, float | None, float | None]
"""In percent, in the order of `COLUMNS`."""


@dataclass(frozen=True)
class ErrorRow:
    """Test errors of a network on small images."""

    method: str
    model: str
    depth: int | None
    millions: float | None
    """Of parameters, rounded to one decimal."""
    errors: Errors


@dataclass(frozen=True)
class ImageNetRow:
    """Validation errors of a network on ImageNet, in percent, from a single crop and from ten."""

    model: str
    top1: tuple[float, float]
    top5: tuple[float, float]


@dataclass(frozen=True)
class Paper:
    """A paper's tables."""

    name: str
    title: str
    small_images: tuple[ErrorRow, ...]
    imagenet: tuple[ImageNetRow, ...]


# The rows of Table 2 that are not DenseNets are quoted there from their own papers.
# fmt: off
DENSENET_TABLE_2 = (
    ErrorRow("Network in Network", "nin", None, None, (10.41, 8.81, 35.68, None, 2.35)),
    ErrorRow("All-CNN", "all-cnn-c", None, None, (9.08, 7.25, None, 33.71, None)),
    ErrorRow("Deeply Supervised Net", "dsn", None, None, (9.69, 7.97, None, 34.57, 1.92)),
    ErrorRow("Highway Network", "highway19", None, None, (None, 7.72, None, 32.39, None)),
    ErrorRow("FractalNet", "fractalnet", 21, 38.6, (10.18, 5.22, 35.34, 23.30, 2.01)),
    ErrorRow("FractalNet, with drop-path", "fractalnet", 21, 38.6, (7.33, 4.60, 28.20, 23.73, 1.87)),
    ErrorRow("ResNet", "resnet110-cifar", 110, 1.7, (None, 6.61, None, None, None)),
    ErrorRow("ResNet, by Huang et al. 2016", "resnet110-cifar", 110, 1.7, (13.63, 6.41, 44.74, 27.22, 2.01)),
    ErrorRow("Stochastic depth", "stochastic-depth-resnet110", 110, 1.7, (11.66, 5.23, 37.80, 24.58, 1.75)),
    ErrorRow("Stochastic depth", "stochastic-depth-resnet1202", 1202, 10.2, (None, 4.91, None, None, None)),
    ErrorRow("Wide ResNet", "wrn-16-8", 16, 11.0, (None, 4.81, None, 22.07, None)),
    ErrorRow("Wide ResNet", "wrn-28-10", 28, 36.5, (None, 4.17, None, 20.50, None)),
    ErrorRow("Wide ResNet, dropout", "wrn-16-4", 16, 2.7, (None, None, None, None, 1.64)),
    ErrorRow("Pre-activation ResNet", "preact-resnet164", 164, 1.7, (11.26, 5.46, 35.58, 24.33, None)),
    ErrorRow("Pre-activation ResNet", "preact-resnet1001", 1001, 10.2, (10.56, 4.62, 33.47, 22.71, None)),
    ErrorRow("DenseNet, k = 12", "densenet-40-12", 40, 1.0, (7.00, 5.24, 27.55, 24.42, 1.79)),
    ErrorRow("DenseNet, k = 12", "densenet-100-12", 100, 7.0, (5.77, 4.10, 23.79, 20.20, 1.67)),
    ErrorRow("DenseNet, k = 24", "densenet-100-24", 100, 27.2, (5.83, 3.74, 23.42, 19.25, 1.59)),
    ErrorRow("DenseNet-BC, k = 12", "densenet-bc-100-12", 100, 0.8, (5.92, 4.51, 24.15, 22.27, 1.76)),
    ErrorRow("DenseNet-BC, k = 24", "densenet-bc-250-24", 250, 15.3, (5.19, 3.62, 19.64, 17.60, 1.74)),
    ErrorRow("DenseNet-BC, k = 40", "densenet-bc-190-40", 190, 25.6, (None, 3.46, None, 17.18, None)),
)

DENSENET_TABLE_3 = (
    ImageNetRow("densenet121", (25.02, 23.61), (7.71, 6.66)),
    ImageNetRow("densenet169", (23.80, 22.08), (6.85, 5.92)),
    ImageNetRow("densenet201", (22.58, 21.46), (6.34, 5.54)),
    ImageNetRow("densenet264", (22.15, 20.80), (6.12, 5.29)),
)
# fmt: on

PAPERS = {
    "densenet": Paper(
        "densenet",
        "Huang, Liu, van der Maaten, Weinberger 2017, arXiv:1608.06993",
        DENSENET_TABLE_2,
        DENSENET_TABLE_3,
    ),
}


def find_paper(name: str) -> Paper:
    """The tables of the paper called `name`; InputError with the known names where there is none."""
    if name not in PAPERS:
        advice = did_you_mean(name, PAPERS, otherwise=f"Known papers: {', '.join(PAPERS)}.")
        raise InputError(f"No paper with tables is called {name!r}. {advice}")
    return PAPERS[name]
