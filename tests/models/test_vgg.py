import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torchvision
from parity import assert_same_network, from_module, random_images
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from candid.models import build_model, find_variant
from candid.models.convolution import Conv2d
from candid.models.vgg import VARIANTS, VGG
from candid.weights.layouts import TORCHVISION

torch.set_num_threads(1)

TORCHVISIONS = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
QUICK = ("vgg11", "vgg11_bn")


@pytest.mark.parametrize(
    ("name", "side"),
    [pytest.param(n, 40, marks=() if n in QUICK else pytest.mark.long) for n in TORCHVISIONS]
    + [pytest.param("vgg11", 96, marks=pytest.mark.long)],
)
def test_computes_what_torchvision_computes(name: str, side: int) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=7, dropout=0.0)
        theirs.classifier[0] = nn.Linear(512 * 7 * 7, 48)
        theirs.classifier[3] = nn.Linear(48, 48)
        theirs.classifier[6] = nn.Linear(48, 7)
    ours = VGG(replace(find_variant(name).config, linear_widths=(48, 48), dropout=0.0), 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["vgg"]), random_images(3, 3, side))


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_parameters_have_torchvisions_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_model(name, 1000), torchvision.models.get_model(name)
    found = {TORCHVISION["vgg"](key): value.shape for key, value in ours.state_dict().items()}
    assert found == {key: value.shape for key, value in theirs.state_dict().items()}


def test_network_of_the_notes_is_vgg11() -> None:
    assert VARIANTS["vgg11-notes"] == VARIANTS["vgg11"]


@pytest.mark.parametrize("side", [32, 64])
def test_small_network_of_the_notes_has_an_eighth_of_all_widths(side: int) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg11(num_classes=7, dropout=0.0)
        theirs.features = make_layers([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"])
        theirs.features[0] = nn.Conv2d(1, 8, kernel_size=3, padding=1)
        theirs.classifier[0] = nn.Linear(64 * 7 * 7, 512)
        theirs.classifier[3] = nn.Linear(512, 512)
        theirs.classifier[6] = nn.Linear(512, 7)
    ours = build_model("vgg11-notes-small", 7, in_channels=1, dropout=0.0)
    shapes = {TORCHVISION["vgg"](key): value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert_same_network(ours, from_module(theirs, TORCHVISION["vgg"]), random_images(2, 1, side))


def test_cifar_network_is_the_convolutions_of_vgg16_bn_and_one_linear_layer() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn()
        theirs.avgpool = nn.Identity()  # at 32 px a single pixel is left
        theirs.classifier = nn.Sequential(OrderedDict({"6": nn.Linear(512, 7)}))
    ours = build_model("vgg16-bn-cifar", 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["vgg"]), random_images(2, 3, 32))


@pytest.mark.parametrize("name", VARIANTS)
def test_relu_follows_every_convolution_and_hidden_layer(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    letters = {Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", nn.MaxPool2d: "M", nn.Linear: "L", nn.Dropout: "D"}
    kinds = "".join(letters.get(type(module), "") for module in model.modules())
    convolution = "CBR" if "-bn" in name else "CR"
    stages = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
    features = "".join(convolution * number + "M" for number in stages[name[:5]])
    assert kinds == features + ("DL" if "cifar" in name else "LRDLRDL")
    assert model.classifier[-1].p == (0.0 if "cifar" in name else 0.5)


def test_features_of_the_notes_are_25088_at_224_px() -> None:
    with torch.device("meta"):
        model, x, sides = build_model("vgg11-notes", 10, in_channels=1), torch.empty(1, 1, 224, 224), []
        for layer in model.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                sides.append(x.shape[-1])
    assert sides == [112, 56, 28, 14, 7]
    assert x.numel() == model.classifier[0].in_features == 25088


@pytest.mark.parametrize("name", ["vgg11-notes-small", "vgg16-bn-cifar"])
def test_dropout_before_the_head_changes_training_and_not_evaluation(name: str) -> None:
    def logits(dropout: float, training: bool) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return build_model(name, 10, dropout=dropout).train(training)(random_images(2, 3, 32))

    assert torch.equal(logits(0.0, training=False), logits(0.5, training=False))
    assert not torch.equal(logits(0.0, training=True), logits(0.5, training=True))


@pytest.mark.parametrize("name", ["vgg11-notes-small", "vgg16-bn-cifar"])
def test_initialisation_is_he_fan_out_and_a_hundredth_in_linear_layers(name: str) -> None:
    torch.manual_seed(0)
    for layer in build_model(name, 100).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = math.sqrt(2 / (9 * layer.out_channels)) if isinstance(layer, nn.Conv2d) else 0.01
            if layer.weight.numel() > 4000:
                assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
            assert layer.bias.eq(0).all()
