"""Options of the residual networks that no shipped network uses: dilation, another normalisation, zero beginnings."""

import pickle
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torchvision
from parity import assert_same_network, from_module, random_images
from torch import nn

from candid.models.resnet import VARIANTS, ResNet
from candid.weights.layouts import TORCHVISION

torch.set_num_threads(1)


@pytest.mark.parametrize("dilated", [(2, 3), (1, 3)])
def test_dilation_instead_of_stride_is_torchvisions_for_bottlenecks(dilated: tuple[int, ...]) -> None:
    with torch.device("meta"):
        bottleneck, instead = torchvision.models.resnet.Bottleneck, [index in dilated for index in (1, 2, 3)]
        theirs = torchvision.models.ResNet(bottleneck, [1, 1, 2, 2], 7, replace_stride_with_dilation=instead)
    ours = ResNet(replace(VARIANTS["resnet50"], blocks_per_stage=(1, 1, 2, 2), dilated_stages=dilated), 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["resnet"]), random_images(2, 3, 32))


@pytest.mark.parametrize(("output_stride", "dilated"), [(16, (3,)), (8, (2, 3))])
def test_dilation_instead_of_stride_is_timms_for_basic_blocks(output_stride: int, dilated: tuple[int, ...]) -> None:
    with torch.device("meta"):
        theirs = timm.create_model("resnet18", num_classes=7, output_stride=output_stride)
    ours = ResNet(replace(VARIANTS["resnet18"], dilated_stages=dilated), 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["resnet"]), random_images(2, 3, 32))


@pytest.mark.parametrize("norm", [partial(nn.GroupNorm, 32), partial(nn.InstanceNorm2d, affine=True)])
def test_another_normalisation_is_torchvisions(norm) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet18(num_classes=7, norm_layer=norm)
    ours = ResNet(replace(VARIANTS["resnet18"], norm=norm), 7)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.3)
    assert_same_network(ours, from_module(theirs, TORCHVISION["resnet"]), random_images(2, 3, 64))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_norm_of_each_branch_begins_at_zero_where_torchvisions_does(name: str) -> None:
    theirs = torchvision.models.get_model(name, zero_init_residual=True).state_dict()
    ours = ResNet(replace(VARIANTS[name], zero_init_last_norm=True), 7)
    zero = [key for key, value in ours.named_parameters() if "bias" not in key and value.eq(0).all()]
    expected = [key for key, value in theirs.items() if "weight" in key and value.eq(0).all()]
    assert [TORCHVISION["resnet"](key) for key in zero] == expected
    assert len(zero) == sum(VARIANTS[name].blocks_per_stage)


def test_options_leave_the_config_picklable() -> None:
    config = replace(VARIANTS["resnet50"], norm=partial(nn.GroupNorm, 32), dilated_stages=(3,))
    again = pickle.loads(pickle.dumps(config))
    assert (again.norm.func, again.norm.args) == (nn.GroupNorm, (32,))
    assert replace(again, norm=config.norm) == config
