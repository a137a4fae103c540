import math

import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model

torch.set_num_threads(1)


def layers_of_the_notes(state: State, x: Tensor, training: bool) -> Tensor:
    """Convolution and pooling, twice, then three linear layers; convolutions as products over 3x3 windows."""
    for number in (1, 2):
        weight, bias = state[f"conv{number}.weight"], state[f"conv{number}.bias"]
        windows = x.unfold(2, 3, 1).unfold(3, 3, 1)  # [N, C, H - 2, W - 2, 3, 3]
        x = torch.einsum("nchwij,dcij->ndhw", windows, weight) + bias[:, None, None]
        side = x.shape[-1] // 2 * 2
        x = x[..., :side, :side].clamp(min=0).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax(dim=(3, 5))
    x = x.flatten(1)
    for number in (1, 2):
        x = F.linear(x, state[f"linear{number}.weight"], state[f"linear{number}.bias"]).clamp(min=0)
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("side", [28, 13])
def test_is_the_network_of_the_notes(side: int) -> None:
    model = build_model("convnet", 7, 1, image_size=side)
    assert_same_network(model, layers_of_the_notes, random_images(4, 1, side) - 0.5)


def test_shapes_at_28_px() -> None:
    with torch.device("meta"):
        model, sides = build_model("convnet", 10, 1), []
        for layer in (model.conv1, model.conv2, model.pool):
            layer.register_forward_hook(
                lambda layer, given, result: sides.append((given[0].shape[-1], result.shape[-1]))
            )
        assert model(torch.empty(1, 1, 28, 28)).shape == (1, 10)
    assert sides == [(28, 26), (26, 13), (13, 11), (11, 5)]
    assert [layer.in_features for layer in (model.linear1, model.linear2, model.head)] == [1250, 1024, 128]


@pytest.mark.parametrize("side", [10, 11, 28, 31, 32, 65])
def test_any_size_from_10_px_fits_the_linear_layers(side: int) -> None:
    with torch.device("meta"):
        assert build_model("convnet", 10, image_size=side)(torch.empty(2, 3, side, side)).shape == (2, 10)


def test_initialisation_is_he_fan_in() -> None:
    torch.manual_seed(0)
    model = build_model("convnet", 10, 1)
    for layer, fan_in in [(model.conv2, 9 * 25), (model.linear1, 1250), (model.linear2, 1024), (model.head, 128)]:
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.06)
    assert all(parameter.eq(0).all() for name, parameter in model.named_parameters() if name.endswith("bias"))
