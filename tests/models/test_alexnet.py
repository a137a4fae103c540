from dataclasses import replace

import pytest
import torch
import torchvision
from parity import State, assert_same_network, from_module, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model
from candid.models.alexnet import VARIANTS, AlexNet
from candid.weights.layouts import TORCHVISION

torch.set_num_threads(1)


def narrow(name: str, num_classes: int, in_channels: int, image_size: int) -> AlexNet:
    """The network with hidden linear layers of 48: all convolutions, a fraction of the memory."""
    config = replace(VARIANTS[name], linear_width=48, image_size=image_size, dropout=0.0)
    return AlexNet(config, num_classes, in_channels)


@pytest.mark.parametrize("side", [63, 100, 192])  # averages of 1, 2 and 5 px to 6
def test_computes_what_torchvision_computes(side: int) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.alexnet(num_classes=7, dropout=0.0)
        theirs.classifier[1] = nn.Linear(256 * 6 * 6, 48)
        theirs.classifier[4] = nn.Linear(48, 48)
        theirs.classifier[6] = nn.Linear(48, 7)
    ours = narrow("alexnet", 7, 3, side)
    assert_same_network(ours, from_module(theirs, TORCHVISION["alexnet"]), random_images(2, 3, side))


@pytest.mark.long
def test_computes_what_torchvision_computes_at_full_width() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.alexnet(num_classes=7, dropout=0.0)
    ours = build_model("alexnet", 7, dropout=0.0)
    assert_same_network(ours, from_module(theirs, TORCHVISION["alexnet"]), random_images(2, 3, 224))


def section_3_5(state: State, x: Tensor, training: bool) -> Tensor:
    """Krizhevsky et al. 2012, section 3.5, in one tower without response normalisation or dropout."""
    parameters = list(state.values())
    weights, biases = parameters[::2], parameters[1::2]
    for number, (stride, padding) in enumerate([(4, 0), (1, 2), (1, 1), (1, 1), (1, 1)]):
        x = F.relu(F.conv2d(x, weights[number], biases[number], stride, padding))
        if number in (0, 1, 4):
            x = F.max_pool2d(x, 3, 2)
    x = x.flatten(1)
    for number in (5, 6):
        x = F.relu(F.linear(x, weights[number], biases[number]))
    return F.linear(x, weights[7], biases[7])


@pytest.mark.parametrize("side", [67, 99])
def test_network_of_the_notes_is_section_3_5_in_one_tower(side: int) -> None:
    assert_same_network(narrow("alexnet-notes", 7, 1, side), section_3_5, random_images(2, 1, side))


@pytest.mark.parametrize(
    ("name", "channels", "sides", "features"),
    [
        ("alexnet", [64, 192, 384, 256, 256], [55, 27, 27, 13, 13, 13, 13, 6], 9216),
        ("alexnet-notes", [96, 256, 384, 384, 256], [54, 26, 26, 12, 12, 12, 12, 5], 6400),
    ],
)
def test_shapes_are_those_of_the_papers(name: str, channels: list[int], sides: list[int], features: int) -> None:
    with torch.device("meta"):
        model, x, found = build_model(name, 10), torch.empty(1, 3, 224, 224), []
        for layer in model.features:
            x = layer(x)
            if not isinstance(layer, nn.ReLU):
                found.append(x.shape[-1])
    assert found == sides
    assert [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)] == channels
    assert [layer.in_features for layer in model.classifier if isinstance(layer, nn.Linear)] == [features, 4096]


@pytest.mark.parametrize("side", [67, 68, 98, 99, 224, 227, 256])
def test_linear_layer_of_the_notes_fits_the_image_size(side: int) -> None:
    with torch.device("meta"):
        assert build_model("alexnet-notes", 10, image_size=side)(torch.empty(2, 3, side, side)).shape == (2, 10)


def test_averages_let_any_size_into_the_other() -> None:
    with torch.device("meta"):
        model = build_model("alexnet", 10)
        assert [model(torch.empty(1, 3, side, side)).shape for side in (63, 100, 256)] == [(1, 10)] * 3


@pytest.mark.parametrize("name", VARIANTS)
def test_dropout_takes_half_of_what_both_hidden_layers_give(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    order = [module for module in model.modules() if isinstance(module, nn.ReLU | nn.Dropout | nn.Linear)]
    kinds = "".join(type(module).__name__[0] for module in order)
    assert kinds == "RRRRR" + "LRD" * 2 + "L"
    assert [module.p for module in order if isinstance(module, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize("name", VARIANTS)
def test_initialisation_is_section_5(name: str) -> None:
    torch.manual_seed(0)
    layers = [m for m in narrow(name, 1000, 3, 224).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(layer.weight.mean().item()) < 5 * 0.01 / layer.weight.numel() ** 0.5
    assert [layer.bias.unique().tolist() for layer in layers] == [[0], [1], [0], [1], [1], [1], [1], [0]]
