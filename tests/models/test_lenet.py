import math

import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model

torch.set_num_threads(1)


def figure_2(activation, state: State, x: Tensor, training: bool) -> Tensor:
    """LeCun et al. 1998, figure 2, as taught today: convolution, pooling, twice; three linear layers."""

    def activate(x: Tensor, number: int) -> Tensor:
        norm = f"norm{number}"
        if f"{norm}.weight" in state:
            mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
            x = F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], training)
        return activation(x)

    for number in (1, 2):
        x = F.conv2d(x, state[f"conv{number}.weight"], state[f"conv{number}.bias"])
        x = F.max_pool2d(activate(x, number), 2)
    x = x.flatten(1)
    for number in (1, 2):
        x = F.linear(x, state[f"linear{number}.weight"], state[f"linear{number}.bias"])
        x = activate(x, number + 2)
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize(
    ("name", "activation"),
    [("lenet", torch.sigmoid), ("lenet-relu", torch.relu), ("lenet-bn", torch.sigmoid)],
)
@pytest.mark.parametrize("side", [28, 32])
def test_is_figure_2_with_another_activation(name: str, activation, side: int) -> None:
    def reference(state: State, x: Tensor, training: bool) -> Tensor:
        return figure_2(activation, state, x, training)

    assert_same_network(build_model(name, 7, 1, image_size=side), reference, random_images(4, 1, side))


@pytest.mark.parametrize("side", [16, 17, 28, 31, 32, 64, 65])
def test_any_size_from_16_px_fits_the_linear_layers(side: int) -> None:
    with torch.device("meta"):
        assert build_model("lenet", 10, image_size=side)(torch.empty(2, 3, side, side)).shape == (2, 10)


def test_initialisation_tells_images_apart_where_pytorchs_default_does_not() -> None:
    torch.manual_seed(0)
    model, images = build_model("lenet", 10, 1), torch.randn(64, 1, 28, 28)
    spread = model(images).std(dim=0).mean()
    for layer in (model.conv1, model.conv2, model.linear1, model.linear2, model.head):
        layer.reset_parameters()
    assert spread > 100 * model(images).std(dim=0).mean()


@pytest.mark.parametrize(("name", "gain"), [("lenet", 4.0), ("lenet-relu", 1.0), ("lenet-bn", 1.0)])
def test_initialisation_is_xavier_and_wide_before_bare_sigmoids(name: str, gain: float) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10, 1)
    for layer, fan_in, fan_out in [(model.linear1, 256, 120), (model.linear2, 120, 84)]:
        bound = gain * math.sqrt(6 / (fan_in + fan_out))
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert bound * 0.98 < layer.weight.abs().max() <= bound
    assert model.head.weight.abs().max() <= math.sqrt(6 / (84 + 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
