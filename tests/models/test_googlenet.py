import math
from functools import partial

import pytest
import torch
import torchvision
from parity import State, assert_same_network, from_module, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model, count_parameters, find_variant
from candid.models.auxiliary import AuxiliaryLoss, SupervisedLogits
from candid.weights.layouts import TORCHVISION

torch.set_num_threads(1)

# Szegedy et al. 2015, Table 1: the columns from #1x1 to pool proj, and params in thousands of 1024.
TABLE_1 = {
    "3a": (64, 96, 128, 16, 32, 32, 159),
    "3b": (128, 128, 192, 32, 96, 64, 380),
    "4a": (192, 96, 208, 16, 48, 64, 364),
    "4b": (160, 112, 224, 24, 64, 64, 437),
    "4c": (128, 128, 256, 24, 64, 64, 463),
    "4d": (112, 144, 288, 32, 64, 64, 580),
    "4e": (256, 160, 320, 32, 128, 128, 840),
    "5a": (256, 160, 320, 32, 128, 128, 1072),
    "5b": (384, 192, 384, 48, 128, 128, 1388),
}


def test_computes_what_torchvision_computes() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.googlenet(
            num_classes=7, transform_input=False, init_weights=False, dropout=0.0, dropout_aux=0.0
        )
    run = from_module(theirs, TORCHVISION["googlenet"])

    def reference(state: State, images: Tensor, training: bool) -> object:
        output = run(state, images, training)
        return (output.logits, output.aux_logits1, output.aux_logits2) if training else output

    assert_same_network(build_model("googlenet-bn", 7, dropout=0.0), reference, random_images(3, 3, 48))


def table_1(responds: bool, state: State, x: Tensor, training: bool) -> Tensor | SupervisedLogits:
    """Szegedy et al. 2015, written from Table 1, figures 2 and 3 and section 5."""

    def layer(x: Tensor, place: str, stride: int = 1) -> Tensor:
        weight = state[f"{place}.conv.weight"]
        x = F.conv2d(x, weight, state.get(f"{place}.conv.bias"), stride, weight.shape[-1] // 2)
        if f"{place}.norm.weight" in state:
            norm = [state[f"{place}.norm.{value}"] for value in ("running_mean", "running_var", "weight", "bias")]
            x = F.batch_norm(x, *norm, training, eps=0.001)
        return F.relu(x)

    def halve(x: Tensor) -> Tensor:
        """3x3 maxima every 2 px; where the side is even, the last window hangs over the edge."""
        odd = 1 - x.shape[-1] % 2
        return F.max_pool2d(F.pad(x, (0, odd, 0, odd), value=-math.inf), 3, 2)

    def respond(x: Tensor) -> Tensor:
        """Krizhevsky et al. 2012, section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75."""
        if not responds:
            return x
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
        around = sum(squares[:, shift : shift + x.shape[1]] for shift in range(5))
        return x / (2 + 1e-4 * around) ** 0.75

    def inception(x: Tensor, place: str) -> Tensor:
        place = f"inception{place}"
        three = layer(layer(x, f"{place}.branch2.0"), f"{place}.branch2.1")
        five = layer(layer(x, f"{place}.branch3.0"), f"{place}.branch3.1")
        pool = layer(F.max_pool2d(x, 3, 1, padding=1), f"{place}.branch4.1")
        return torch.cat((layer(x, f"{place}.branch1"), three, five, pool), dim=1)

    def classify(x: Tensor, place: str) -> Tensor:
        x = layer(F.avg_pool2d(x, min(5, x.shape[-1]), 3), f"{place}.conv").flatten(1)
        x = F.relu(F.linear(x, state[f"{place}.linear.weight"], state[f"{place}.linear.bias"]))
        return F.linear(x, state[f"{place}.head.weight"], state[f"{place}.head.bias"])

    if "stem.3.conv.weight" in state:
        x = respond(halve(layer(x, "stem.0", stride=2)))
        x = halve(respond(layer(layer(x, "stem.3"), "stem.4")))
    else:
        x = layer(x, "stem.0")
    auxiliary = []
    for place in TABLE_1:
        x = inception(halve(x) if place in ("4a", "5a") else x, place)
        if place in ("4a", "4d") and training and "auxiliary.0.head.weight" in state:
            auxiliary.append(classify(x, f"auxiliary.{len(auxiliary)}"))
    logits = F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), state["head.weight"], state["head.bias"])
    return SupervisedLogits(logits, tuple(auxiliary)) if auxiliary else logits


@pytest.mark.parametrize(
    ("name", "in_channels", "side", "num_images"),
    [
        ("googlenet", 3, 128, 1),  # auxiliary averages of 5x5 to 2x2
        ("googlenet", 3, 64, 1),  # of 4x4 to 1x1
        ("googlenet-notes", 1, 33, 1),
        ("googlenet-notes-aux", 1, 96, 1),
        ("googlenet-cifar", 3, 12, 3),
    ],
)
def test_is_table_1(name: str, in_channels: int, side: int, num_images: int) -> None:
    ours = build_model(name, 7, in_channels, image_size=side, dropout=0.0)
    assert_same_network(ours, partial(table_1, name == "googlenet"), random_images(num_images, in_channels, side))


