import math
import re
from collections import Counter

import pytest
import torch
import torchvision
from parity import State, assert_same_network, from_module, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model
from candid.weights.layouts import TORCHVISION

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name",
    [
        "densenet121",
        pytest.param("densenet161", marks=pytest.mark.long),
        "densenet169",
        pytest.param("densenet201", marks=pytest.mark.long),
    ],
)
def test_computes_what_torchvision_computes(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=7)
    assert_same_network(build_model(name, 7), from_module(theirs, TORCHVISION["densenet"]), random_images(4, 3, 32))


def test_small_stem_is_torchvisions_network_with_another_start() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.densenet121(num_classes=7)
        theirs.features.conv0 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    ours = build_model("densenet121-cifar", 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["densenet"]), random_images(4, 3, 8))


def section_3(state: State, x: Tensor, training: bool) -> Tensor:
    """Huang et al. 2017, section 3, written from the paper: all earlier maps go into each layer."""

    def bn_relu(x: Tensor, norm: str) -> Tensor:
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.relu(F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], training))

    def composite(maps: list[Tensor], place: str) -> Tensor:
        """H_l: BN, ReLU, 3x3 convolution, and with -B a BN, ReLU, 1x1 convolution before."""
        x = torch.cat(maps, dim=1)
        if f"{place}.conv2.weight" in state:
            x = F.conv2d(bn_relu(x, f"{place}.norm1"), state[f"{place}.conv1.weight"])
            return F.conv2d(bn_relu(x, f"{place}.norm2"), state[f"{place}.conv2.weight"], padding=1)
        return F.conv2d(bn_relu(x, f"{place}.norm1"), state[f"{place}.conv1.weight"], padding=1)

    if "stem.0.filters" in state:  # our own
        x = F.relu(F.conv2d(x, state["stem.0.filters"], state["stem.0.bias"]))
        x = F.max_pool2d(F.conv2d(x, state["stem.2.weight"], padding=1), kernel_size=2)
    elif "stem.1.weight" in state:  # ImageNet
        x = bn_relu(F.conv2d(x, state["stem.0.weight"], stride=2, padding=3), "stem.1")
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    else:
        x = F.conv2d(x, state["stem.0.weight"], padding=1)
    layers = Counter(re.findall(r"blocks\.(\d)\.layers\.\d+\.norm1\.weight", "\n".join(state)))
    for block in range(len(layers)):
        if block > 0:
            transition = f"transitions.{block - 1}"
            x = F.conv2d(bn_relu(x, f"{transition}.norm"), state[f"{transition}.conv.weight"])
            x = F.avg_pool2d(x, kernel_size=2)
        maps = [x]
        for layer in range(layers[str(block)]):
            maps.append(composite(maps, f"blocks.{block}.layers.{layer}"))
        x = torch.cat(maps, dim=1)
    x = F.adaptive_avg_pool2d(bn_relu(x, "norm"), 1).flatten(1)
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("name", ["densenet-40-12", "densenet-bc-100-12"])
def test_cifar_network_is_section_3(name: str) -> None:
    assert_same_network(build_model(name, 7), section_3, random_images(4, 3, 8))


def test_network_of_the_notes_compresses_without_bottlenecks() -> None:
    assert_same_network(build_model("densenet-notes", 7, in_channels=1), section_3, random_images(4, 1, 32))


def test_speed_network_is_section_3_behind_whitening() -> None:
    assert_same_network(build_model("densenet-speed", 7), section_3, random_images(4, 3, 18))


def test_channels_of_the_notes() -> None:
    with torch.device("meta"):
        model = build_model("densenet-notes", 10, in_channels=1)
    found = [f"{norm.num_features}" for norm in (t.norm for t in model.transitions)]
    kept = [f"{conv.out_channels}" for conv in (t.conv for t in model.transitions)]
    assert [found, kept, model.norm.num_features] == [["192", "224", "240"], ["96", "112", "120"], 248]


@pytest.mark.parametrize(
    ("name", "depth"), [("densenet-40-12", 40), ("densenet-bc-250-24", 250), ("densenet-bc-40-48", 40)]
)
def test_network_has_the_depth_of_its_name(name: str, depth: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == depth


@pytest.mark.parametrize("name", ["densenet-40-12", "densenet-cifar", "densenet-notes"])
def test_dropout_follows_every_convolution_except_the_stem(name: str) -> None:
    model, order = build_model(name, 10, dropout=0.2), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Dropout):
            module.register_forward_hook(lambda module, *_: order.append(module))
    with torch.no_grad():
        model(random_images(2, 3, 32))
    convolutions = [index for index, module in enumerate(order) if isinstance(module, nn.Conv2d)][1:]
    followers = [order[index + 1] for index in convolutions]
    assert all(isinstance(module, nn.Dropout) and module.p == 0.2 for module in followers)
    assert len(order) == 1 + 2 * len(convolutions)


def test_dropout_changes_training_and_not_evaluation() -> None:
    torch.manual_seed(0)
    model, images = build_model("densenet-40-12", 10, dropout=0.2), random_images(2, 3, 8)
    plain = build_model("densenet-40-12", 10)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(images), plain.eval()(images))
        assert not torch.equal(model.train()(images), plain.train()(images))


def test_initialisation_is_he_fan_out() -> None:
    torch.manual_seed(0)
    for name in ("densenet-40-12", "densenet-bc-100-12", "densenet121"):
        model = build_model(name, 10)
        assert model.head.bias.eq(0).all()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is None
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                if module.weight.numel() > 4000:
                    assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.eq(1).all()
                assert module.bias.eq(0).all()