@pytest.mark.parametrize(
    ("name", "side", "stem"),
    [("googlenet", 224, 8), ("googlenet-bn", 224, 8), ("googlenet-notes", 96, 8), ("googlenet-cifar", 32, 1)],
)
def test_channels_and_sides_are_those_of_table_1(name: str, side: int, stem: int) -> None:
    shapes = {}
    with torch.device("meta"):
        model = build_model(name, 10).eval()
        for place, module in model.named_children():
            module.register_forward_hook(lambda *args, place=place: shapes.update({place: args[-1].shape}))
        model(torch.empty(1, 3, side, side))
    assert shapes["stem"] == (1, 192, side // stem, side // stem)
    widths = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}
    for place, width in widths.items():
        shrunk = side // stem // 2 ** (int(place[0]) - 3)
        assert shapes[f"inception{place}"] == (1, width, shrunk, shrunk)


def test_auxiliary_classifiers_are_those_of_section_5() -> None:
    with torch.device("meta"):
        for classifier, width in zip(build_model("googlenet", 10).auxiliary, (512, 528), strict=True):
            maps = torch.empty(1, width, 14, 14)
            assert classifier.pool(maps).shape == (1, width, 4, 4)
            assert classifier.conv(classifier.pool(maps)).shape == (1, 128, 4, 4)
            assert [classifier.linear.in_features, classifier.linear.out_features] == [2048, 1024]
    assert find_variant("googlenet").auxiliary_loss == AuxiliaryLoss(weight=0.3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("googlenet", [0.4, 0.7, 0.7]), ("googlenet-bn", [0.2, 0.7, 0.7]), ("googlenet-notes-aux", [0.0, 0.0, 0.0])],
)
def test_dropout_stands_before_the_heads(name: str, expected: list[float]) -> None:
    model, read = build_model(name, 10, image_size=31), []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda *args: read.append(args[-1]))
        elif module.__class__ is nn.Linear and module.out_features == 10:
            module.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model(random_images(2, 3, 31))
    assert len(read) == 6
    assert all(dropped is head_reads for dropped, head_reads in zip(read[::2], read[1::2], strict=True))
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == expected


def test_initialisation_is_he_fan_in() -> None:
    torch.manual_seed(0)
    for name in ("googlenet", "googlenet-cifar"):
        for module in build_model(name, 10).modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert module.bias is None or module.bias.eq(0).all()
                if module.weight.numel() > 8000:
                    expected = math.sqrt(2 / module.weight[0].numel())
                    assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def count_from_table_1(name: str, num_classes: int, in_channels: int) -> dict[str, int]:
    """Parameters of the stem, of each row of Table 1, of the head and of the auxiliary classifiers."""
    batch = name in ("googlenet-bn", "googlenet-cifar")

    def conv(c_in: int, c_out: int, side: int) -> int:
        return c_in * c_out * side**2 + (2 if batch else 1) * c_out  # scale and shift of the norm, or a bias

    def linear(c_in: int, c_out: int) -> int:
        return (c_in + 1) * c_out

    stem = conv(in_channels, 64, 7) + conv(64, 64, 1) + conv(64, 192, 3)
    counts, channels = {"stem": conv(in_channels, 192, 3) if "cifar" in name else stem}, 192
    for place, (one, reduce3, three, reduce5, five, pool, _) in TABLE_1.items():
        reduced = sum(conv(channels, width, 1) for width in (one, reduce3, reduce5, pool))
        counts[place] = reduced + conv(reduce3, three, 3) + conv(reduce5, five, 3 if name == "googlenet-bn" else 5)
        channels = one + three + five + pool
    counts["head"] = linear(channels, num_classes)
    if name not in ("googlenet-notes", "googlenet-cifar"):
        averages = 1 if "notes" in name else 16  # maps of 6 px have room for one window of 5x5
        linears = linear(128 * averages, 1024) + linear(1024, num_classes)
        counts["auxiliary"] = conv(512, 128, 1) + conv(528, 128, 1) + 2 * linears
    return counts


@pytest.mark.parametrize(
    ("name", "num_classes", "in_channels"),
    [
        ("googlenet", 1000, 3),
        ("googlenet-bn", 1000, 3),
        ("googlenet-notes", 10, 1),
        ("googlenet-notes-aux", 10, 1),
        ("googlenet-cifar", 10, 3),
    ],
)
def test_count_follows_from_table_1(name: str, num_classes: int, in_channels: int) -> None:
    expected = sum(count_from_table_1(name, num_classes, in_channels).values())
    assert count_parameters(name, num_classes, in_channels) == expected


def test_published_weights_count_no_auxiliary_classifiers() -> None:
    """torchvision's `num_params` leaves them out, though they are in the file that it publishes."""
    published = torchvision.models.GoogLeNet_Weights.DEFAULT.meta["num_params"]
    auxiliary = count_from_table_1("googlenet-bn", 1000, 3)["auxiliary"]
    assert count_parameters("googlenet-bn", 1000) - auxiliary == published == 6_624_904


def test_table_1_prints_about_these_counts() -> None:
    """Its `params` do not follow from its widths: off by up to 7 % (4c); the 2.7K of the first row by more."""
    counts = count_from_table_1("googlenet", 1000, 3)
    for place, (*_, printed) in TABLE_1.items():
        assert counts[place] / 1024 == pytest.approx(printed, rel=0.08)
